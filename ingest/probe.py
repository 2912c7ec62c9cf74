"""Look at a scene's header, and for percentile scaling at a sample of its pixels; runs inside the decoder process.

What cannot be used is rejected here, with its code, before any planning. A probe is a pure function of the files and
the recipe.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from ingest import warp
from ingest.config import Recipe
from ingest.grid import count_origins
from ingest.pixels import percentile_bounds, policy
from ingest.reasons import SceneRejectedError
from ingest.scene import Header, Scene, SceneFile, open_scene, read_header
from ingest.scene_row import time_text
from shards.keyed import permute

_SAMPLE_PX = 256
_SAMPLE_WINDOWS = 48  # at most 3.1 million pixels per band
_SIDE_FILES = (".ovr", ".msk")


def probe_scene(files: Sequence[SceneFile], scene: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Return the columns of the scenes table that only the files know, as JSON holds them.

    Args:
        files: of the scene.
        scene: columns scene, path and time of the inventory.
        recipe: decides what can be used.

    Raises:
        SceneRejectedError: the scene cannot be used.
    """
    if str(scene["path"]).lower().endswith(_SIDE_FILES):
        raise SceneRejectedError("side_file", str(scene["path"]).rsplit(".", 1)[-1])
    with open_scene(files, recipe) as source:
        header = read_header(source, files, recipe)
        grid = _grid(header, recipe)
        _require_tiles(header, grid, recipe)
        low, high = _bounds(source, header, str(scene["scene"]), recipe)
    found = asdict(header) | grid | {"low": low, "high": high}
    found["time"] = scene["time"] or (time_text(header.time) if header.time else None)
    return found


def _grid(header: Header, recipe: Recipe) -> dict[str, Any]:
    """Return the size of the grid that tiles are cut from, and how many source pixels make one of its pixels."""
    if not recipe.target_gsd_m:
        return {"factor": 1, "grid_width": header.width, "grid_height": header.height}
    if header.gsd_m is None or header.transform is None or header.crs is None:
        raise SceneRejectedError("no_place", "no CRS or no transform")
    if recipe.target_gsd_m > header.gsd_m * max(header.width, header.height):
        raise SceneRejectedError("too_small", f"lies within one pixel of {recipe.target_gsd_m} m")
    if recipe.warp_crs:
        grid = warp.target_grid(header.crs, header.transform, header.width, header.height, recipe)
        return {"factor": None, "grid_width": grid.width, "grid_height": grid.height}
    factor = max(1, round(recipe.target_gsd_m / header.gsd_m))
    return {"factor": factor, "grid_width": header.width // factor, "grid_height": header.height // factor}


def _require_tiles(header: Header, grid: Mapping[str, Any], recipe: Recipe) -> None:
    sides = np.array([grid["grid_height"], grid["grid_width"]])
    tiles = math.prod(count_origins(sides, recipe.tile_px, recipe.stride_px or recipe.tile_px, recipe.edge).tolist())
    if tiles == 0:
        size = f"{grid['grid_width']}×{grid['grid_height']}"
        raise SceneRejectedError("too_small", f"{size} px < tile of {recipe.tile_px}")
    cut_gb = tiles * recipe.tile_px**2 * len(recipe.bands) * np.dtype(header.dtype).itemsize / 1e9
    if cut_gb > recipe.max_scene_gb:
        raise SceneRejectedError("too_large", f"its tiles hold {cut_gb:.1f} GB > {recipe.max_scene_gb} GB")


def _bounds(source: Scene, header: Header, scene: str, recipe: Recipe) -> tuple[Any, Any]:
    """Return the values (low, high) per band that become 0 and 255; (None, None) without scaling."""
    chosen = policy(recipe, header.dtype)
    if chosen == "linear":
        return (recipe.low,) * len(recipe.bands), (recipe.high,) * len(recipe.bands)
    if chosen != "percentile":
        return None, None
    bounds = percentile_bounds(sample_values(source, header, scene, recipe), recipe.percentiles)
    if bounds is None:
        raise SceneRejectedError("no_data", "no valid pixel")
    return bounds


def sample_values(source: Scene, header: Header, scene: str, recipe: Recipe) -> NDArray[Any]:
    """Return valid values [C, P] from windows of 256², chosen by the scene's id; a small scene is read whole.

    If these have none, then from the first ones that do: a scene that is nearly empty is no empty one.
    """
    columns, rows = math.ceil(header.width / _SAMPLE_PX), math.ceil(header.height / _SAMPLE_PX)
    count = min(_SAMPLE_WINDOWS, columns * rows)
    chosen = np.sort(permute(np.arange(count), columns * rows, key=int(scene, 16)))
    parts = [_valid_values(source, header, place, columns, recipe) for place in chosen.tolist()]
    if not any(part.size for part in parts):
        others = np.setdiff1d(np.arange(columns * rows), chosen).tolist()
        found = (_valid_values(source, header, place, columns, recipe) for place in others)
        parts += itertools.islice((part for part in found if part.size), _SAMPLE_WINDOWS)
    return np.concatenate(parts, axis=1)


def _valid_values(source: Scene, header: Header, place: int, columns: int, recipe: Recipe) -> NDArray[Any]:
    x, y = place % columns * _SAMPLE_PX, place // columns * _SAMPLE_PX
    window = Window(x, y, min(_SAMPLE_PX, header.width - x), min(_SAMPLE_PX, header.height - y))
    strip = source.read(window, recipe)
    values = strip.values_CHW.reshape(len(strip.values_CHW), -1)
    return values if strip.valid_HW is None else values[:, strip.valid_HW.ravel()]
