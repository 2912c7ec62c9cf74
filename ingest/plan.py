"""The plan: which tiles of which scenes make which group of shards.

A pure, single-process function of the probed scenes and the recipe; no clock, no listing, no workers in it.
Scenes are cut into units (rectangles of the tile grid that follow the file's own blocks), units are mixed by keyed
hash and cut into groups of about equal estimated bytes. One group is one task: big enough to fill several shards,
small enough that a laptop's cores all have work.

Groups are cut where the content says (at the unit of the smallest second hash within a range of sizes), so that a
scene that is added, lost or changed alters the groups near it and leaves the others as they are: what was packed for
them is found again by their names.

Memory: about 100 bytes per unit, besides the table of scenes.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ingest.config import Recipe, recipe_values
from ingest.grid import count_origins
from ingest.pixels import encoding
from shards.keyed import mix64
from shards.schema import SCENES, canonical_json, sha256_hex
from shards.settle import scene_numbers

_SHARDS_PER_GROUP = 8
_MIN_GROUPS = 16  # of a small dataset, so that cores have work; then its shards are smaller
_UNITS_PER_SHARD = 8  # one huge scene must not fill a shard
_UNITS_PER_GROUP = 16  # at least, also of a small dataset
_SLACK = 0.15  # a group may be so much smaller or larger than the others
_BYTES_PER_VALUE = {"jpeg": 0.3, "png": 0.7, "webp": 0.6, "npy": 1.0}  # rough; only balances groups
_MAX_BLOCK_PX = 2048
_NOT_PLANNED = ("state", "reason", "detail", "num_tiles", "num_dropped")
_GROUPS_AT_ONCE = 64


def estimated_tile_bytes(recipe: Recipe) -> float:
    """Return about how many bytes an encoded tile takes."""
    values = recipe.tile_px**2 * len(recipe.bands) * np.dtype(recipe.dtype).itemsize
    return 1024 + float(values) * _BYTES_PER_VALUE[encoding(recipe)]


def in_one_chunk(tables: list[pa.Table]) -> pa.Table:
    """Return the tables as one with a single chunk per column, so that rows can be taken at random.

    The list is emptied column by column, so that memory is needed once and not twice.
    """
    columns: dict[str, pa.Array] = {}
    for name in tables[0].column_names:
        columns[name] = pa.chunked_array([chunk for table in tables for chunk in table[name].chunks]).combine_chunks()
        tables[:] = [table.drop_columns(name) for table in tables]
    tables.clear()
    return pa.table(columns)


def plan_units(scenes: pa.Table, recipe: Recipe) -> pa.Table:
    """Return the units in their order.

    Args:
        scenes: probed scenes; those with a reason get no unit.
        recipe: decides the grid, the sizes and the mixing.

    Returns:
        Columns group, index (row of `scenes`), first_row, end_row, first_column, end_column (of the tile grid).
    """
    index = np.flatnonzero(pc.is_null(scenes["reason"]).to_numpy())
    used = scenes.select(
        ["scene", "grid_width", "grid_height", "factor", "driver", "archive", "block_width", "block_height", "width"]
    ).take(index)
    units = _rectangles(used, recipe)
    owner = units.pop("owner")
    ids = scene_numbers(used["scene"])[owner]
    place = (units["first_row"].astype(np.uint64) << np.uint64(32)) + units["first_column"].astype(np.uint64)
    mixed = mix64(mix64(ids, recipe.seed) + place, recipe.seed)
    order = np.argsort(mixed, kind="stable")
    tiles = (units["end_row"] - units["first_row"]) * (units["end_column"] - units["first_column"])
    num_bytes = (tiles * estimated_tile_bytes(recipe))[order]
    groups = _cut(num_bytes, mix64(mixed[order], recipe.seed + 1), recipe)
    return pa.table({"group": groups, "index": index[owner][order], **{n: v[order] for n, v in units.items()}})


def _rectangles(used: pa.Table, recipe: Recipe) -> dict[str, NDArray[np.int64]]:
    """Return owner (row of `used`), first_row, end_row, first_column, end_column of all units, scene by scene."""
    stride = recipe.stride_px or recipe.tile_px
    rows = count_origins(_ints(used["grid_height"]), recipe.tile_px, stride, recipe.edge)
    columns = count_origins(_ints(used["grid_width"]), recipe.tile_px, stride, recipe.edge)
    unit_rows, unit_columns = _unit_shape(used, rows, columns, recipe)
    down, across = -(-rows // unit_rows), -(-columns // unit_columns)
    counts = down * across
    owner = np.repeat(np.arange(len(rows)), counts)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    first_row = place // across[owner] * unit_rows[owner]
    first_column = place % across[owner] * unit_columns[owner]
    return {
        "owner": owner,
        "first_row": first_row,
        "end_row": np.minimum(first_row + unit_rows[owner], rows[owner]),
        "first_column": first_column,
        "end_column": np.minimum(first_column + unit_columns[owner], columns[owner]),
    }


def _unit_shape(
    used: pa.Table, rows: NDArray[np.int64], columns: NDArray[np.int64], recipe: Recipe
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows and columns of tiles in a unit of each scene.

    A GeoTIFF is cut between its blocks, where tiles begin at the edge of one; all else is decoded from its beginning,
    so it stays whole, and so does a GeoTIFF in strips of more rows than a tile's that tiles do not fit: each of its
    units would decode a whole strip.
    """
    whole = pc.or_(pc.not_equal(used["driver"], "GTiff"), pc.is_valid(used["archive"]))
    whole = pc.fill_null(whole, False).to_numpy(zero_copy_only=False)
    # The blocks of a striped file are as wide as it is: cut across, each part would decode them again.
    striped = _ints(used["block_width"]) >= _ints(used["width"])
    down = _period(_ints(used["block_height"]), _ints(used["factor"], 0), recipe)
    across = _period(_ints(used["block_width"]), _ints(used["factor"], 0), recipe)
    step = (recipe.stride_px or recipe.tile_px) * np.maximum(_ints(used["factor"], 1), 1)
    whole |= striped & (down == 1) & (_ints(used["block_height"]) > step)
    tile_bytes = estimated_tile_bytes(recipe)
    group = _group_bytes(float((rows * columns).sum()) * tile_bytes, recipe)
    wanted = max(1, int(min(recipe.shard_mb * 1e6 / _UNITS_PER_SHARD, group / _UNITS_PER_GROUP) / tile_bytes))
    unit_rows = np.maximum(1, wanted // columns // down) * down
    unit_columns = np.maximum(1, wanted // unit_rows // across) * across
    uncut = whole | striped | (unit_rows * columns <= 2 * wanted)
    return np.where(whole, rows, unit_rows), np.where(uncut, columns, unit_columns)


def _period(block: NDArray[np.int64], factor: NDArray[np.int64], recipe: Recipe) -> NDArray[np.int64]:
    """Return after how many tiles, along one axis, one begins at the edge of a block again; 1 if too many."""
    step = (recipe.stride_px or recipe.tile_px) * np.maximum(factor, 1)
    period = block // np.gcd(step, np.maximum(block, 1))
    useful = (factor > 0) & (block <= _MAX_BLOCK_PX) & (period <= 16)
    return np.where(useful, np.maximum(period, 1), 1)


def _cut(num_bytes: NDArray[np.float64], ticket: NDArray[np.uint64], recipe: Recipe) -> NDArray[np.int64]:
    """Return the group of each unit: runs of about equal bytes, each begun at the smallest ticket within the slack."""
    ends = np.cumsum(num_bytes)
    target = _group_bytes(float(ends[-1]) if len(ends) else 0.0, recipe)
    groups = np.zeros(len(ends), np.int64)
    start, start_bytes = 0, 0.0
    while len(ends) and ends[-1] - start_bytes > (1 + _SLACK) * target:
        low = int(np.searchsorted(ends, start_bytes + (1 - _SLACK) * target))
        high = int(np.searchsorted(ends, start_bytes + (1 + _SLACK) * target))
        low = max(low, start)
        start = low + 1 + int(np.argmin(ticket[low + 1 : high + 1])) if high > low else low + 1
        if start >= len(ends):
            break
        groups[start] = 1
        start_bytes = float(ends[start - 1])
    return np.cumsum(groups)


def _group_bytes(total: float, recipe: Recipe) -> float:
    """Return the bytes to aim for in a group; for small datasets in steps of √2, so that they rarely change."""
    largest = _SHARDS_PER_GROUP * recipe.shard_mb * 1e6
    if total >= largest * _MIN_GROUPS:
        return largest
    return min(largest, float(2 ** (np.floor(2 * np.log2(max(total / _MIN_GROUPS, 1.0))) / 2)))


def encode_groups(
    units: pa.Table, scenes: pa.Table, recipe: Recipe, tools: Mapping[str, str]
) -> Iterator[tuple[str, bytes]]:
    """Yield (name, Parquet bytes) of each group: its units with all that is known of their scenes.

    The name is a hash of the bytes, the recipe and the tools: of all that decides what the group becomes.

    Args:
        units: from `plan_units`.
        scenes: the same; in few chunks, since rows are taken at random.
        recipe: the plan's.
        tools: versions of what decodes and encodes.
    """
    kept = scenes.select([name for name in SCENES.names if name not in _NOT_PLANNED])
    about = canonical_json({"recipe": recipe_values(recipe), "tools": dict(tools)})
    starts = np.flatnonzero(np.diff(units["group"].to_numpy(), prepend=-1))
    ends = [*starts[1:].tolist(), units.num_rows]
    for first in range(0, len(starts), _GROUPS_AT_ONCE):
        begin, end = int(starts[first]), ends[min(first + _GROUPS_AT_ONCE, len(starts)) - 1]
        joined = kept.take(units["index"].slice(begin, end - begin))
        for name in ("first_row", "end_row", "first_column", "end_column"):
            joined = joined.append_column(name, units[name].slice(begin, end - begin))
        for start, stop in zip(starts[first:][:_GROUPS_AT_ONCE].tolist(), ends[first:][:_GROUPS_AT_ONCE], strict=True):
            data = _encode(joined.slice(start - begin, stop - start))
            yield sha256_hex(about + data)[:32], data


def _encode(units: pa.Table) -> bytes:
    """Return Parquet bytes; they are read once and thrown away, so speed counts: a third of what zstd would cost."""
    sink = pa.BufferOutputStream()
    pq.write_table(units, sink, compression="snappy", write_statistics=False)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def plan_id(groups: list[str]) -> str:
    """Return 16 hex digits that name a plan: a hash of its groups, which are named by all their inputs."""
    return sha256_hex(canonical_json(sorted(groups)))[:16]


def _ints(column: pa.ChunkedArray, null: int = 0) -> NDArray[np.int64]:
    values: NDArray[np.int64] = pc.fill_null(column, null).to_numpy().astype(np.int64)
    return values
