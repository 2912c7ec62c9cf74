"""Maps as inline SVG: no script, no tiles from a server, coloured by the page's classes.

The classes: sea, land, line, tick, edge, dot, heat0…heat4. Sizes are bounded by the count of cells drawn, not by
the tiles they stand for.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.card.survey import CELLS_PER_DEGREE, Places
from shards.card.world import LAND, WATER, Ring

_MAX_CELLS = 2000
_SHADES = 5
_LAND_LEGIBLE_DEG = 8.0
_SCATTERED_DEG = 120.0
_LEVEL_2_DEG, _LEVEL_8_DEG = 13, 15
_STEPS_DEG = (30, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
_KM_PER_DEGREE = 111.32


def world_map(places: Places) -> str:
    """Return the whole Earth in plate carrée with a dot for each 2° × 2° that holds tiles, larger for more."""
    coarse = places.coarser(_LEVEL_2_DEG)
    lon, lat, side = coarse.cells()
    shades = _shades(coarse.counts)
    dots = []
    for shade in range(_SHADES):
        mine = shades == shade
        # A line of no length with round ends is a dot: one element for all dots of a size.
        path = "".join(f"M{x:.6g} {-y:.6g}h0" for x, y in zip(lon[mine] + side / 2, lat[mine] + side / 2, strict=True))
        dots.append(f'<path class="dot" stroke-width="{4 + 1.5 * shade:.1f}" d="{path}"/>' if path else "")
    lines = "".join(f"M{lon} -90V90" for lon in range(-150, 180, 30)) + "".join(
        f"M-180 {lat}H180" for lat in range(-60, 90, 30)
    )
    return (
        '<svg class="map" viewBox="-180 -90 360 180" role="img" aria-label="World map of the tiles">'
        f'<defs><g id="world"><path class="land" d="{_outline(LAND)}"/>'
        f'<path class="sea" d="{_outline(WATER)}"/></g></defs>'
        '<rect class="sea" x="-180" y="-90" width="360" height="180"/><use href="#world"/>'
        f'<path class="line" d="{lines}"/>{"".join(dots)}</svg>'
    )


def _outline(rings: tuple[Ring, ...]) -> str:
    """Return path data in degrees, y downwards."""
    return "".join("M" + "L".join(f"{lon:g} {-lat:g}" for lon, lat in ring) + "Z" for ring in rings)


def _shades(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Grade counts from 0 to 4 by their logarithm, the largest always 4."""
    top = int(counts.max(initial=1))
    if top == 1:
        return np.full(len(counts), _SHADES - 1)
    return np.minimum(_SHADES - 1, np.log(counts) / math.log(top) * _SHADES).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class _View:
    """A rectangle of the Earth, degrees, and its scale; east may lie beyond 180."""

    west: float
    south: float
    east: float
    north: float
    width: int
    """Of the picture, pixels."""

    @property
    def scale_x(self) -> float:
        """Picture pixels per degree of longitude."""
        return self.width / (self.east - self.west)

    @property
    def scale_y(self) -> float:
        """Picture pixels per degree of latitude: shapes are true at the middle."""
        return self.scale_x / _shrink(self.south, self.north)

    @property
    def height(self) -> float:
        """Of the picture, pixels."""
        return self.scale_y * (self.north - self.south)

    def x(self, lon: float) -> float:
        return (lon - self.west) * self.scale_x

    def y(self, lat: float) -> float:
        return (self.north - lat) * self.scale_y


def _shrink(south: float, north: float) -> float:
    return max(0.1, math.cos(math.radians((south + north) / 2)))


def _view(places: Places, picture_px: int) -> _View:
    """Return what shows all cells, some margin, and a height of 0.3 to 0.75 of the width."""
    lon, lat, side = places.cells()
    columns = np.unique(lon)
    gaps = np.diff(np.append(columns, columns[0] + 360))
    # The widest empty stretch is where the map is cut open: data around the antimeridian stay together.
    west = float(columns[(int(np.argmax(gaps)) + 1) % len(columns)])
    width = 360 - float(gaps.max()) + side
    south, height = float(lat.min()), float(lat.max() - lat.min()) + side
    shrink = _shrink(south, south + height)
    margin = 0.08 * max(width * shrink, height, 0.02)
    wide = min(360.0, max(width + 2 * margin / shrink, (height + 2 * margin) / 0.75 / shrink))
    high = max(height + 2 * margin, 0.3 * wide * shrink)
    west, south = west + (width - wide) / 2, south + (height - high) / 2
    return _View(west=west, south=max(-90.0, south), east=west + wide, north=min(90.0, south + high), width=picture_px)


def is_scattered(places: Places) -> bool:
    """Say whether a map of the extent would be no closer look than the world map."""
    view = _view(places, 1)
    return view.east - view.west >= _SCATTERED_DEG


