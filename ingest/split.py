"""Which part of the dataset a tile belongs to: cells of the ground are dealt out to train, val and test.

The grid has rows of equal height in latitude and, in each row, columns of equal width in longitude, as many as make
the cells about square (as in Major TOM, arXiv 2402.12095). Every cell is dealt out by a hash of the seed and its
name, so a split does not depend on what else is in the dataset, and a later version keeps it. A tile that touches
cells of different splits is `border`: so two tiles that share ground are never one in train and the other in test.

Cost: 10–15 µs per tile; what a cell was dealt is remembered.
"""

import functools
import math

import numpy as np
from numpy.typing import NDArray

from ingest.config import Recipe
from shards.keyed import hash64

_CIRCUMFERENCE_KM = 2 * math.pi * 6371.0088  # of a sphere with the mean Earth radius, IUGG


def cell_name(lon: float, lat: float, cell_km: float) -> str:
    """Return the name of the cell that holds a point, as r<row>c<column>, counted from the south pole and 180° W.

    Args:
        lon: degrees, of any turn.
        lat: degrees, −90…90.
        cell_km: side of a cell, kilometres.
    """
    row = _row(lat, cell_km)
    return _name(row, _column(_east(lon), _num_columns(row, cell_km)))


def split_of(corners_lonlat: NDArray[np.float64] | None, scene_id: str, recipe: Recipe) -> tuple[str | None, str]:
    """Return (cell, split) of a tile: its centre's cell, and train, val, test or border.

    Args:
        corners_lonlat: points [P, 2] around the tile, degrees WGS 84, at least the 4 corners. The box around them
            counts as touched; with the middles of the edges it holds the curved edges of large tiles too. None, or a
            point that is not finite: no place, the scene's id decides and the cell is None.
        scene_id: of the tile's scene.
        recipe: seed, val_share, test_share and split_cell_km count.
    """
    deal = recipe.seed, recipe.val_share, recipe.test_share
    if corners_lonlat is None or not np.isfinite(corners_lonlat).all():
        return None, _dealt(scene_id, *deal)
    lons, lats = np.asarray(corners_lonlat, np.float64).T.tolist()
    west, width = _arc([_east(lon) for lon in lons])
    south, north = min(lats), max(lats)
    cell = cell_name(west + width / 2, (south + north) / 2, recipe.split_cell_km)
    if recipe.val_share == recipe.test_share == 0:
        return cell, "train"
    if width >= 180:  # no tile is that wide but around a pole: every longitude counts, up to the pole
        west, width = -180.0, 360.0
        south, north = (south, 90.0) if north > -south else (-90.0, north)
    return cell, _common(south, north, west, width, recipe.split_cell_km, deal)


def _common(
    south: float, north: float, west: float, width: float, cell_km: float, deal: tuple[int, float, float]
) -> str:
    """Return the one split of all cells that a box touches, or border."""
    found = None
    # A box that ends on a cell's edge does not touch the cell beyond.
    last_row = max(_row(south, cell_km), math.ceil(_rows(north, cell_km)) - 1)
    for row in range(_row(south, cell_km), last_row + 1):
        columns = _num_columns(row, cell_km)
        first = _column(west, columns)
        last = max(first, math.ceil((west + width + 180) / 360 * columns) - 1)
        for column in range(first, min(last, first + columns - 1) + 1):
            split = _dealt(_name(row, column % columns), *deal)
            if found not in (None, split):
                return "border"
            found = split
    assert found is not None
    return found


@functools.lru_cache(maxsize=2**16)
def _dealt(name: str, seed: int, val_share: float, test_share: float) -> str:
    drawn = hash64("split", seed, name) / 2**64
    if drawn < val_share:
        return "val"
    return "test" if drawn < val_share + test_share else "train"


def _name(row: int, column: int) -> str:
    return f"r{row:05d}c{column:05d}"


def _east(lon: float) -> float:
    """Return the longitude within −180…180 (excluded)."""
    turned = (lon + 180) % 360 - 180
    return turned if turned < 180 else -180.0  # a tiny negative remainder rounds up to 360


def _arc(lons: list[float]) -> tuple[float, float]:
    """Return (west end, width) of the shortest arc that holds all longitudes, degrees."""
    ordered = sorted(lons)
    gaps = [after - before for before, after in zip(ordered, [*ordered[1:], ordered[0] + 360], strict=True)]
    widest = max(range(len(gaps)), key=gaps.__getitem__)
    return ordered[(widest + 1) % len(ordered)], 360 - gaps[widest]


def _num_rows(cell_km: float) -> int:
    return max(1, math.ceil(_CIRCUMFERENCE_KM / 2 / cell_km))


def _rows(lat: float, cell_km: float) -> float:
    return min(max((lat + 90) / 180, 0.0), 1.0) * _num_rows(cell_km)


def _row(lat: float, cell_km: float) -> int:
    return min(int(_rows(lat, cell_km)), _num_rows(cell_km) - 1)


@functools.lru_cache(maxsize=2**16)
def _num_columns(row: int, cell_km: float) -> int:
    middle = (row + 0.5) / _num_rows(cell_km) * 180 - 90
    # Rounded, so that the last bit of another mathematical library cannot change the grid.
    return max(1, math.ceil(round(_CIRCUMFERENCE_KM * math.cos(math.radians(middle)) / cell_km, 6)))


def _column(lon: float, columns: int) -> int:
    return min(int((lon + 180) / 360 * columns), columns - 1)
