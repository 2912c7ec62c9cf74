"""Line charts as inline SVG, coloured by the page's classes; and the thinning that keeps long runs small.

A curve of n rows costs at most `MAX_POINTS` points, about 25 kB with its band.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from pretrain.pages.figures import scaled

MAX_POINTS = 500
"""Of a curve: about one for each pixel of a chart's width."""

Floats = NDArray[np.float64]

_WIDTH, _HEIGHT = 520, 220
_LEFT, _RIGHT, _TOP, _FOOT = 56, 10, 8, 34
_NUM_REACHES = 60
"""Strips that tell their values under the pointer."""
_LOG_SPAN = 30.0
_MANY = 100_000
"""From here on, steps are written in thousands or millions."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One figure over the steps; where several rows are one point, the lowest and highest of them."""

    name: str
    steps: Floats
    mean: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A straight way from values to places."""

    low: float
    high: float
    from_px: float
    to_px: float
    is_log: bool = False

    def __call__(self, values: Floats) -> Floats:
        """Return the places of values."""
        if self.is_log:
            shares = np.log(values / self.low) / math.log(self.high / self.low)
        else:
            shares = (values - self.low) / (self.high - self.low)
        places: Floats = self.from_px + shares * (self.to_px - self.from_px)
        return places

    def at(self, value: float) -> float:
        """Return the place of one value."""
        return float(self(np.array(value)))


def thin(name: str, steps: Sequence[float], values: Sequence[float], max_points: int = MAX_POINTS) -> Curve:
    """Return a curve of at most so many points.

    Args:
        name: of the figure.
        steps: ascending, one at least.
        values: finite, one for each step.
        max_points: bins of equal width in steps; a bin's point is the mean of its rows, at their mean step.
    """
    x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    if len(x) <= max_points:
        return Curve(name=name, steps=x, mean=y, low=y, high=y)
    bins = np.minimum((x - x[0]) / (x[-1] - x[0]) * max_points, max_points - 1).astype(np.int64)
    starts = np.flatnonzero(np.diff(bins, prepend=-1))
    counts = np.diff(starts, append=len(x))
    return Curve(
        name=name,
        steps=np.add.reduceat(x, starts) / counts,
        mean=np.add.reduceat(y, starts) / counts,
        low=np.minimum.reduceat(y, starts),
        high=np.maximum.reduceat(y, starts),
    )


def nice_ticks(low: float, high: float, at_most: int) -> list[float]:
    """Return round numbers within low…high: multiples of 1, 2 or 5 times a power of ten, two at least."""
    power = 10.0 ** math.floor(math.log10((high - low) / at_most))
    for factor in (1, 2, 5, 10, 20, 50):
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < at_most:
            break
    return [number * step for number in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in (1, 3)]
    return [tick for tick in ticks if low <= tick <= high]


def line_chart(
    title: str,
    curves: Sequence[Curve],
    span: tuple[float, float],
    *,
    epoch_at: Callable[[float], float] | None = None,
    told: Callable[[str, float], str],
    limit: tuple[str, float] | None = None,
    may_be_log: bool = False,
    across: str = "step",
) -> str:
    """Return a chart of curves over the steps.

    Args:
        title: for those who cannot see it.
        curves: one to four, none of them empty.
        span: first and last step of the axis.
        epoch_at: the epoch of a step, written below it.
        told: a figure with its unit, from its name and value.
        limit: name and value of a horizontal line.
        may_be_log: logarithmic where the values are positive and span much.
        across: what the steps are, if they are none.
    """
    x, y = _across(*span), _upwards(curves, limit, may_be_log)
    name = curves[0].name
    parts = [_rows(y, lambda value: told(name, value)), _columns(x, across, epoch_at)]
    if limit:
        place = y.at(limit[1])
        parts.append(f'<path class="limit" d="M{_LEFT} {place:.1f}H{_WIDTH - _RIGHT}"/>')
        # Below the line where it runs along the top.
        below = place + (13 if place < _TOP + 14 else -5)
        parts.append(
            f'<text class="tick" x="{_WIDTH - _RIGHT}" y="{below:.1f}" text-anchor="end">{escape(limit[0])}</text>'
        )
    parts += [_drawn(curve, number, x, y) for number, curve in enumerate(curves)]
    parts.append(_reaches(curves, x, across, told))
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def _across(first: float, last: float) -> Scale:
    if first == last:
        first, last = first - 0.5, last + 0.5
    return Scale(low=first, high=last, from_px=_LEFT + 4, to_px=_WIDTH - _RIGHT)


def _upwards(curves: Sequence[Curve], limit: tuple[str, float] | None, may_be_log: bool) -> Scale:
    low, high = min(float(curve.low.min()) for curve in curves), max(float(curve.high.max()) for curve in curves)
    if limit:
        low, high = min(low, limit[1]), max(high, limit[1])
    is_log = may_be_log and low > 0 and high / low > _LOG_SPAN
    if is_log:
        low, high = low / 1.1, high * 1.1
    else:
        margin = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
        # Figures that are never negative get no room below 0.
        low, high = (max(0.0, low - margin) if low >= 0 else low - margin), high + margin
    return Scale(low=low, high=high, from_px=_HEIGHT - _FOOT, to_px=_TOP, is_log=is_log)


def _rows(y: Scale, told: Callable[[float], str]) -> str:
    ticks = _log_ticks(y.low, y.high) if y.is_log else nice_ticks(y.low, y.high, 5)
    return "".join(
        f'<path class="grid" d="M{_LEFT} {y.at(tick):.1f}H{_WIDTH - _RIGHT}"/>'
        f'<text class="tick" x="{_LEFT - 6}" y="{y.at(tick) + 4:.1f}" text-anchor="end">{escape(told(tick))}</text>'
        for tick in ticks
    )


def _columns(x: Scale, across: str, epoch_at: Callable[[float], float] | None) -> str:
    base = _HEIGHT - _FOOT
    # Steps are whole; a short run has fewer of them than ticks.
    ticks = [tick for tick in nice_ticks(x.low, x.high, 6) if tick == round(tick)]
    lines = [(15, across, [f"{scaled(tick, 4)}" if tick >= _MANY else f"{tick:,.0f}" for tick in ticks])]
    if epoch_at:
        lines.append((29, "epoch", [f"{epoch_at(tick):.3g}" for tick in ticks]))
    parts = [f'<path class="edge" d="M{_LEFT} {base + 0.5}H{_WIDTH - _RIGHT}"/>']
    for down, name, texts in lines:
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{base + down}" text-anchor="end">{name}</text>')
        for tick, text in zip(ticks, texts, strict=True):
            place = x.at(tick)
            anchor = "end" if place > _WIDTH - _RIGHT - 16 else "start" if place < _LEFT + 16 else "middle"
            parts.append(f'<text class="tick" x="{place:.1f}" y="{base + down}" text-anchor="{anchor}">{text}</text>')
    return "".join([*parts, *[f'<path class="edge" d="M{x.at(tick):.1f} {base}v4"/>' for tick in ticks]])


def _drawn(curve: Curve, number: int, x: Scale, y: Scale) -> str:
    places = x(curve.steps)
    if len(places) == 1:
        return f'<circle class="dot{number}" cx="{places[0]:.1f}" cy="{y.at(float(curve.mean[0])):.1f}" r="4"/>'
    line = f'<path class="curve curve{number}" d="M{_joined(places, y(curve.mean))}"/>'
    if np.array_equal(curve.low, curve.high):
        return line
    there, back = _joined(places, y(curve.low)), _joined(places[::-1], y(curve.high)[::-1])
    return f'<path class="band band{number}" d="M{there}L{back}Z"/>{line}'


def _joined(x: Floats, y: Floats) -> str:
    return "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def _reaches(curves: Sequence[Curve], x: Scale, across: str, told: Callable[[str, float], str]) -> str:
    """Return strips that cover the chart and tell what the curves are where the pointer is."""
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    steps = steps[np.linspace(0, len(steps) - 1, min(len(steps), _NUM_REACHES)).round().astype(int)]
    places = x(steps)
    edges = np.concatenate([[_LEFT], (places[1:] + places[:-1]) / 2, [_WIDTH - _RIGHT]])
    parts = []
    for step, left, right in zip(steps, edges[:-1], edges[1:], strict=True):
        texts = ", ".join(f"{curve.name} {told(curve.name, _nearest(curve, step))}" for curve in curves)
        parts.append(
            f'<rect class="reach" x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" '
            f'height="{_HEIGHT - _FOOT - _TOP}"><title>{escape(f"{across} {step:,.0f}: {texts}")}</title></rect>'
        )
    return "".join(parts)


def _nearest(curve: Curve, step: float) -> float:
    return float(curve.mean[np.abs(curve.steps - step).argmin()])
