"""What the tests of pages share: a reader of pages."""

import re
from html.parser import HTMLParser

import pytest


class _Page(HTMLParser):
    """The elements, their attributes and the text of a page, all nested as they should be."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))

    def links(self):
        return [value for _, attrs in self.elements for key, value in attrs.items() if key in ("src", "href", "data")]


@pytest.fixture(scope="session")
def read_page():
    """A function that parses a page and makes sure that it needs nothing but itself."""

    def read(text):
        page = _Page(text)
        assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
        for forbidden in ("http", "@import", "url("):
            assert forbidden not in text
        return page

    return read
