"""Make one group: have its units' tiles cut, sort them into shards, write tables and the marker.

Idempotent: the same group gives the same bytes, at names that are made of the content, so that a task may run twice,
die anywhere, or finish late without harm. The marker is written last and only once. A group with tiles that were left
out for what may pass (PASSING_CODES) is no last word: its marker has a name of its own, and the next run packs it anew.

Memory: about 4 kB per tile, and what a store's client holds of the shards on their way, 210 MB for three of 64 MB;
encoded tiles wait in a scratch file. The decoder has its own (see `ingest.cut`).
"""

import hashlib
import itertools
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingest.access import Access, Place, reach, require_shared
from ingest.config import Recipe, recipe_json
from ingest.grid import tile_origins
from ingest.reasons import PASSING_CODES, SceneRejectedError
from ingest.sandbox import Decoder, Limits, decoder, faults_named
from ingest.scene_row import from_json, to_json
from ingest.second_look import call_surely
from ingest.toolchain import require_toolchain
from shards import storage
from shards.commit import encode_table
from shards.keyed import hash64
from shards.schema import REJECTS, SAMPLES, canonical_json, sha256_hex
from shards.storage.scratch import disk_full_told, remove_left_scratch, scratch_folder
from shards.tar import BLOCK, ShardWriter

_PUTS_AT_ONCE = 3
_ROWS_PER_BATCH = 1024
_WAITING = pa.schema([*SAMPLES, ("_at", pa.int64()), ("_json", pa.binary())])
"""Tiles without a place in a shard yet: what the samples table says, where their images begin, and their JSON."""


class NotDeterministicError(RuntimeError):
    """The same inputs gave other bytes: nothing may be built on that."""


class _Scratch:
    """Images of a group's tiles on local disk, until their order is known."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self.size = 0
        self._rows: list[dict[str, Any]] = []
        self._batches: list[pa.RecordBatch] = []
        self.rejects: list[dict[str, Any]] = []

    def finish(self, told: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return rows as `add` takes them.

        Args:
            told: by `ingest.cut.cut_units`; the images are here.
        """
        return [self._row(each) for each in told]

    def _row(self, told: Mapping[str, Any]) -> dict[str, Any]:
        tile, figures, metadata = told["tile"], told["figures"], canonical_json(told["tile"])
        hashes = {
            "member_sha256": hashlib.sha256(self.image(told["at"], figures["member_size"])).digest(),
            "json_sha256": hashlib.sha256(metadata).digest(),
        }
        return {**from_json(tile), **figures, **hashes, "_at": told["at"], "_json": metadata}

    def image(self, at: int, size: int) -> bytes:
        """Return the image of a tile."""
        data = os.pread(self._file.fileno(), size, at)
        assert len(data) == size, "the decoder told of more than it wrote"
        return data

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Take note of tiles that the decoder wrote, one behind the other, at the end."""
        self._rows += rows
        self.size += sum(row["member_size"] for row in rows)
        if len(self._rows) >= _ROWS_PER_BATCH:
            self._batch()

    def _batch(self) -> None:
        # As objects of Python rows take five times the memory.
        self._batches.append(pa.RecordBatch.from_pylist(self._rows, schema=_WAITING))
        self._rows = []

    def tiles(self) -> pa.Table:
        """Return what is known of all tiles that were added, see _WAITING."""
        self._batch()
        return pa.Table.from_batches(self._batches)


class _Puts:
    """Files on their way into the dataset: some at once, since each waits for a disk or a store, not for a core."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_PUTS_AT_ONCE)
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> "_Puts":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, put: Callable[..., None], *arguments: object) -> None:
        """Begin to put a file; wait for an earlier one where too many are on their way.

        Raises:
            OSError: an earlier one failed.
        """
        if len(self._pending) == _PUTS_AT_ONCE:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(put, *arguments))

    def finish(self) -> None:
        """Wait until all are there.

        Raises:
            OSError: one failed.
        """
        while self._pending:
            self._pending.popleft().result()


def group_url(out: str, group: str, suffix: str) -> str:
    """Return where a file of a group lies: its units (".parquet"), its tables, its marker (".json")."""
    return storage.join(out, "groups", f"{group}{suffix}")