def close_ups(places: Places, num_maps: int = 6) -> Iterator[tuple[str, str]]:
    """Yield (caption, map) of the 8° × 8° squares with the most tiles, the fullest first."""
    squares = places.coarser(_LEVEL_8_DEG)
    lift = squares.level - places.level
    square_of = (places.codes >> 32 + lift) << 32 | (places.codes & 0xFFFFFFFF) >> lift
    for place in np.argsort(-squares.counts, kind="stable")[:num_maps]:
        inside = square_of == squares.codes[place]
        part = Places.of(places.level, places.codes[inside], places.counts[inside])
        lon, lat, side = part.cells()
        middle = (float(lat.min() + lat.max() + side) / 2, float(lon.min() + lon.max() + side) / 2)
        caption = f"{degrees(middle[0], 'NS', 0.1)} {degrees(middle[1], 'EW', 0.1)}"
        yield f"{caption}, {part.num_placed:,} tiles", extent_map(part, 320, _MAX_CELLS // num_maps)


def extent_map(places: Places, picture_px: int = 720, max_cells: int = _MAX_CELLS) -> str:
    """Return the part of the Earth where tiles lie, their density in a bounded number of cells, a grid and a scale."""
    view = _view(places, picture_px)
    # Cells of less than about five pixels would be dust.
    shown = places.coarser(math.ceil(math.log2(max(1.0, 5 / view.scale_x * CELLS_PER_DEGREE))))
    while len(shown.codes) > max_cells:
        shown = shown.coarser(shown.level + 1)
    land = "".join(
        f'<use href="#world" transform="translate({view.x(turn):.2f} {view.y(0):.2f}) '
        f'scale({view.scale_x:.4f} {view.scale_y:.4f})"/>'
        for turn in (-360, 0, 360)
        if view.east - view.west >= _LAND_LEGIBLE_DEG and turn - 180 < view.east and turn + 180 > view.west
    )
    return (
        f'<svg class="map" viewBox="0 0 {view.width} {view.height:.0f}" role="img" aria-label="Map of the tiles">'
        f'<rect class="sea" width="{view.width}" height="{view.height:.0f}"/>{land}{_cells(shown, view)}'
        f"{_graticule(view)}{_scale_bar(view)}</svg>"
    )


def _cells(places: Places, view: _View) -> str:
    lon, lat, side = places.cells()
    lon = np.where(lon + side <= view.west, lon + 360, lon)
    width, height = side * view.scale_x, side * view.scale_y
    squares = [
        f'<path class="heat{shade}" d="'
        + "".join(
            f"M{view.x(x):.1f} {view.y(y + side):.1f}h{width:.1f}v{height:.1f}h-{width:.1f}z"
            for x, y in zip(lon[mine], lat[mine], strict=True)
        )
        + '"/>'
        for shade in range(_SHADES)
        if (mine := _shades(places.counts) == shade).any()
    ]
    return "".join(squares)


def _graticule(view: _View) -> str:
    apart = max(80.0, view.width / 6)
    step = next((s for s in reversed(_STEPS_DEG) if s * view.scale_x >= apart), _STEPS_DEG[0])
    lines, texts, head = [], [], 11 if view.width < 400 else 18
    for number in range(math.ceil(view.west / step), math.floor(view.east / step) + 1):
        x, lon = view.x(number * step), (number * step + 180) % 360 - 180
        lines.append(f"M{x:.1f} 0V{view.height:.0f}")
        if 20 < x < view.width - 24:
            texts.append(f'<text class="tick" x="{x + 3:.1f}" y="{head}">{degrees(lon, "EW", step)}</text>')
    for number in range(math.ceil(view.south / step), math.floor(view.north / step) + 1):
        y = view.y(number * step)
        lines.append(f"M0 {y:.1f}H{view.width}")
        if 24 < y < view.height - 4:
            texts.append(f'<text class="tick" x="4" y="{y - 3:.1f}">{degrees(number * step, "NS", step)}</text>')
    return f'<path class="line" d="{"".join(lines)}"/>{"".join(texts)}'


def degrees(value: float, letters: str, step: float) -> str:
    """Return a longitude ("EW") or latitude ("NS") with as many decimals as its step needs."""
    text = f"{abs(value):.{max(0, math.ceil(-math.log10(step)))}f}°"
    return text if abs(value) < step / 2 or abs(value) == 180 else text + letters[value < 0]


def _scale_bar(view: _View) -> str:
    per_km = view.scale_y / _KM_PER_DEGREE
    length = next(n * 10**power for power in range(4, -4, -1) for n in (5, 2, 1) if n * 10.0**power * per_km <= 160)
    text = f"{length:,} km" if length >= 1 else f"{1000 * length:.0f} m"
    y, x = view.height - 10, view.width - 12 - length * per_km
    return (
        f'<path class="edge" d="M{x:.1f} {y - 4:.0f}v4H{view.width - 12}v-4"/>'
        f'<text class="tick" x="{view.width - 12}" y="{y - 8:.0f}" text-anchor="end">{text}</text>'
    )
