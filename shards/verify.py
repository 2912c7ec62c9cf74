"""Check a dataset against itself: every checksum, every count, every table against the others.

Reads each shard once; costs one pass over the data and the memory of one shard.
"""

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import google_crc32c
import pyarrow as pa
import pyarrow.compute as pc

from shards import storage, tar
from shards.dataset import read_table, read_version
from shards.digest import content_digest
from shards.errors import UserError
from shards.schema import TABLES, Version


def verify(url: str, number: int | None = None) -> Iterator[str]:
    """Yield one line per fault of a version (the newest by default); nothing where all is well.

    Raises:
        UserError: there is no dataset.
    """
    version = read_version(url, number)
    tables: dict[str, pa.Table] = {}
    for name in TABLES:
        try:
            tables[name] = read_table(url, version, name)
        except UserError as error:
            yield str(error)
    if len(tables) < len(TABLES):
        return
    yield from _verify_tables(version, tables)
    rows = _rows_by_shard(tables["samples"])
    for shard in tables["shards"].to_pylist():
        yield from _verify_shard(url, shard, rows.pop(shard["shard"], TABLES["samples"].empty_table()).to_pylist())
    for orphan, mine in rows.items():
        yield f"{mine.num_rows} samples lie in shard {orphan}, which is not in the shards table"


def _rows_by_shard(samples: pa.Table) -> dict[str, pa.Table]:
    """Slice the samples table by shard, rows in order of their offset; the slices share one table's memory."""
    names = samples["shard"].cast(pa.string())
    chosen = samples.set_column(samples.column_names.index("shard"), "shard", names)
    chosen = chosen.sort_by([("shard", "ascending"), ("offset", "ascending")])
    names = chosen["shard"].combine_chunks()
    runs = pc.run_end_encode(names)
    ends = runs.run_ends.to_pylist()
    starts = [0, *ends[:-1]]
    return {
        name: chosen.slice(start, end - start)
        for name, start, end in zip(runs.values.to_pylist(), starts, ends, strict=True)
    }


def _verify_tables(version: Version, tables: dict[str, pa.Table]) -> Iterator[str]:
    samples, shards, scenes = tables["samples"], tables["shards"], tables["scenes"]
    for name, files in version.tables.items():
        rows = sum(file.num_rows for file in files)
        if rows != tables[name].num_rows:
            yield f"table {name}: {tables[name].num_rows} rows, the version says {rows}"
    for what, found, promised in [
        ("samples", samples.num_rows, version.num_samples),
        ("shards", shards.num_rows, version.num_shards),
        ("scenes", scenes.num_rows, version.num_scenes),
        ("bytes", pc.sum(shards["size"]).as_py() or 0, version.num_bytes),
        ("rejected scenes", scenes["state"].to_pylist().count("rejected"), version.num_rejected),
        ("different keys", len(pc.unique(samples["key"])), version.num_samples),
        ("different scenes", len(pc.unique(scenes["scene"])), version.num_scenes),
    ]:
        if found != promised:
            yield f"{what}: {found} found, the version says {promised}"
    digest = content_digest([band.name for band in version.bands], version.dtype, [samples], [scenes])
    if digest != version.digest:
        yield f"digest of the tables {digest} is not the version's {version.digest}"
    yield from _verify_scenes(samples, scenes, tables["rejects"])


def _verify_scenes(samples: pa.Table, scenes: pa.Table, rejects: pa.Table) -> Iterator[str]:
    tiles = Counter(samples["scene"].to_pylist())
    dropped = Counter(row["scene"] for row in rejects.to_pylist() if row["x"] is not None)
    whole = {row["scene"] for row in rejects.to_pylist() if row["x"] is None}
    for scene in scenes.to_pylist():
        name = f"scene {scene['path']}"
        if tiles.pop(scene["scene"], 0) != scene["num_tiles"]:
            yield f"{name}: its {scene['num_tiles']} tiles are not what the samples table lists"
        if dropped.pop(scene["scene"], 0) != scene["num_dropped"]:
            yield f"{name}: its {scene['num_dropped']} dropped tiles are not what the rejects table lists"
        if (scene["state"] == "rejected") != (scene["scene"] in whole) or (
            (scene["state"] == "used") != (scene["num_tiles"] > 0)
        ):
            yield f"{name}: state {scene['state']!r} does not fit its tiles and rejects"
    known = set(scenes["scene"].to_pylist())
    for orphan in sorted({*tiles, *dropped, *whole} - known):
        yield f"scene {orphan} has tiles or rejects but is not in the scenes table"


def _verify_shard(url: str, shard: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    shard_url = storage.join(url, shard["url"])
    try:
        data = storage.read_bytes(shard_url)
    except FileNotFoundError:
        yield f"{shard_url} is missing"
        return
    if len(data) != shard["size"] or hashlib.sha256(data).hexdigest() != shard["shard"]:
        yield f"{shard_url}: size or sha256 is not the recorded one"
    if len(rows) != shard["num_samples"]:
        yield f"{shard_url}: {len(rows)} samples in the table, {shard['num_samples']} in the shard's row"
    position = 0
    for row in rows:
        if row["offset"] != position:
            yield f"{shard_url}: sample {row['key']} does not begin where the one before ends"
        position = row["offset"] + row["size"]
        yield from _verify_sample(shard_url, row, data[row["offset"] : position])


def _verify_sample(shard_url: str, row: dict[str, Any], data: bytes) -> Iterator[str]:
    name = f"{shard_url}: sample {row['key']}"
    if len(data) != row["size"] or google_crc32c.value(data) != row["crc32c"]:
        yield f"{name}: bytes do not match the checksum"
        return
    members = {member.name.removeprefix(f"{row['key']}."): member for member in tar.members(data)}
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
