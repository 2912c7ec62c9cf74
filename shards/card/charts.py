"""Histograms as inline SVG: no script, a few kB each, coloured by the page's classes bar, edge and tick."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT, _FOOT = 320, 132, 18


@dataclass(frozen=True, kw_only=True)
class Axis:
    """How the bins of a histogram are named and which of them it shows."""

    name: Callable[[int], str]
    """The lower edge of a bin, as text."""
    first: int | None = None
    """The first and last bin to show; None: those that are filled, and some around."""
    last: int | None = None
    least: int | None = None
    """No bin below is ever shown."""
    merges: tuple[int, ...] = (1,)
    """Neighbouring bins that may be drawn as one, ascending; the first that leaves up to 60 bars is taken, if none does
    a multiple of the last."""
    discrete: bool = False
    """A bin is a value of its own: its name stands below the bar, not at its left edge."""


def histogram(title: str, bins: Mapping[int, int], axis: Axis) -> str:
    """Return a bar chart of bin counts; every filled bin shows at least one pixel."""
    first, last, merge = _range(bins, axis)
    counts = [sum(bins.get(place + inner, 0) for inner in range(merge)) for place in range(first, last + 1, merge)]
    step, top = _WIDTH / len(counts), max([*counts, 1])
    bars = []
    for place, count in enumerate(counts):
        height = max(1.0, (_HEIGHT - _FOOT - 14) * count / top)
        start = first + place * merge
        told = axis.name(start) if axis.discrete else f"{axis.name(start)} … {axis.name(start + merge)}"
        bars.append(
            f'<rect class="bar" x="{place * step:.1f}" y="{_HEIGHT - _FOOT - height:.1f}" width="{step * 0.9:.1f}" '
            f'height="{height:.1f}"><title>{escape(told)}: {count:,}</title></rect>'
            if count
            else ""
        )
    base = _HEIGHT - _FOOT
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'<path class="edge" d="M0 {base + 0.5}H{_WIDTH}"/><text class="tick" x="0" y="10">{top:,}</text>'
        f"{''.join(bars)}{_ticks(first, merge, len(counts), axis)}</svg>"
    )


def _range(bins: Mapping[int, int], axis: Axis) -> tuple[int, int, int]:
    """Return the first and last bin to show and how many make one bar."""
    if axis.first is not None and axis.last is not None:
        return axis.first, axis.last, 1
    first, last = min(bins), max(bins)
    merge = next((m for m in axis.merges if (last - first) // m < 60), axis.merges[-1])
    while (last - first) // merge >= 60:  # a date or a size that is a placeholder
        merge *= 2
    first, last = first // merge * merge, last // merge * merge
    short = max(0, 12 - (last - first) // merge - 1)
    start = first - short // 2 * merge
    start = start if axis.least is None else max(start, axis.least)
    return start, last + (short - (first - start) // merge) * merge, merge


def _ticks(first: int, merge: int, num_bars: int, axis: Axis) -> str:
    step = _WIDTH / num_bars
    every = next(n for n in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 48) if num_bars / n <= 5)  # of at most 60
    parts = []
    for place in range(0, num_bars + (not axis.discrete), every):
        x = step * (place + 0.45 * axis.discrete)
        anchor = "middle"
        if not 20 <= x <= _WIDTH - 20:
            x, anchor = (0, "start") if x < 20 else (_WIDTH, "end")
        text = escape(axis.name(first + place * merge))
        parts.append(f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - 4}" text-anchor="{anchor}">{text}</text>')
    return "".join(parts)
