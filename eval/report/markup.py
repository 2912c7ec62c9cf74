"""The few shapes of HTML that the page is made of. Plain text is escaped here, unless it is said to be HTML."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

Sort = Literal["text", "number", ""]


@dataclass(frozen=True, kw_only=True)
class Column:
    """The head of a column."""

    title: str
    """Plain text."""
    sort: Sort = "text"
    """How a click sorts the rows; empty: not at all."""
    kind: str = ""
    """Class of the column's cells; numbers are `num`."""
    order: Literal["ascending", "descending", ""] = ""
    """How the rows come."""
    html: str = ""
    """In place of the title, if any."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell that is more than plain text."""

    html: str
    value: float | None = None
    """What a sort goes by; what has none comes last."""
    kind: str = ""
    """Class of this cell alone."""


def number(title: str, order: Literal["ascending", "descending", ""] = "") -> Column:
    """Return a column of numbers."""
    return Column(title=title, sort="number", kind="num", order=order)


def table(
    columns: Sequence[Column], rows: Iterable[tuple[str, Sequence[Cell | str]]], kind: str = "", note: str = ""
) -> str:
    """Return a table that a click on its heads sorts, if it has two rows or more.

    Args:
        columns: at least one.
        rows: class of each row, and its cells: plain text or Cells; the first one names the row.
        kind: classes of the table.
        note: HTML of a caption.
    """
    lines = [_row(columns, name, cells) for name, cells in rows]
    is_sortable = len(lines) > 1 and any(column.sort for column in columns)
    head = "".join(_head(column, is_sortable) for column in columns)
    classes = " ".join(filter(None, (kind, "sortable" if is_sortable else "")))
    caption = f"<caption>{note}</caption>" if note else ""
    return (
        f'<div class="scroll"><table class="{classes}">{caption}<thead><tr>{head}</tr></thead>\n'
        f"<tbody>{chr(10).join(lines)}</tbody></table></div>"
    )


def _head(column: Column, is_sortable: bool) -> str:
    name = f' class="{column.kind}"' if column.kind else ""
    sort = f' data-sort="{column.sort}"' if column.sort and is_sortable else ""
    order = f' aria-sort="{column.order}"' if column.order and sort else ""
    return f'<th scope="col"{name}{sort}{order}>{column.html or escape(column.title)}</th>'


def _row(columns: Sequence[Column], name: str, cells: Sequence[Cell | str]) -> str:
    parts = []
    for column, cell in zip(columns, cells, strict=True):
        shown = Cell(html=escape(cell)) if isinstance(cell, str) else cell
        classes = " ".join(filter(None, (column.kind, shown.kind)))
        kind = f' class="{classes}"' if classes else ""
        value = f' data-value="{shown.value:.12g}"' if shown.value is not None else ""
        parts.append(f"<td{kind}{value}>{shown.html}</td>")
    line = f'<tr class="{name}">' if name else "<tr>"
    return f"{line}{''.join(parts)}</tr>"


def folded(title: str, body: str, *, is_open: bool, more: str = "") -> str:
    """Return a section that opens with a click; on paper it is always open.

    Args:
        title: plain text.
        body: HTML.
        is_open: from the start.
        more: plain text, small, after the title.
    """
    small = f" <small>{escape(more)}</small>" if more else ""
    return (
        f"<details{' open' if is_open else ''}><summary><h4>{escape(title)}{small}</h4></summary>\n{body}\n</details>"
    )


def section(title: str, body: str, *, level: int = 2, lead: str = "") -> str:
    """Return a titled section; nothing where the body is empty.

    Args:
        title: plain text.
        body: HTML.
        level: of the heading.
        lead: plain text below the title.
    """
    text = f"<p>{escape(lead)}</p>" if lead else ""
    place = f' id="{anchor(title)}"' if level == 2 else ""
    return f"<section><h{level}{place}>{escape(title)}</h{level}>{text}\n{body}\n</section>" if body else ""


def anchor(title: str) -> str:
    """Return what a link to a section of the page goes by."""
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def values(items: Mapping[str, str]) -> str:
    """Return plain texts by name, as a list; nothing where there are none."""
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd><code>{escape(text)}</code></dd></div>" for name, text in items.items()
    )
    return f'<dl class="values">{rows}</dl>' if rows else ""


def count(number: int, noun: str) -> str:
    """Return a number of things in words, as in "3 backbones"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
