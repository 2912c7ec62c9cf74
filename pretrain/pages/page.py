"""The frame of every page, and the few shapes of HTML that pages share. All that users wrote is escaped here."""

import json
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from string import Template
from typing import Any


def page(title: str, lead: str, facts: Mapping[str, str], body: str) -> str:
    """Return a self-contained page, for light and dark screens and for paper.

    Args:
        title: plain text.
        lead: plain text, one sentence or two.
        facts: plain texts to show large, by what they are; empty ones are left out.
        body: HTML.
    """
    cells = (f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in facts.items() if value)
    template = Template(files("pretrain.pages").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), lead=escape(lead), facts="".join(cells), body=body)


def encoded(text: str) -> bytes:
    """Return a page as UTF-8; names that were no UTF-8 arrive as lone surrogates, which no page can hold."""
    return text.encode("utf-8", "backslashreplace")


def values(title: str, items: Mapping[str, Any]) -> str:
    """Return a section that lists plain values by name; nothing where there are none."""
    if not items:
        return ""
    rows = "".join(
        f"<div><dt>{escape(str(name))}</dt><dd><code>{escape(_plain(value))}</code></dd></div>"
        for name, value in items.items()
    )
    return f'<section><h3>{escape(title)}</h3><dl class="values">{rows}</dl></section>'


def table(
    heads: Iterable[str], rows: Iterable[Iterable[str]], *, numeric: Iterable[int] = (), narrow: bool = False
) -> str:
    """Return a table.

    Args:
        heads: plain texts.
        rows: cells as HTML.
        numeric: places of columns of numbers.
        narrow: as wide as its content, not as the page.
    """
    right = set(numeric)
    kinds = {True: ' class="num"', False: ""}
    head = "".join(f"<th{kinds[place in right]}>{escape(text)}</th>" for place, text in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(f"<td{kinds[place in right]}>{cell}</td>" for place, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    style = ' class="narrow"' if narrow else ""
    return f'<div class="scroll"><table{style}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def commands(items: Mapping[str, str]) -> str:
    """Return commands to copy, by what they do."""
    return "".join(
        f"<h3>{escape(title)}</h3><pre><code>{escape(text)}</code></pre>" for title, text in items.items() if text
    )


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, sort_keys=True)
