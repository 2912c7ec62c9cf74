"""Metric against step, as SVG in the page and in files of their own: no script, coloured by `charts.css`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from eval.report.contents import Contents, Figures, Table, interval, leading, percent

_WIDTH, _HEIGHT = 520, 230
_LEFT, _RIGHT, _TOP, _FOOT = 44, 12, 10, 30
_NUM_COLOURS, _LETTER_PX = 6, 12
_LINE_PX = 20
"""Of a file's title, and of each name below its chart."""
_MANY = 100_000
"""From here on steps are written in thousands or millions."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One run with one kind of features."""

    name: str
    rows: list[Figures]
    """By ascending step."""


@dataclass(frozen=True, kw_only=True)
class _Axes:
    """A straight way from steps and shares to places in the picture."""

    first: float
    last: float
    low: float
    high: float

    def x(self, step: float) -> float:
        return _LEFT + 6 + (step - self.first) / (self.last - self.first) * (_WIDTH - _RIGHT - _LEFT - 12)

    def y(self, share: float) -> float:
        return _HEIGHT - _FOOT - (share - self.low) / (self.high - self.low) * (_HEIGHT - _FOOT - _TOP)


def charts_style() -> str:
    """Return the style sheet of charts, with the colours of the page."""
    return files("eval.report").joinpath("charts.css").read_text(encoding="utf-8")


def step_charts(contents: Contents) -> str:
    """Return a chart of each leading protocol on each data set in which a run has two steps or more, as HTML."""
    figures = [_figure(*chart) for chart in _charts(contents)]
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def chart_files(contents: Contents) -> dict[str, str]:
    """Return the same charts, each as an SVG file that stands alone, by "DATA-PROTOCOL"."""
    return {f"{chart[0].data}-{chart[0].protocol}": _file(*chart) for chart in _charts(contents)}


def _charts(contents: Contents) -> Iterator[tuple[Table, list[Series], list[Figures]]]:
    """Yield of each chart its table, its curves and the rows of its floors."""
    tasks = dict.fromkeys(each.task for each in contents.tables)
    tables = [each for task in tasks for each in leading([each for each in contents.tables if each.task == task])]
    for each in tables:
        if found := series(contents, each):
            yield each, found, [row for model, row in each.chosen().items() if model in contents.floors]


def series(contents: Contents, each: Table) -> list[Series]:
    """Return the runs of a table with at least two steps; past six curves only the chosen features of each run."""
    found: dict[tuple[str, str], list[Figures]] = {}
    for row in each.rows:
        if row["model"] in contents.runs and row.get("step") is not None:
            found.setdefault((contents.runs[row["model"]], row["features"]), []).append(row)
    several = {key: rows for key, rows in found.items() if len({row["step"] for row in rows}) > 1}
    if len(several) > _NUM_COLOURS:
        by_step = sorted(each.chosen().values(), key=lambda row: row.get("step") or 0)
        last = {contents.runs.get(row["model"]): row for row in by_step}
        several = {key: rows for key, rows in several.items() if last[key[0]]["features"] == key[1]}
    return [
        Series(name=f"{run}, {features}", rows=sorted(rows, key=lambda row: row["step"]))
        for (run, features), rows in sorted(several.items())
    ]


def _figure(each: Table, found: Sequence[Series], levels: Sequence[Figures]) -> str:
    title = f"{each.data}: {each.title}"
    keys = "".join(
        f'<span class="key"><i class="key{place % _NUM_COLOURS}"></i>{escape(one.name)}</span>'
        for place, one in enumerate(found)
    )
    return (
        f"<figure><figcaption>{escape(title)} <small>{escape(each.metric)}, %</small></figcaption>"
        f"{step_chart(title, found, levels)}<p>{keys}</p></figure>"
    )


def _file(each: Table, found: Sequence[Series], levels: Sequence[Figures]) -> str:
    title, height = f"{each.data}: {each.title}", _HEIGHT + _LINE_PX * (1 + len(found))
    keys = "".join(
        f'<circle class="dot{place % _NUM_COLOURS}" cx="{_LEFT + 4}" cy="{y - 4}" r="3.5"/>'
        f'<text class="name" x="{_LEFT + 14}" y="{y}">{escape(one.name)}</text>'
        for place, one in enumerate(found)
        for y in [_LINE_PX * (2 + place) + _HEIGHT - 8]
    )
    # Without a size of its own the inner picture would fill the outer one.
    chart = step_chart(title, found, levels).replace("<svg ", f'<svg y="{_LINE_PX}" height="{_HEIGHT}" ', 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" class="charts" '
        f'font-family="system-ui, sans-serif"><title>{escape(title)}</title><style>{charts_style()}</style>'
        f'<rect class="sheet" width="100%" height="100%"/>'
        f'<text class="name" x="{_LEFT}" y="{_LINE_PX - 4}">{escape(title)}: {escape(each.metric)}, %, by step</text>'
        f"{chart}{keys}</svg>\n"
    )


