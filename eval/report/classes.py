"""What becomes of each class: confusion matrices, and the figure of each class for each model."""

from collections.abc import Sequence
from html import escape

from eval.report.contents import Contents, Figures, Table, leading, percent, title_of
from eval.report.markup import Cell, Column, folded, number, section, table

_MAX_NUMBERED = 16
"""Classes of a matrix with its counts in the cells; more are squares whose counts show under the pointer."""
_MAX_MISTAKES = 5
_NUM_TOLD = 2
_MANY = 10_000
"""Of a class: from here on, as of pixels, shares are told and not counts."""
_SQUARE_PX, _LETTER_PX, _MAX_LETTERS = 14, 6.4, 28


def confusions(contents: Contents) -> str:
    """Return the matrices of the newest models, with what is mistaken most."""
    shown = [each for each in contents.report.get("confusions", []) if each["model"] in contents.newest]
    return "\n".join(_confusion(each) for each in shown)


def _confusion(each: Figures) -> str:
    title = f"{each['model']} on {each['data']}: {title_of(each['protocol'])}, {each['features']}"
    is_large = len(each["classes"]) > _MAX_NUMBERED
    return section(title, (_squares(each) if is_large else _matrix(each)) + _mistakes(each), level=3)


def _matrix(each: Figures) -> str:
    classes = each["classes"]
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in classes)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        f"{''.join(_numbered(n, sum(row), i == j) for j, n in enumerate(row))}</tr>"
        for i, (name, row) in enumerate(zip(classes, each["counts"], strict=True))
    )
    return (
        f'<div class="scroll"><table class="confusion"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _numbered(count: int, total: int, is_right: bool) -> str:
    share = count / total if total else 0.0
    kind = "hit" if is_right else "miss"
    strong = " strong" if share > 0.55 else ""
    text = "" if not count else f"{count:,}" if total < _MANY else f"{percent(share)} %"
    return f'<td class="{kind}{strong}" style="--share:{100 * share:.0f}%">{text}</td>'


def _squares(each: Figures) -> str:
    """Return a matrix of many classes as inline SVG; its size goes by the cells that are not empty."""
    classes, size = each["classes"], len(each["classes"]) * _SQUARE_PX
    edge = round(12 + _LETTER_PX * max(len(_short(name)) for name in classes))
    parts = []
    for i, (name, row) in enumerate(zip(classes, each["counts"], strict=True)):
        y, x, text = edge + i * _SQUARE_PX, edge + (i + 0.8) * _SQUARE_PX, escape(_short(name))
        parts.append(f'<text class="tick" x="{edge - 6}" y="{y + 11}" text-anchor="end">{text}</text>')
        parts.append(f'<text class="tick" transform="translate({x:.1f} {edge - 6}) rotate(-90)">{text}</text>')
        parts += [_square(each, i, j, edge) for j, count in enumerate(row) if count]
    side = edge + size
    label = f"Confusion matrix of {each['model']} on {each['data']}"
    return (
        f'<div class="scroll"><svg class="squares" width="{side}" height="{side}" viewBox="0 0 {side} {side}" '
        f'role="img" aria-label="{escape(label)}"><rect class="panel" x="{edge}" y="{edge}" width="{size}" '
        f'height="{size}"/>{"".join(parts)}</svg></div>'
    )


def _square(each: Figures, i: int, j: int, edge: int) -> str:
    count, total, classes = each["counts"][i][j], sum(each["counts"][i]), each["classes"]
    # Single mistakes must show beside hundreds of right ones.
    opacity = 0.3 + 0.7 * count / total
    return (
        f'<rect class="{"right" if i == j else "wrong"}" x="{edge + j * _SQUARE_PX}" y="{edge + i * _SQUARE_PX}" '
        f'width="{_SQUARE_PX - 1}" height="{_SQUARE_PX - 1}" fill-opacity="{opacity:.2f}"><title>{escape(classes[i])} '
        f"→ {escape(classes[j])}: {count:,} of {total:,}</title></rect>"
    )


def _short(name: str) -> str:
    return name if len(name) <= _MAX_LETTERS else f"{name[: _MAX_LETTERS - 1]}…"


def mistakes(each: Figures) -> list[tuple[str, str, int, int]]:
    """Return (true class, predicted class, count, images of the true class) of the commonest mistakes, by count."""
    classes, counts = each["classes"], each["counts"]
    found = [
        (classes[i], classes[j], count, sum(row))
        for i, row in enumerate(counts)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(found, key=lambda one: -one[2])[:_MAX_MISTAKES]


def _mistakes(each: Figures) -> str:
    texts = [
        f"{escape(true)} → {escape(predicted)} "
        + (f"{count:,} of {total:,}" if total < _MANY else f"{percent(count / total)} %")
        for true, predicted, count, total in mistakes(each)
    ]
    return f"<p>Most often mistaken: {'; '.join(texts)}.</p>" if texts else "<p>No mistake.</p>"


def class_figures(contents: Contents) -> str:
    """Return the figure of each class for each newest model, under the first leading protocols of each data set."""
    parts = []
    for data in dict.fromkeys(each.data for each in contents.tables):
        told = [each for each in contents.tables if each.data == data and _has_classes(each)]
        parts += [_told(contents, each) for each in leading(told)[:_NUM_TOLD]]
    return "\n".join(parts)


def _has_classes(each: Table) -> bool:
    return any((row.get("detail") or {}).get("per_class") for row in each.rows)


def _told(contents: Contents, each: Table) -> str:
    figures = {
        f"{model}, {row['features']}": row["detail"]["per_class"]
        for model, row in each.chosen().items()
        if model in contents.newest and (row.get("detail") or {}).get("per_class")
    }
    name = "IoU" if each.rows[0].get("metric") in ("miou", "iou", "f1") else each.metric
    return _by_class(f"{each.data}: {each.title}, {name} of each class, %", figures)


def _by_class(title: str, figures: dict[str, dict[str, float | None]]) -> str:
    if not figures:
        return ""
    classes = list(dict.fromkeys(name for values in figures.values() for name in values))
    columns = [Column(title="Class"), *[number(model) for model in figures]]
    rows: list[tuple[str, Sequence[Cell | str]]] = [
        ("", [name, *[_share(values.get(name)) for values in figures.values()]]) for name in classes
    ]
    return folded(title, table(columns, rows, "classes"), is_open=len(classes) <= _MAX_NUMBERED)


def _share(value: float | None) -> Cell:
    if value is None:
        return Cell(html="–")
    bar = f'<span class="share"><i style="width:{100 * value:.1f}%"></i></span>'
    return Cell(html=f'{bar}<span class="figure">{percent(value)}</span>', value=value)
