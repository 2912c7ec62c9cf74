"""Check a dataset against itself: every checksum, every count, every table against the others.

Reads each shard once and the tables three times. Memory: one shard and the rows of its samples, one table file, 16
bytes per scene, and the keys of all samples. A version may name fewer samples than its shards hold (duplicates left
out, a selection), so gaps between samples are no fault; bytes that two samples share are. Shards that others wrote
are checked by `shards.indexing.verify`; their samples have no scene.
"""

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards import storage, tar
from shards.digest import content_digest
from shards.errors import UserError
from shards.indexing.verify import verify_indexed
from shards.schema import REJECTS, SAMPLES, TABLES, Version
from shards.settle import BandSums, SceneTally
from shards.tables import iter_table, read_table, read_version

_COUNTED = ["key", "member", "member_sha256", "json_sha256", "scene", "num_valid", "band_sums", "band_squares"]
# Figures are written with 6 decimals.
_ROUNDING = 2e-6


def verify(url: str, number: int | None = None) -> Iterator[str]:
    """Yield one line per fault of a version (the newest by default); nothing where all is well.

    Raises:
        UserError: there is no dataset.
    """
    version = read_version(url, number)
    damaged = False
    for name in TABLES:
        for fault in _verify_files(url, version, name):
            damaged = damaged or fault.is_damage
            yield fault.text
    if not damaged:
        yield from _verify_tables(url, version)
        if version.record.get("command") == "index":
            yield from verify_indexed(url, version)
        else:
            yield from _verify_shards(url, version)


@dataclass(frozen=True)
class _Fault:
    text: str
    is_damage: bool
    """The table cannot be read: what follows from it cannot be checked."""


def _verify_files(url: str, version: Version, name: str) -> Iterator[_Fault]:
    rows = 0
    try:
        for table in iter_table(url, version, name, TABLES[name].names[:1]):
            rows += table.num_rows
    except UserError as error:
        yield _Fault(str(error), True)
        return
    promised = sum(file.num_rows for file in version.tables[name])
    if rows != promised:
        yield _Fault(f"table {name}: {rows} rows, the version says {promised}", False)


@dataclass
class _Counts:
    """What one pass over the samples finds out, besides the digest that consumes them."""

    tally: SceneTally
    bands: BandSums
    keys: list[pa.Array] = field(default_factory=list)
    fault: str = ""

    def watch(self, samples: Iterator[pa.Table]) -> Iterator[pa.Table]:
        for table in samples:
            self.keys += table["key"].chunks
            self.tally.add_samples(table.filter(pc.is_valid(table["scene"])))
            try:
                self.bands.add(table)
            except ValueError as error:
                self.fault = str(error)
            yield table


def _verify_tables(url: str, version: Version) -> Iterator[str]:
    names = [band.name for band in version.bands]
    tally = SceneTally(table["scene"] for table in iter_table(url, version, "scenes", ["scene"]))
    counts = _Counts(tally, BandSums(names))
    samples = counts.watch(iter_table(url, version, "samples", _COUNTED))
    scenes = iter_table(url, version, "scenes", ["scene", "path", "state", "reason", "num_tiles"])
    digest = content_digest(names, version.dtype, samples, scenes)
    keys = pa.chunked_array(counts.keys, pa.string())
    shards = read_table(url, version, "shards")
    for rejects in iter_table(url, version, "rejects", REJECTS.names):
        tally.add_rejects(rejects.filter(pc.is_valid(rejects["scene"])))
    faults = _SceneFaults(tally)
    told = list(faults.check(url, version))
    for what, found, promised in [
        ("samples", len(keys), version.num_samples),
        ("shards", shards.num_rows, version.num_shards),
        ("scenes", faults.num_scenes, version.num_scenes),
        ("bytes", pc.sum(shards["size"]).as_py() or 0, version.num_bytes),
        ("rejected scenes", faults.num_rejected, version.num_rejected),
        ("different keys", pc.count_distinct(keys).as_py(), version.num_samples),
        ("different scenes", faults.num_scenes - tally.num_repeated, version.num_scenes),
    ]:
        if found != promised:
            yield f"{what}: {found} found, the version says {promised}"
    if digest != version.digest:
        yield f"digest of the tables {digest} is not the version's {version.digest}"
    yield from _verify_bands(version, counts)
    yield from told
    for orphan in sorted(tally.unknown):
        yield f"scene {orphan} has tiles or rejects but is not in the scenes table"


def _verify_bands(version: Version, counts: _Counts) -> Iterator[str]:
    if counts.fault:
        yield f"samples: {counts.fault}"
        return
    for measured, told in zip(counts.bands.figures() or version.bands, version.bands, strict=True):
        for what in ("mean", "std"):
            found, promised = getattr(measured, what), getattr(told, what)
            if not math.isclose(found, promised, rel_tol=_ROUNDING, abs_tol=_ROUNDING):
                yield f"band {told.name}: the {what} of the samples is {found}, the version says {promised}"