def step_chart(title: str, found: Sequence[Series], levels: Sequence[Figures]) -> str:
    """Return a chart: a line of each run, its intervals as a band, floors as broken lines.

    Args:
        title: for those who cannot see it.
        found: one at least.
        levels: rows of floors.
    """
    axes = _axes(found, levels)
    parts = [_grid(axes), _levels(levels, axes)]
    parts += [_curve(one, place % _NUM_COLOURS, axes) for place, one in enumerate(found)]
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def _axes(found: Sequence[Series], levels: Sequence[Figures]) -> _Axes:
    rows = [row for one in found for row in one.rows]
    low = min([row["low"] for row in rows] + [row["value"] for row in levels])
    high = max([row["high"] for row in rows] + [row["value"] for row in levels])
    margin = max(0.05 * (high - low), 0.005)
    steps = [row["step"] for row in rows]
    return _Axes(
        first=min(steps), last=max(steps), low=max(0.0, low - margin), high=min(1.0, high + margin) + 1e-9
    )  # fmt: skip


def _grid(axes: _Axes) -> str:
    unit = next(unit for unit in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if (axes.high - axes.low) / unit <= 6)
    base, parts = _HEIGHT - _FOOT, []
    for number in range(round(axes.low / unit + 0.499), int(axes.high / unit) + 1):
        y = axes.y(number * unit)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * number * unit:.0f}</text>'
        )
    parts.append(f'<path class="edge" d="M{_LEFT} {base + 0.5}H{_WIDTH - _RIGHT}"/>')
    for step in _step_ticks(axes.first, axes.last):
        x = axes.x(step)
        anchor = "end" if x > _WIDTH - _RIGHT - 20 else "middle"
        parts.append(f'<path class="edge" d="M{x:.1f} {base}v4"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 17}" text-anchor="{anchor}">{_step(step)}</text>')
    return "".join(parts)


def _step_ticks(first: float, last: float) -> list[int]:
    span, unit = last - first, 1
    while span / unit > 6:
        # 1, 2, 5, 10, 20, 50, …
        unit = unit * 5 // 2 if str(unit)[0] == "2" else unit * 2
    start = -int(-first // unit) * unit
    return list(range(int(start), int(last) + 1, unit))


def _step(step: int) -> str:
    if step < _MANY:
        return f"{step:,}"
    return f"{step / 1e6:g} M" if step >= 1_000_000 else f"{step / 1e3:g} k"


def _levels(rows: Sequence[Figures], axes: _Axes) -> str:
    """Return a broken line for each floor, its name above it, moved where names would lie on each other."""
    parts, last = [], _HEIGHT - _FOOT + 8.0
    for row in sorted(rows, key=lambda row: row["value"]):
        y = axes.y(row["value"])
        last = min(last - _LETTER_PX, y - 4)
        name = escape(row["model"].removeprefix("floor:").partition("=")[0])
        parts.append(f'<path class="level" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="tick" x="{_WIDTH - _RIGHT}" y="{last:.1f}" text-anchor="end">{name}</text>')
    return "".join(parts)


def _curve(one: Series, colour: int, axes: _Axes) -> str:
    places = [axes.x(row["step"]) for row in one.rows]
    there, low, high = (
        [f"{x:.1f} {axes.y(row[name]):.1f}" for x, row in zip(places, one.rows, strict=True)]
        for name in ("value", "low", "high")
    )
    dots = "".join(
        f'<circle class="dot{colour}" cx="{x:.1f}" cy="{axes.y(row["value"]):.1f}" r="3.5"><title>'
        f"{escape(one.name)}, step {row['step']:,}: {percent(row['value'])} ({interval(row)})</title></circle>"
        for x, row in zip(places, one.rows, strict=True)
    )
    return (
        f'<path class="band band{colour}" d="M{"L".join(low)}L{"L".join(high[::-1])}Z"/>'
        f'<path class="curve curve{colour}" d="M{"L".join(there)}"/>{dots}'
    )
