"""The tables of figures: a short one of each task, all rows of each protocol with bars, backbone against backbone."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from eval.report.contents import Contents, Figures, Table, interval, leading, percent, points
from eval.report.markup import Cell, Column, folded, number, section, table

_SIGNS = {"better": "▲", "worse": "▼", "no difference": "="}
_NUM_OPEN = 2
_MAX_PAIRED = 12
"""Backbones against each other on paper and screen; with more of them results.json has the rest."""


def short_table(contents: Contents, tables: Sequence[Table]) -> str:
    """Return the newest of each model against the leading protocols of a task.

    The best figure of a column is bold, and each that a paired comparison shows no difference from. A sign says how
    a backbone compares with the baseline, if there is one.
    """
    shown = leading(tables)
    columns = [Column(title="Model"), *[number(f"{each.data}: {each.title}") for each in shown]]
    marked = [(each.chosen(), _leaders(contents, each)) for each in shown]
    models = [model["name"] for model in contents.report["models"] if model["name"] in contents.newest]
    rows = []
    for model in models:
        cells: list[Cell | str] = [model]
        for chosen, leaders in marked:
            cells.append(_short_cell(contents, chosen, model, model in leaders) if model in chosen else "")
        rows.append((_kind(contents, model), cells))
    return table(columns, rows, "figures short")


def _short_cell(contents: Contents, chosen: Mapping[str, Figures], model: str, is_leader: bool) -> Cell:
    row, base = chosen[model], chosen.get(contents.baseline or "")
    figure = f"<b>{percent(row['value'])}</b>" if is_leader else percent(row["value"])
    # Floors are compared with all backbones: the sign is for what the baseline stands for.
    found = contents.between(row, base) if base and model not in contents.floors else None
    sign = _sign(found) if found else ""
    return Cell(html=f"{sign}{figure}<small>{interval(row)}</small><small>{escape(row['features'])}</small>",
                value=row["value"])  # fmt: skip


def _sign(found: Figures) -> str:
    said = escape(f"{found['verdict']}, {found['other']} {points(found)}")
    return f'<span class="sign {_word(found)}" role="img" aria-label="{said}">{_SIGNS[found["verdict"]]}</span> '


def _leaders(contents: Contents, each: Table) -> set[str]:
    """Return the best of the newest models, and those that no paired comparison tells from it."""
    rows = {model: row for model, row in each.chosen().items() if model in contents.newest}
    if not rows:
        return set()
    best = max(rows.values(), key=lambda row: row["value"])
    found = {model: contents.between(row, best) for model, row in rows.items() if row is not best}
    return {best["model"], *[model for model, each in found.items() if each and each["verdict"] == "no difference"]}


def full_tables(contents: Contents, tables: Sequence[Table]) -> str:
    """Return all rows of all protocols of a task, by data set; the first two leading protocols of each are open."""
    parts = []
    for data in dict.fromkeys(each.data for each in tables):
        mine = [each for each in tables if each.data == data]
        first = [each.protocol for each in leading(mine)][:_NUM_OPEN]
        parts.append(
            section(data, "\n".join(_folded(contents, each, each.protocol in first) for each in mine), level=3)
        )
    return "\n".join(parts)


def _folded(contents: Contents, each: Table, is_open: bool) -> str:
    row = each.rows[0]
    sizes = f"{row['num_train']:,} training and {row['num_test']:,} test images" if "num_train" in row else ""
    return folded(each.title, _full_table(contents, each) + _pairs(contents, each), is_open=is_open, more=sizes)


def _full_table(contents: Contents, each: Table) -> str:
    low, high = bar_span(each.rows)
    middle = f"{(low + high) / 2:g}"
    axis = f"<span>{low}</span><span>{middle}</span><span>{high}</span>"
    against = "Against floors, points to the nearest" + (", and the baseline" if contents.baseline else "")
    columns = [
        Column(title="Model"), Column(title="Features"), number(f"{each.metric}, %", "descending"),
        Column(title="95 % interval", kind="num", sort=""), Column(title="", html=axis, kind="bar", sort=""),
        Column(title=against, sort=""),
    ]  # fmt: skip
    rows = [
        (
            _kind(contents, row["model"]),
            [
                row["model"],
                row["features"],
                Cell(html=percent(row["value"]), value=row["value"]),
                interval(row),
                Cell(html=_bar(row, low, high)),
                Cell(html=_chips(contents, row)),
            ],
        )
        for row in each.rows
    ]
    return table(columns, rows, "figures full")


def _kind(contents: Contents, model: str) -> str:
    return "floor" if model in contents.floors else "backbone"


def bar_span(rows: Sequence[Figures]) -> tuple[int, int]:
    """Return the ends of the axis of bars, in percent: tens that hold all intervals, twenty apart at least."""
    low = math.floor(10 * min(min(row["low"], row["value"]) for row in rows)) * 10
    high = math.ceil(10 * max(max(row["high"], row["value"]) for row in rows)) * 10
    low, high = max(0, min(low, 80)), min(100, high)
    return low, max(high, low + 20)


def _bar(row: Figures, low: int, high: int) -> str:
    left, right, place = (100 * (100 * row[name] - low) / (high - low) for name in ("low", "high", "value"))
    label = f"{percent(row['value'])}, interval {interval(row)}"
    return (
        f'<div role="img" aria-label="{label}"><i style="left:{left:.2f}%;width:{right - left:.2f}%"></i>'
        f'<b style="left:{place:.2f}%"></b></div>'
    )


def _chips(contents: Contents, row: Figures) -> str:
    """Return the verdicts against floors, and against the baseline if there is one."""
    found = contents.against(row)
    base = [one for one in found if one["other"] == contents.baseline and one["other"] not in contents.floors]
    floors = [one for one in found if one["other"] in contents.floors]
    return _floor_chips(floors) + "".join(_chip(one, "baseline") for one in base)


def _floor_chips(found: Sequence[Figures]) -> str:
    """Return one line where all verdicts are the same, with the difference nearest to none, else one for each."""
    if len(found) < 2 or len({one["verdict"] for one in found}) > 1:
        return "".join(_chip(one, _floor(one)) for one in found)
    nearest = min(found, key=lambda one: abs(one["value"]))
    word = "from" if nearest["verdict"] == "no difference" else "than"
    return _chip(nearest, f"{word} all {len(found)}")


def _chip(found: Figures, against: str) -> str:
    return (
        f'<span class="chip {_word(found)}">{_SIGNS[found["verdict"]]} {escape(found["verdict"])} '
        f"<small>{escape(against)} {points(found)}</small></span>"
    )


def _floor(found: Figures) -> str:
    return str(found["other"]).removeprefix("floor:").partition("=")[0]


def _word(found: Figures) -> str:
    return str(found["verdict"]).partition(" ")[0]


def _pairs(contents: Contents, each: Table) -> str:
    """Return the newest backbones with their chosen features against the baseline, or else each against those below."""
    chosen = each.chosen()
    rows = [row for model, row in chosen.items() if model in contents.newest - contents.floors]
    base = chosen.get(contents.baseline or "")
    return _against_one(contents, base, rows) if base else _against_each(contents, rows[:_MAX_PAIRED])


def _against_one(contents: Contents, base: Figures, rows: Sequence[Figures]) -> str:
    found = {_named(row): one for row in rows if row is not base and (one := contents.between(row, base))}
    columns = [Column(title="Backbone", sort=""), Column(title=f"against {_named(base)}", sort="")]
    return table(columns, [("", [name, pair(one)]) for name, one in found.items()], "pairs") if found else ""


def _against_each(contents: Contents, rows: Sequence[Figures]) -> str:
    """Return each row against those below it; nothing where there is one."""
    found = [
        [contents.between(row, other) if place > line else None for place, other in enumerate(rows)][1:]
        for line, row in enumerate(rows[:-1])
    ]
    if not any(one for line in found for one in line):
        return ""
    columns = [Column(title="Row against column", sort=""), *[Column(title=_named(row), sort="") for row in rows[1:]]]
    lines: list[tuple[str, Sequence[Cell | str]]] = [
        ("", [_named(row), *[pair(one) for one in line]]) for row, line in zip(rows, found, strict=False)
    ]
    return table(columns, lines, "pairs")


def _named(row: Figures) -> str:
    return f"{row['model']}, {row['features']}"


def pair(found: Figures | None) -> Cell:
    """Return the verdict and the difference of a comparison; an empty cell without one."""
    if found is None:
        return Cell(html="")
    return Cell(html=f"{_SIGNS[found['verdict']]} {escape(found['verdict'])}<small>{points(found)}</small>",
                kind=_word(found))  # fmt: skip