class _SceneFaults:
    """Compares the scenes table with the counts, chunk by chunk; only rows that do not fit become objects."""

    def __init__(self, tally: SceneTally) -> None:
        self._tally = tally
        self.num_scenes = 0
        self.num_rejected = 0

    def check(self, url: str, version: Version) -> Iterator[str]:
        columns = ["scene", "path", "state", "num_tiles", "num_dropped"]
        for scenes in iter_table(url, version, "scenes", columns):
            tiles, dropped, whole = self._tally.counts(scenes["scene"])
            rejected = _is(scenes["state"], "rejected")
            self.num_scenes += scenes.num_rows
            self.num_rejected += int(rejected.sum())
            says_tiles = scenes["num_tiles"].to_numpy()
            wrong_tiles, wrong_dropped = says_tiles != tiles, scenes["num_dropped"].to_numpy() != dropped
            wrong_state = (rejected != (whole > 0)) | (_is(scenes["state"], "used") != (says_tiles > 0))
            for place in np.flatnonzero(wrong_tiles | wrong_dropped | wrong_state).tolist():
                scene = scenes.slice(place, 1).to_pylist()[0]
                name = f"scene {scene['path']}"
                if wrong_tiles[place]:
                    yield f"{name}: its {scene['num_tiles']} tiles are not what the samples table lists"
                if wrong_dropped[place]:
                    yield f"{name}: its {scene['num_dropped']} dropped tiles are not what the rejects table lists"
                if wrong_state[place]:
                    yield f"{name}: state {scene['state']!r} does not fit its tiles and rejects"


def _is(column: pa.ChunkedArray, value: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    found: np.ndarray[Any, np.dtype[np.bool_]] = pc.fill_null(pc.equal(column, value), False).to_numpy()
    return found


def _verify_shards(url: str, version: Version) -> Iterator[str]:
    shards = {shard["shard"]: shard for shard in read_table(url, version, "shards").to_pylist()}
    seen: set[str] = set()
    for name, rows in _runs(iter_table(url, version, "samples", SAMPLES.names)):
        if name in seen:
            yield f"samples of shard {name} do not stand together in the samples table"
        elif name not in shards:
            yield f"{rows.num_rows} samples lie in shard {name}, which is not in the shards table"
        else:
            yield from _verify_shard(url, shards[name], rows.sort_by("offset").to_pylist())
        seen.add(name)
    for name, shard in shards.items():
        if name not in seen:
            yield f"{storage.join(url, shard['url'])}: no sample lies in it"


def _runs(samples: Iterator[pa.Table]) -> Iterator[tuple[str, pa.Table]]:
    """Yield (shard, its rows) for each run of rows in one shard; a run may cross the border of two table files."""
    name, parts = "", list[pa.Table]()
    for table in samples:
        runs = pc.run_end_encode(table["shard"].combine_chunks())
        start = 0
        for value, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
            if parts and value != name:
                yield name, pa.concat_tables(parts)
                parts = []
            name = value
            parts.append(table.slice(start, end - start))
            start = end
    if parts:
        yield name, pa.concat_tables(parts)


def _verify_shard(url: str, shard: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    shard_url = storage.join(url, shard["url"])
    try:
        data = storage.read_bytes(shard_url)
    except FileNotFoundError:
        yield f"{shard_url} is missing"
        return
    if len(data) != shard["size"] or hashlib.sha256(data).hexdigest() != shard["shard"]:
        yield f"{shard_url}: size or sha256 is not the recorded one"
    else:
        yield from _verify_count(shard_url, shard, data)
    position = 0
    for row in rows:
        if row["offset"] < position:
            yield f"{shard_url}: sample {row['key']} begins before the one before ends"
        position = row["offset"] + row["size"]
        yield from _verify_sample(shard_url, row, data[row["offset"] : position])


def _verify_count(shard_url: str, shard: dict[str, Any], data: bytes) -> Iterator[str]:
    try:
        keys = {member.name.partition(".")[0] for member in tar.members(memoryview(data))}
    except ValueError as error:
        yield f"{shard_url}: {error}"
        return
    if len(keys) != shard["num_samples"]:
        yield f"{shard_url}: {len(keys)} samples in it, {shard['num_samples']} in the shard's row"


def _verify_sample(shard_url: str, row: dict[str, Any], data: bytes) -> Iterator[str]:
    name = f"{shard_url}: sample {row['key']}"
    if len(data) != row["size"] or google_crc32c.value(data) != row["crc32c"]:
        yield f"{name}: bytes do not match the checksum"
        return
    try:
        members = {member.name.removeprefix(f"{row['key']}."): member for member in tar.members(data)}
    except ValueError as error:
        yield f"{name}: {error}"
        return
    contents = {name: data[member.offset : member.offset + member.size] for name, member in members.items()}
    sums = {name: hashlib.sha256(content).digest() for name, content in contents.items()}
    if sums != {row["member"]: row["member_sha256"], "json": row["json_sha256"]}:
        yield f"{name}: members {sorted(sums)} do not match the table"
        return
    image = members[row["member"]]
    if (row["offset"] + image.offset, image.size) != (row["member_offset"], row["member_size"]):
        yield f"{name}: the image does not lie where the table says"
    metadata = json.loads(contents["json"])
    differing = [key for key in metadata.keys() & row.keys() if not _same(row[key], metadata[key])]
    if differing:
        yield f"{name}: {', '.join(sorted(differing))} in the table differ from the sample's own JSON"


def _same(in_table: Any, in_json: Any) -> bool:
    if isinstance(in_table, datetime):
        return in_table.strftime("%Y-%m-%dT%H:%M:%SZ") == str(in_json)
    if isinstance(in_table, float) and in_json is not None:
        # Some columns hold 32 bits, JSON holds 64.
        return in_table in (in_json, struct.unpack("f", struct.pack("f", in_json))[0])
    return bool(in_table == in_json)
