"""A reader of the HTML pages that the stages write: what stands in them, and that they need nothing but themselves."""

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """The elements, their attributes and the text of a page, all nested as they should be."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        """Note an element that may hold others."""
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        """Note an element that holds none."""
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        """Make sure that it is the last one's that was begun."""
        assert self.open.pop() == tag

    def handle_data(self, data):
        """Note a text."""
        self.words.append(data)

    @property
    def text(self):
        """All words, with one space between them."""
        return re.sub(r"\s+", " ", " ".join(self.words))

    def links(self):
        """What is referred to, in order."""
        return [value for _, attrs in self.elements for key, value in attrs.items() if key in ("src", "href", "data")]


def read_page(text):
    """Parse a page and make sure that it loads nothing from elsewhere and runs nothing."""
    page = Page(text)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    for forbidden in ("http", "@import", "url("):
        assert forbidden not in text
    return page
