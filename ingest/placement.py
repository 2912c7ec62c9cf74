"""Where tiles lie on the ground: transform, bounds, centre, split. Runs inside the decoder process.

Cost: one call to PROJ for a row of tiles.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest import raster
from ingest.config import Recipe
from ingest.split import split_of

# Around a tile, in shares of its side: corners and middles of the edges; last its centre.
_AROUND = np.array([[0, 0], [0.5, 0], [1, 0], [1, 0.5], [1, 1], [0.5, 1], [0, 1], [0, 0.5], [0.5, 0.5]])


@dataclass(frozen=True, kw_only=True)
class Ground:
    """The grid that tiles are cut from, on the ground."""

    crs: str | None
    transform: tuple[float, ...] | None
    """Grid pixel to CRS: a, b, c, d, e, f; None: no georeference."""
    gsd_m: float | None


def place_tiles(
    ground: Ground, xs: Sequence[int], y: int, side: int, scene: Mapping[str, Any], recipe: Recipe
) -> dict[int, dict[str, Any]]:
    """Return crs, transform, bounds, lon, lat, gsd_m, cell and split of the tiles of a row, by their x.

    Args:
        ground: the grid.
        xs: left edges, grid pixels.
        y: upper edge.
        side: of a tile, pixels.
        scene: its id counts where there is no place.
        recipe: decides the split.
    """
    lonlats = _lonlats(ground, xs, y, side)
    return {
        x: {
            "crs": ground.crs,
            "gsd_m": ground.gsd_m,
            **_on_grid(ground.transform, x, y, side),
            **_on_earth(None if lonlats is None else lonlats[place], str(scene["scene"]), recipe),
        }
        for place, x in enumerate(xs)
    }


def _on_grid(transform: tuple[float, ...] | None, x: int, y: int, side: int) -> dict[str, Any]:
    if transform is None:
        return {"transform": None, "bounds": None}
    a, b, c, d, e, f = transform
    corners = np.array([[x, x + side, x, x + side], [y, y, y + side, y + side]], np.float64)
    east, north = a * corners[0] + b * corners[1] + c, d * corners[0] + e * corners[1] + f
    return {
        "transform": [a, b, a * x + b * y + c, d, e, d * x + e * y + f],
        "bounds": [float(east.min()), float(north.min()), float(east.max()), float(north.max())],
    }


def _lonlats(ground: Ground, xs: Sequence[int], y: int, side: int) -> NDArray[np.float64] | None:
    """Return degrees [tiles, 9, 2] around each tile and at its centre; None without CRS."""
    if ground.crs is None or ground.transform is None:
        return None
    a, b, c, d, e, f = ground.transform
    pixels = np.array([[x, y] for x in xs], np.float64)[:, None] + _AROUND * side
    east = a * pixels[..., 0] + b * pixels[..., 1] + c
    north = d * pixels[..., 0] + e * pixels[..., 1] + f
    return raster.lonlat(ground.crs, east.ravel(), north.ravel()).T.reshape(len(xs), len(_AROUND), 2)


def _on_earth(around: NDArray[np.float64] | None, scene: str, recipe: Recipe) -> dict[str, Any]:
    if around is None or np.isnan(around[-1]).any():
        cell, split = split_of(None, scene, recipe)
        return {"lon": None, "lat": None, "cell": cell, "split": split}
    lon, lat = around[-1].tolist()
    cell, split = split_of(around, scene, recipe)
    # Seven decimals are a centimetre: enough, and safe from the last bits of another PROJ build.
    return {"lon": round(lon, 7), "lat": round(lat, 7), "cell": cell, "split": split}