def pack_group(
    out: str, group: str, place: Place, recipe: Recipe, limits: Limits, tools: Mapping[str, str]
) -> dict[str, Any]:
    """Pack one group of a plan; return its marker, and "resumed": whether it had one, and so was done already.

    Args:
        out: the dataset.
        group: name of the group; its units lie in groups/<name>.parquet.
        place: where the scenes' paths begin.
        recipe: the plan's recipe.
        limits: of the decoder.
        tools: versions that this process must have, too.

    Raises:
        OSError: a scene changed, or something cannot be reached: to be tried again.
        NotDeterministicError: a marker of this group exists meanwhile and says something else.
        RuntimeError: this machine has other tools, or does not have the scenes' folder.
    """
    require_toolchain(tools)
    marker_url = group_url(out, group, ".json")
    earlier = _read_marker(marker_url) if storage.exists(marker_url) else None
    if earlier and not _may_pass(earlier):
        return earlier | {"resumed": True}
    require_shared(place)
    data = pa.BufferReader(storage.read_bytes(group_url(out, group, ".parquet")))
    units = pq.ParquetFile(data).read(use_threads=False).to_pylist()
    remove_left_scratch("ingest")
    with (
        scratch_folder("ingest") as folder,
        disk_full_told(folder, *_local(out)),
        _Puts() as puts,
        (folder / "tiles").open("w+b", buffering=0) as file,
    ):
        scratch = _Scratch(folder / "tiles", file)
        source_bytes = _pack_units(units, place, recipe, decoder(limits), scratch)
        shards, samples = _write_shards(scratch, out, recipe, folder, puts)
        tables = {
            "samples": samples,
            "rejects": pa.Table.from_pylist(scratch.rejects, schema=REJECTS),
        }
        left_out = dict(Counter(row["reason"] for row in scratch.rejects))
        marker = {"group": group, "shards": shards, "source_bytes": source_bytes, "left_out": left_out}
        # Older versions gave what may pass the group's own name: then that is taken.
        return _put_group(out, marker, tables, puts, last_word=earlier is None) | {"resumed": False}


def _local(out: str) -> list[Path]:
    return [storage.local_path(out)] if storage.is_local(out) else []


def _pack_units(units: list[dict[str, Any]], place: Place, recipe: Recipe, decode: Decoder, scratch: _Scratch) -> int:
    """Cut all units into the scratch file; return about how many source bytes they stand for."""
    # Units of one scene in a row, so that what must be fetched whole is fetched once.
    units.sort(key=lambda unit: (unit["scene"], unit["first_row"], unit["first_column"]))
    source_bytes = 0
    for _, of_scene in itertools.groupby(units, key=lambda unit: str(unit["scene"])):
        mine = list(of_scene)
        try:
            with reach(place, mine[0], whole=mine[0]["driver"] != "GTiff") as access:
                _cut(mine, access, recipe, decode, scratch)
        except SceneRejectedError as rejection:  # of an archive, before any unit
            for unit in mine:
                scratch.rejects += _all_tiles(unit, recipe, rejection)
        source_bytes += sum(_share_of_bytes(unit, recipe) for unit in mine)
    return source_bytes


def _share_of_bytes(unit: Mapping[str, Any], recipe: Recipe) -> int:
    """Return the scene's bytes times the unit's share of its rows and columns."""
    stride = recipe.stride_px or recipe.tile_px
    rows = min(1.0, (unit["end_row"] - unit["first_row"]) * stride / unit["grid_height"])
    columns = min(1.0, (unit["end_column"] - unit["first_column"]) * stride / unit["grid_width"])
    return int(unit["size"] * rows * columns)


def _cut(units: list[dict[str, Any]], access: Access, recipe: Recipe, decode: Decoder, scratch: _Scratch) -> None:
    """Cut units of one scene; if that costs the decoder, one by one, so that the culprit alone is rejected."""
    request: dict[str, Any] = {"files": access.files, "units": [to_json(unit) for unit in units]}
    request |= {"recipe": recipe_json(recipe), "scratch": str(scratch.path), "position": scratch.size}
    try:
        with faults_named(str(units[0]["path"])):
            found = call_surely(decode, "cut", request, access, scratch.finish)
    except SceneRejectedError as rejection:
        if len(units) == 1:
            scratch.rejects += _all_tiles(units[0], recipe, rejection)
            return
        for unit in units:
            _cut([unit], access, recipe, decode, scratch)
    else:
        scratch.add(found.get("rows", []))
        scratch.rejects += found["rejects"]


def _all_tiles(unit: Mapping[str, Any], recipe: Recipe, rejection: SceneRejectedError) -> list[dict[str, Any]]:
    """Return rejects of all tiles of a unit."""
    stride, factor = recipe.stride_px or recipe.tile_px, unit["factor"] or 1
    xs = tile_origins(unit["grid_width"], recipe.tile_px, stride, recipe.edge)
    ys = tile_origins(unit["grid_height"], recipe.tile_px, stride, recipe.edge)
    why = {"scene": unit["scene"], "path": unit["path"], "reason": rejection.code, "detail": rejection.detail}
    return [
        {**why, "x": x * factor, "y": y * factor}
        for y in ys[unit["first_row"] : unit["end_row"]].tolist()
        for x in xs[unit["first_column"] : unit["end_column"]].tolist()
    ]


