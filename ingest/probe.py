"""Look at each scene's header, and for percentile scaling at a sample of its pixels.

What cannot be used is rejected here, with its code, before any planning. A probe is a pure function of the
file and the recipe; many of them make one Ray task.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rasterio.windows import Window

from ingest import raster
from ingest.config import Recipe
from ingest.grid import count_origins
from ingest.inventory import SCHEMA as INVENTORY
from ingest.pixels import percentile_bounds, policy
from ingest.reasons import SceneRejectedError
from shards import storage
from shards.keyed import permute
from shards.schema import SCENES

_SAMPLE_PX = 256
_SAMPLE_WINDOWS = 48  # at most 3.1 million pixels per band
_SIDE_FILES = (".ovr", ".msk")

SCHEMA = pa.schema(
    [*INVENTORY, *[SCENES.field(name) for name in SCENES.names if name not in INVENTORY.names]]
).remove_metadata()


def probe_scenes(root: str, scenes: Sequence[Mapping[str, Any]], recipe: Recipe) -> pa.Table:
    """Return the inventory rows with what their probes found (SCHEMA); `reason` is null where a scene can be used."""
    rows = []
    for scene in scenes:
        found: dict[str, Any]
        try:
            found = _probe(storage.child(root, str(scene["path"])), str(scene["scene"]), recipe)
        except SceneRejectedError as rejection:
            found = {"state": "rejected", "reason": rejection.code, "detail": rejection.detail}
        rows.append({**scene, **found})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _probe(url: str, scene: str, recipe: Recipe) -> dict[str, Any]:
    if url.lower().endswith(_SIDE_FILES):
        raise SceneRejectedError("side_file", url.rsplit(".", 1)[-1])
    with raster.open_scene(url, raster.sniff(url)) as source:
        header = raster.read_header(source, recipe)
        sides = np.array([header.height, header.width])
        tiles = math.prod(
            count_origins(sides, recipe.tile_px, recipe.stride_px or recipe.tile_px, recipe.edge).tolist()
        )
        if tiles == 0:
            raise SceneRejectedError("too_small", f"{header.width}×{header.height} px < tile of {recipe.tile_px}")
        cut_gb = tiles * recipe.tile_px**2 * len(recipe.bands) * np.dtype(header.dtype).itemsize / 1e9
        if cut_gb > recipe.max_scene_gb:
            raise SceneRejectedError("too_large", f"its tiles hold {cut_gb:.1f} GB > {recipe.max_scene_gb} GB")
        low, high = _bounds(source, header, scene, recipe)
    return {**asdict(header), "low": low, "high": high, "state": "used"}


def _bounds(source: Any, header: raster.Header, scene: str, recipe: Recipe) -> tuple[Any, Any]:
    """Return the source values (low, high) per band that become 0 and 255; (None, None) without scaling."""
    chosen = policy(recipe, header.dtype)
    if chosen == "linear":
        count = len(header.band_indexes)
        return (recipe.low,) * count, (recipe.high,) * count
    if chosen != "percentile":
        return None, None
    bounds = percentile_bounds(sample_values(source, header, scene, recipe), recipe.percentiles)
    if bounds is None:
        raise SceneRejectedError("no_data", "no valid pixel in the sampled windows")
    return bounds


def sample_values(source: Any, header: raster.Header, scene: str, recipe: Recipe) -> NDArray[Any]:
    """Return valid values [C, P] from windows of 256², chosen by the scene's id; a small scene is read whole."""
    columns, rows = math.ceil(header.width / _SAMPLE_PX), math.ceil(header.height / _SAMPLE_PX)
    count = min(_SAMPLE_WINDOWS, columns * rows)
    chosen = np.sort(permute(np.arange(count), columns * rows, key=int(scene, 16)))
    parts = []
    for place in chosen.tolist():
        x, y = place % columns * _SAMPLE_PX, place // columns * _SAMPLE_PX
        window = Window(x, y, min(_SAMPLE_PX, header.width - x), min(_SAMPLE_PX, header.height - y))
        values, valid = raster.read_strip(source, header.band_indexes, window, zero_is_nodata=recipe.zero_is_nodata)
        parts.append(values[:, valid])
    return np.concatenate(parts, axis=1)
