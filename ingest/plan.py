"""The plan: which tiles of which scenes make which group of shards.

A pure, single-process function of the probed scenes and the recipe; no clock, no listing, no workers in it.
Scenes are cut into units (bands of whole tile rows), units are mixed by keyed hash and cut into groups of
equal estimated bytes. One group is one task: big enough to fill several shards, small enough that a laptop's
cores all have work.
"""

import hashlib
import json
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ingest.config import Recipe
from ingest.grid import count_origins
from shards.keyed import mix64
from shards.schema import canonical_json

_SHARDS_PER_GROUP = 8
_MIN_GROUPS = 16  # of a small dataset, so that cores have work; then its shards are smaller
_UNITS_PER_SHARD = 8  # one huge scene must not fill a shard
_BYTES_PER_VALUE = {"jpeg": 0.3, "png": 0.7, "webp": 0.6, "npy": 1.0}  # rough; only balances groups


def encoding(recipe: Recipe) -> str:
    """Return the encoding that `auto` stands for."""
    if recipe.encoding != "auto":
        return recipe.encoding
    return "jpeg" if recipe.dtype == "uint8" and len(recipe.bands) in (1, 3) else "npy"


def estimated_tile_bytes(recipe: Recipe) -> float:
    """Return about how many bytes an encoded tile takes."""
    values = recipe.tile_px**2 * len(recipe.bands) * np.dtype(recipe.dtype).itemsize
    return 1024 + float(values) * _BYTES_PER_VALUE[encoding(recipe)]


def plan_units(scenes: pa.Table, recipe: Recipe) -> pa.Table:
    """Return the units in their order: columns group, index (row of `scenes`), first_row, end_row (of tile rows).

    Args:
        scenes: probed scenes; those with a reason get no unit.
        recipe: decides the grid, the sizes and the mixing.
    """
    index = np.flatnonzero(scenes["reason"].is_null().to_numpy(zero_copy_only=False))
    used = scenes.take(index)
    stride = recipe.stride_px or recipe.tile_px
    rows = count_origins(_ints(used["height"]), recipe.tile_px, stride, recipe.edge)
    columns = count_origins(_ints(used["width"]), recipe.tile_px, stride, recipe.edge)
    tile_bytes = estimated_tile_bytes(recipe)
    rows_per_unit = np.maximum(1, recipe.shard_mb * 1e6 / _UNITS_PER_SHARD / tile_bytes / columns).astype(np.int64)
    units = -(-rows // rows_per_unit)
    owner = np.repeat(np.arange(len(index)), units)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(units) - units, units)
    first_row = place * rows_per_unit[owner]
    end_row = np.minimum(first_row + rows_per_unit[owner], rows[owner])
    ids = np.array([int(name, 16) for name in used["scene"].to_pylist()], np.uint64)
    order = np.argsort(mix64(mix64(ids[owner], recipe.seed) + first_row.astype(np.uint64), recipe.seed), kind="stable")
    num_bytes = ((end_row - first_row) * columns[owner] * tile_bytes)[order]
    return pa.table(
        {
            "group": _cut(num_bytes, recipe),
            "index": index[owner][order],
            "first_row": first_row[order],
            "end_row": end_row[order],
        }
    )


def _cut(num_bytes: NDArray[np.float64], recipe: Recipe) -> NDArray[np.int64]:
    """Return the group of each unit: equal cuts of the running sum of bytes, numbered without gaps."""
    total = float(num_bytes.sum())
    target = min(_SHARDS_PER_GROUP * recipe.shard_mb * 1e6, max(total / _MIN_GROUPS, 1.0))
    begins = np.cumsum(num_bytes) - num_bytes
    groups = np.floor_divide(begins, target).astype(np.int64)
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe's fields (not those of a whole ingest configuration) as JSON holds them."""
    values = json.loads(canonical_json(asdict(recipe)))
    return {field.name: values[field.name] for field in fields(Recipe)}


def plan_id(scenes: pa.Table, recipe: Recipe, toolchain: dict[str, str]) -> str:
    """Return 16 hex digits that name all inputs of a plan: what was probed, the recipe, the tools' versions."""
    total = hashlib.sha256(canonical_json({"recipe": recipe_values(recipe), "toolchain": toolchain}))
    for batch in scenes.to_batches(max_chunksize=65536):
        rows = [{name: str(value) for name, value in row.items()} for row in batch.to_pylist()]
        total.update(canonical_json(rows))
    return total.hexdigest()[:16]


def _ints(column: pa.ChunkedArray) -> NDArray[np.int64]:
    values: NDArray[np.int64] = column.to_numpy().astype(np.int64)
    return values