def _write_shards(
    scratch: _Scratch, out: str, recipe: Recipe, folder: Path, puts: _Puts
) -> tuple[list[dict[str, Any]], pa.Table]:
    """Sort the tiles by keyed hash and cut them by equal bytes; return rows of the shards table, and the samples."""
    tiles = scratch.tiles()
    if not tiles.num_rows:
        return [], SAMPLES.empty_table()
    keys = tiles["key"].to_pylist()
    tiles = tiles.take(sorted(range(len(keys)), key=lambda row: (hash64("mix", recipe.seed, keys[row]), keys[row])))
    sizes = pc.add(tiles["member_size"], pc.binary_length(tiles["_json"])).to_numpy().astype(np.float64)
    count = max(1, round(sizes.sum() / (recipe.shard_mb * 1e6)))
    places = np.minimum((np.cumsum(sizes) - sizes) * count // sizes.sum(), count - 1)
    shards, samples = [], []
    for begin, end in itertools.pairwise(np.searchsorted(places, np.arange(count + 1)).tolist()):
        if begin < end:
            path = folder / f"{begin}.tar"
            shard, rows = _write_shard(scratch, tiles.slice(begin, end - begin), path)
            puts.add(_put_shard, path, storage.join(out, shard["url"]))
            shards.append(shard)
            samples.append(rows)
    return shards, pa.concat_tables(samples)


def _write_shard(scratch: _Scratch, tiles: pa.Table, path: Path) -> tuple[dict[str, Any], pa.Table]:
    with path.open("wb") as file:
        writer = ShardWriter(file)
        extents = [
            writer.write(
                row["key"], {row["member"]: scratch.image(row["_at"], row["member_size"]), "json": row["_json"]}
            )
            for row in tiles.select(["key", "member", "member_size", "_at", "_json"]).to_pylist()
        ]
        writer.close()
    name = writer.sha256()
    placed = {
        "shard": [name] * len(extents),
        "offset": [extent.offset for extent in extents],
        "size": [extent.size for extent in extents],
        "crc32c": [extent.crc32c for extent in extents],
        "member_offset": [extent.offset + BLOCK for extent in extents],
    }
    for column, values in placed.items():
        field = SAMPLES.field(column)
        tiles = tiles.set_column(tiles.schema.get_field_index(column), field, pa.array(values, field.type))
    shard = {"shard": name, "url": f"shards/{name}.tar", "size": writer.size, "num_samples": writer.num_samples}
    return shard, tiles.select(SAMPLES.names)


def _put_shard(path: Path, url: str) -> None:
    # Also if it is there already: what an earlier attempt left may be old enough for `shards gc` to remove.
    storage.put_file(path, url)
    path.unlink(missing_ok=True)


def _put_group(
    out: str, marker: dict[str, Any], tables: Mapping[str, pa.Table], puts: _Puts, *, last_word: bool
) -> dict[str, Any]:
    """Write a group's tables and marker, under a name of their content if they are no last word; return the marker."""
    encoded = {name: encode_table(table) for name, table in tables.items()}
    for name, data in encoded.items():
        marker[name] = {"sha256": sha256_hex(data), "num_rows": tables[name].num_rows}
    if _may_pass(marker) or not last_word:
        marker["group"] = sha256_hex(canonical_json(marker))[:32]
    for name, data in encoded.items():
        puts.add(storage.write_bytes, group_url(out, marker["group"], f"-{name}.parquet"), data)
    puts.finish()
    return _put_marker(out, marker)


def _may_pass(marker: Mapping[str, Any]) -> bool:
    return any(code in marker["left_out"] for code in PASSING_CODES)


def _put_marker(out: str, marker: dict[str, Any]) -> dict[str, Any]:
    group, data = marker["group"], canonical_json(marker)
    url = group_url(out, group, ".json")
    if not storage.create_bytes(url, data) and storage.read_bytes(url) != data:
        raise NotDeterministicError(
            f"group {group} was packed twice and gave other bytes the second time: two machines have other libraries "
            f"or processors, or one has a fault; give all workers the same environment, remove {url} and run again"
        )
    return _read_marker(url)


def _read_marker(url: str) -> dict[str, Any]:
    marker: dict[str, Any] = json.loads(storage.read_bytes(url))
    return marker
