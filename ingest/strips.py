"""Rows of a scene's grid on their way to tiles: strips of source values, joined, averaged and normalised.

Pure functions of arrays. Shapes: C bands, H × W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ingest.config import Recipe
from ingest.pixels import Scaling, clear, downsample, policy, scale, shift
from ingest.scene import Strip


class Tile(NamedTuple):
    """One tile before encoding."""

    x: int
    """Left edge in grid pixels."""
    y: int
    pixels_CHW: NDArray[Any]
    valid_HW: NDArray[np.bool_] | None
    """None: all."""
    clipped_share: float
    cloud_share: float | None


@dataclass(frozen=True)
class Rows:
    """Finished rows of the grid, from row `top` and column `left` on: values as tiles hold them."""

    top: int
    left: int
    pixels_CHW: NDArray[Any]
    valid_HW: NDArray[np.bool_] | None
    clipped_HW: NDArray[np.bool_] | None
    cloudy_HW: NDArray[np.bool_] | None

    @property
    def bottom(self) -> int:
        """First grid row below."""
        return self.top + len(self.pixels_CHW[0])

    def from_row(self, row: int) -> "Rows | None":
        """Return the rows from a grid row on; None if none are left."""
        skip = max(0, row - self.top)
        if skip >= self.pixels_CHW.shape[1]:
            return None
        planes = (self.valid_HW, self.clipped_HW, self.cloudy_HW)
        rest = [None if plane is None else plane[skip:] for plane in planes]
        return Rows(self.top + skip, self.left, self.pixels_CHW[:, skip:], *rest)

    def tile(self, x: int, y: int, side: int) -> Tile:
        """Cut the tile at grid pixel (x, y), padded with pixels without data beyond the rows and columns there are."""
        here = np.s_[y - self.top : y - self.top + side, x - self.left : x - self.left + side]
        pixels = self.pixels_CHW[:, *here]
        valid = None if self.valid_HW is None else self.valid_HW[here]
        missing = side - pixels.shape[1], side - pixels.shape[2]
        if any(missing):
            valid = np.ones(pixels.shape[1:], np.bool_) if valid is None else valid
            below, right = ((0, count) for count in missing)
            pixels, valid = np.pad(pixels, [(0, 0), below, right]), np.pad(valid, [below, right])
        num_valid = side * side if valid is None else int(np.count_nonzero(valid))
        clipped = 0 if self.clipped_HW is None else int(np.count_nonzero(self.clipped_HW[here]))
        cloudy = None if self.cloudy_HW is None else float(np.count_nonzero(self.cloudy_HW[here])) / side**2
        return Tile(x, y, pixels, valid, clipped / max(num_valid, 1), cloudy)


def rows_of(strip: Strip, rows: slice) -> Strip:
    """Return rows of a strip, without a copy."""
    planes = (strip.valid_HW, strip.cloudy_HW)
    return Strip(strip.values_CHW[:, rows], *(None if plane is None else plane[rows] for plane in planes))


def stacked(strips: Sequence[Strip]) -> Strip:
    """Return strips of one width on top of each other."""
    values = np.concatenate([strip.values_CHW for strip in strips], axis=1)
    valid, cloudy = None, None
    if any(strip.valid_HW is not None for strip in strips):
        valid = np.concatenate([_known(strip) for strip in strips])
    if strips[0].cloudy_HW is not None:
        cloudy = np.concatenate([strip.cloudy_HW for strip in strips])
    return Strip(values, valid, cloudy)


def _known(strip: Strip) -> NDArray[np.bool_]:
    return np.ones(strip.values_CHW.shape[1:], np.bool_) if strip.valid_HW is None else strip.valid_HW


def averaged(strip: Strip, factor: int) -> Strip:
    """Return a strip of a grid `factor` times coarser, see `downsample`; cloudy is what is so in at least one half."""
    values, valid = downsample(strip.values_CHW, _known(strip), factor)
    if strip.cloudy_HW is None:
        return Strip(values, valid, None)
    height, width = values.shape[1:]
    cloudy = strip.cloudy_HW.reshape(height, factor, width, factor).sum(axis=(1, 3)) * 2 >= factor**2
    return Strip(values, valid, cloudy)


def finished(strip: Strip, left: int, top: int, unit: Mapping[str, Any], recipe: Recipe) -> Rows:
    """Normalise a strip: source values become tile values, pixels without data become 0."""
    values, valid, cloudy = strip
    clipped = None
    offset = recipe.offset if unit["offset"] is None else unit["offset"]
    chosen = policy(recipe, unit["dtype"])
    if chosen in ("linear", "percentile"):
        scaling = Scaling(low=tuple(unit["low"]), high=tuple(unit["high"]))
        if chosen == "linear":
            scaling = replace(scaling, offset=offset, scale=recipe.scale)
        values, clipped = scale(values, scaling)
    elif chosen == "keep" and offset:
        values = shift(values, offset, recipe.dtype)
    if valid is not None:
        values = clear(values, valid)
        clipped = None if clipped is None else clipped & valid
    return Rows(top, left, values, valid, clipped, cloudy)


def joined(upper: Rows | None, lower: Rows) -> Rows:
    """Return rows with those below them."""
    if upper is None:
        return lower
    valid = _plane(upper, lower, upper.valid_HW, lower.valid_HW, default=True)
    clipped = _plane(upper, lower, upper.clipped_HW, lower.clipped_HW, default=False)
    cloudy = _plane(upper, lower, upper.cloudy_HW, lower.cloudy_HW, default=False)
    pixels = np.concatenate([upper.pixels_CHW, lower.pixels_CHW], axis=1)
    return Rows(upper.top, upper.left, pixels, valid, clipped, cloudy)


def _plane(
    upper: Rows, lower: Rows, above: NDArray[np.bool_] | None, below: NDArray[np.bool_] | None, *, default: bool
) -> NDArray[np.bool_] | None:
    """Return two masks on top of each other, where one may be None: all `default`."""
    if above is None and below is None:
        return None
    shapes = [rows.pixels_CHW.shape[1:] for rows in (upper, lower)]
    parts = [
        np.full(shape, default) if part is None else part for shape, part in zip(shapes, (above, below), strict=True)
    ]
    return np.concatenate(parts)
