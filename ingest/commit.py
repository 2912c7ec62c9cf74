"""From packed groups to a version: settle what became of each scene, write the tables, make it visible.

A later version is the one before, minus the tiles of scenes that changed, plus the new groups; its old shards and the
table files that lose no row stay as they are. Tables are read file by file and group by group, four times (equal
tiles, tally and band figures, rows, digest). Memory: one table file, 40 bytes per sample for the digest and equal
tiles, and what a `SceneTally` holds.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingest.config import Recipe
from ingest.increment import without_gone
from ingest.pack import group_url
from ingest.reasons import REMEDIES
from shards import storage
from shards.commit import commit_version, write_table
from shards.digest import content_digest
from shards.errors import UserError
from shards.schema import REJECTS, SAMPLES, SCENES, SHARDS, TableFile, Version
from shards.settle import BandSums, SceneTally, exact_duplicates
from shards.tables import iter_table, read_table

Marker = dict[str, Any]
_READ_AHEAD = 8


@dataclass(frozen=True, kw_only=True)
class Packed:
    """All that a version is made of."""

    out: str
    number: int
    """Of the version to make."""
    recipe: Recipe
    record: dict[str, Any]
    probes: Sequence[str]
    """URLs of the tables of probed scenes that are new or changed."""
    fresh: pa.Array
    """Ids of these scenes: rows of `probes` with other ids, and rows of the parent with these ids, do not count."""
    gone: pa.Array
    """Ids of the parent's scenes that are not there any more."""
    markers: Sequence[Marker]
    parent: Version | None
    """The version to build upon."""

    def scenes(self) -> Iterator[pa.Table]:
        """Yield all scenes: those of the parent, then the fresh ones."""
        if self.parent:
            for table in iter_table(self.out, self.parent, "scenes", SCENES.names):
                yield _without(table, self.fresh).cast(SCENES)
        for table in storage.in_order(_READ_AHEAD, (partial(_read_columns, url, None) for url in self.probes)):
            yield table.filter(pc.is_in(table["scene"], value_set=self.fresh)).cast(SCENES)

    def group_tables(self, name: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the samples or rejects of the new groups, some read ahead."""
        urls = (group_url(self.out, marker["group"], f"-{name}.parquet") for marker in self.markers)
        yield from storage.in_order(_READ_AHEAD, (partial(_read_columns, url, columns) for url in urls))

    def old_tables(self, name: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the samples or rejects of the parent, without those of fresh scenes."""
        if self.parent:
            wanted = list(dict.fromkeys(["scene", *columns]))
            for table in iter_table(self.out, self.parent, name, wanted):
                yield _without(table, self.fresh).select(list(columns))


def _read_columns(url: str, columns: Sequence[str] | None) -> pa.Table:
    data = pa.BufferReader(storage.read_bytes(url))
    return pq.read_table(data, columns=columns and list(columns), use_threads=False)


class _Again:
    """An iterable that makes its iterator anew each time."""

    def __init__(self, make: Callable[[], Iterator[pa.Table]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[pa.Table]:
        return self._make()


def _without(table: pa.Table, scenes: pa.Array) -> pa.Table:
    return table.filter(pc.invert(pc.is_in(table["scene"], value_set=scenes)))


def commit(packed: Packed) -> Version:
    """Write the tables and the version of a packed plan.

    Raises:
        UserError: no tile is left (nothing is written), or somebody else committed a version meanwhile.
    """
    doubles = _doubles(packed)
    kept = _Kept(packed, doubles)
    tally = SceneTally(table["scene"] for table in packed.scenes())
    bands = BandSums(packed.recipe.bands)
    shards: set[str] = set()
    num_samples = 0
    for table in kept.tables(["scene", "shard", "num_valid", "band_sums", "band_squares"]):
        tally.add_samples(table)
        bands.add(table)
        shards.update(pc.unique(table["shard"]).to_pylist())
        num_samples += table.num_rows
    if not num_samples:
        raise UserError(f"no tile of {packed.record['scenes']} is left: {_told(packed)}")
    for table in _tile_rejects(packed, doubles):
        tally.add_rejects(table)
    version = _write(packed, kept, doubles, tally, shards)
    figures = bands.figures() or (packed.parent.bands if packed.parent else None)
    assert figures is not None
    version = replace(version, bands=figures, num_samples=num_samples)
    commit_version(packed.out, version)
    return version


def _doubles(packed: Packed) -> pa.Table:
    """Return the tiles to leave out because another has the same bytes: columns key, kept."""
    if not packed.recipe.drop_duplicates:
        return pa.table({"key": pa.array([], pa.string()), "kept": pa.array([], pa.string())})
    columns = ["key", "member_sha256"]

    def tables() -> Iterator[pa.Table]:
        yield from packed.old_tables("samples", columns)
        yield from packed.group_tables("samples", columns)

    return without_gone(exact_duplicates(_Again(tables)), packed.gone)


class _Kept:
    """The samples of the new version, as often as asked."""

    def __init__(self, packed: Packed, doubles: pa.Table) -> None:
        self._packed, self._doubles = packed, doubles["key"].combine_chunks()

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        wanted = list(dict.fromkeys(["key", *columns]))
        for table in self._packed.old_tables("samples", wanted):
            yield self._left(table).select(list(columns))
        yield from self.new(columns)

    def new(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        wanted = list(dict.fromkeys(["key", *columns]))
        for table in self._packed.group_tables("samples", wanted):
            yield self._left(table).select(list(columns))

    def _left(self, table: pa.Table) -> pa.Table:
        return table.filter(pc.invert(pc.is_in(table["key"], value_set=self._doubles)))

    def write(self) -> tuple[TableFile, ...]:
        """Write the samples; files of the parent that lose no row stay."""
        packed = self._packed
        files: list[TableFile] = []
        for file in packed.parent.tables["samples"] if packed.parent else ():
            assert packed.parent
            one = replace(packed.parent, tables={**packed.parent.tables, "samples": (file,)})
            (table,) = iter_table(packed.out, one, "samples", SAMPLES.names)
            left = self._left(_without(table, packed.fresh))
            # A shortened file takes the place of the old one, so that a shard's samples stay together.
            files += [file] if left.num_rows == table.num_rows else write_table(packed.out, "samples", [left])
        files += write_table(packed.out, "samples", self.new(SAMPLES.names))
        return tuple(file for file in files if file.num_rows)


def _tile_rejects(packed: Packed, doubles: pa.Table) -> Iterator[pa.Table]:
    for table in packed.old_tables("rejects", REJECTS.names):
        yield table.filter(pc.is_valid(table["x"])).cast(REJECTS)
    yield from packed.group_tables("rejects", REJECTS.names)
    if doubles.num_rows:
        yield _duplicate_rejects(packed, doubles)


def _duplicate_rejects(packed: Packed, doubles: pa.Table) -> pa.Table:
    """Return one reject per double, naming the tile that is kept."""
    columns = ["key", "scene", "x", "y"]
    keys = doubles["key"].combine_chunks()
    parts = [SAMPLES.empty_table().select(columns)]
    parts += [
        table.filter(pc.is_in(table["key"], value_set=keys))
        for table in chain(packed.old_tables("samples", columns), packed.group_tables("samples", columns))
    ]
    tiles = pa.concat_tables(parts).join(doubles, "key").sort_by("key")
    paths = [pa.table({"scene": pa.array([], pa.string()), "path": pa.array([], pa.string())})]
    named = pc.unique(tiles["scene"])
    paths += [
        table.select(["scene", "path"]).filter(pc.is_in(table["scene"], value_set=named)) for table in packed.scenes()
    ]
    tiles = tiles.join(pa.concat_tables(paths), "scene").sort_by("key")
    reason = pa.array(["duplicate"] * tiles.num_rows, pa.string())
    columns_ = [tiles["scene"], tiles["path"], tiles["x"], tiles["y"], reason, tiles["kept"]]
    return pa.table(columns_, names=REJECTS.names).cast(REJECTS)


def _write(packed: Packed, kept: _Kept, doubles: pa.Table, tally: SceneTally, used: set[str]) -> Version:
    whole: list[pa.Table] = []

    def settled() -> Iterator[pa.Table]:
        for table in packed.scenes():
            final, rejects = tally.settle(table)
            whole.append(rejects)
            yield final

    scenes = write_table(packed.out, "scenes", settled())
    samples = kept.write()
    shards = _shards(packed, used)
    version = Version(
        version=packed.number,
        digest="",
        bands=(),
        dtype=packed.recipe.dtype,
        tile_px=packed.recipe.tile_px,
        num_samples=0,
        num_shards=shards.num_rows,
        num_scenes=sum(file.num_rows for file in scenes),
        num_rejected=sum(table.num_rows for table in whole),
        num_bytes=pc.sum(shards["size"]).as_py(),
        tables={
            "samples": samples,
            "shards": write_table(packed.out, "shards", [shards]),
            "scenes": scenes,
            "rejects": write_table(packed.out, "rejects", chain(whole, _tile_rejects(packed, doubles))),
        },
        record=packed.record,
    )
    written = iter_table(packed.out, version, "scenes", ["scene", "path", "state", "reason", "num_tiles"])
    columns = ["key", "member", "member_sha256", "json_sha256"]
    digest = content_digest(packed.recipe.bands, packed.recipe.dtype, kept.tables(columns), written)
    return replace(version, digest=digest)


def _shards(packed: Packed, used: set[str]) -> pa.Table:
    parts = [pa.Table.from_pylist([s for marker in packed.markers for s in marker["shards"]], schema=SHARDS)]
    if packed.parent:
        parts.insert(0, read_table(packed.out, packed.parent, "shards", SHARDS.names).cast(SHARDS))
    table = pa.concat_tables(parts)
    table = table.filter(pc.is_in(table["shard"], value_set=pa.array(sorted(used), pa.string())))
    # Two groups of equal tiles make one shard.
    first = (
        table.append_column("row", pa.array(np.arange(table.num_rows))).group_by("shard").aggregate([("row", "min")])
    )
    return table.take(pc.take(first["row_min"], pc.sort_indices(first["row_min"])))


def _told(packed: Packed) -> str:
    reasons: Counter[str] = Counter()
    for table in packed.group_tables("rejects", ["reason"]):
        reasons.update(dict(zip(*_counts(table["reason"]), strict=True)))
    return "; ".join(f"{count} tiles {code} ({REMEDIES[code]})" for code, count in reasons.most_common(3))


def _counts(column: pa.ChunkedArray) -> tuple[list[str], list[int]]:
    found = pc.value_counts(column)
    return found.field("values").to_pylist(), found.field("counts").to_pylist()
