"""Check an indexed dataset against the tars that others wrote: read them again and compare every row.

Reads each shard once and the samples table twice. Memory: as `index` with 4 workers. Disk: the scans of all
tars (100 bytes per sample) in a temporary folder.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shards import storage
from shards.indexing.faults import Faults
from shards.indexing.key_places import KeyPlaces, lookup
from shards.indexing.scan_rows import Members, sample_rows
from shards.indexing.scan_store import KeptScan, ScanStore, read_scan
from shards.indexing.sources import Source
from shards.schema import Version
from shards.tables import iter_table, read_table

_TARS_AT_ONCE = 4
_ROWS_AT_ONCE = 2**18
_COMPARED = [
    "shard",
    "offset",
    "size",
    "crc32c",
    "member",
    "member_offset",
    "member_size",
    "member_sha256",
    "json_sha256",
    "label",
]
_PART_FIELDS = ["series", "shard", "offset", "size", "crc32c"]


@dataclass(frozen=True, kw_only=True)
class _Shard:
    id: str
    url: str
    size: int
    num_samples: int
    series: str


def verify_indexed(url: str, version: Version) -> Iterator[str]:
    """Yield one line per fault of an indexed version whose tables can be read.

    Raises:
        StorageError: a store kept failing.
    """
    names = version.series or ("",)
    try:
        used = _shards_by_series(url, version, names)
    except ValueError as error:
        yield f"samples: {error}"
        return
    series_of = {shard: name for name, shards in used.items() for shard in shards}
    shards = {
        row["shard"]: _Shard(
            id=row["shard"],
            url=storage.join(url, row["url"]),
            size=row["size"],
            num_samples=row["num_samples"],
            series=series_of.get(row["shard"], names[0]),
        )
        for row in read_table(url, version, "shards").to_pylist()
    }
    yield from (f"samples lie in shard {name}, which is not in the table" for name in series_of.keys() - shards.keys())
    yield from (f"{shards[name].url}: no sample lies in it" for name in shards.keys() - series_of.keys())
    with tempfile.TemporaryDirectory() as folder:
        scans: dict[str, list[KeptScan]] = {name: [] for name in names}
        labels = {version.record.get("label_series"): version.record.get("label") or ""}
        calls = (partial(_scan, folder, shard, labels.get(shard.series, "")) for shard in shards.values())
        for shard, found in zip(shards.values(), storage.in_order(_TARS_AT_ONCE, calls), strict=True):
            yield from _shard_faults(shard, found)
            if isinstance(found, KeptScan):
                # Under the name that the rows know it by, whatever is in it now.
                scans[shard.series].append(replace(found, sha256=shard.id))
        urls = {shard.id: shard.url for shard in shards.values()}
        yield from _verify_rows(url, version, scans, urls)


def _shards_by_series(url: str, version: Version, names: Sequence[str]) -> dict[str, set[str]]:
    """Return the shards that samples name, by series.

    Raises:
        ValueError: a sample has too many or too few parts.
    """
    used: dict[str, set[str]] = {name: set() for name in names}
    for table in iter_table(url, version, "samples", ["shard", "parts"]):
        num_parts = pc.fill_null(pc.list_value_length(table["parts"]), 0)
        if not pc.all(pc.equal(num_parts, len(names) - 1)).as_py():
            raise ValueError(f"not every sample has {len(names) - 1} parts, one for each series but the first")
        used[names[0]].update(pc.unique(table["shard"]).to_pylist())
        for number, name in enumerate(names[1:]):
            element = pc.list_element(table["parts"], number)
            used[name].update(pc.unique(pc.struct_field(element, "shard")).to_pylist())
    return used


def _scan(folder: str, shard: _Shard, label: str) -> KeptScan | Faults | None:
    """Read a shard; None where it is missing."""
    try:
        info = storage.stat(shard.url)
    except FileNotFoundError:
        return None
    source = Source(url=shard.url, size=info.size, etag=info.etag)
    return ScanStore(folder).make(source, label, lambda _: None)


def _shard_faults(shard: _Shard, found: KeptScan | Faults | None) -> Iterator[str]:
    if found is None:
        yield f"{shard.url} is missing"
    elif isinstance(found, Faults):
        yield from (f"{shard.url}: {text}" for text in found.told)
    elif found.sha256 != shard.id:
        yield f"{shard.url}: its sha256 is not the recorded one"
    elif found.num_samples != shard.num_samples:
        yield f"{shard.url}: {found.num_samples} samples in it, {shard.num_samples} in the shard's row"


def _verify_rows(
    url: str, version: Version, scans: Mapping[str, Sequence[KeptScan]], urls: Mapping[str, str]
) -> Iterator[str]:
    if not all(scans.values()):
        return
    places = {name: KeyPlaces() for name in scans}
    for name, mine in scans.items():
        for number, scan in enumerate(mine):
            places[name].add(read_scan(scan, ["key"])["key"], number)
        places[name].sort()
    label_series = version.record.get("label_series")
    for table in iter_table(url, version, "samples", ["key", "parts", *_COMPARED]):
        for start in range(0, table.num_rows, _ROWS_AT_ONCE):
            rows = table.slice(start, _ROWS_AT_ONCE).combine_chunks()
            parts = {name: lookup(rows["key"], places[name], mine) for name, mine in scans.items()}
            yield from _compare(rows, parts, label_series, urls)


def _compare(
    rows: pa.Table, parts: Mapping[str, pa.Table], label_series: str | None, urls: Mapping[str, str]
) -> Iterator[str]:
    """Yield a line for each row that is not what its tars hold."""
    images = pc.unique(rows["member"]).to_pylist()
    first = next(iter(parts))
    members = Members.of(parts[first]["members"], f"{first}." if len(parts) > 1 else "")
    whole = members.counts(members.named(images)) == 1
    for table in parts.values():
        whole &= table["key"].is_valid().to_numpy()
    for row in rows.filter(pa.array(~whole)).select(["key", "shard"]).to_pylist():
        url = urls.get(row["shard"], row["shard"])
        yield f"{url}: sample {row['key']} or its image is not there, or not in the shards of its other series"
    chosen = pa.array(whole)
    rows = rows.filter(chosen)
    found = sample_rows({name: table.filter(chosen) for name, table in parts.items()}, images, label_series)
    differs = {name: _differs(rows[name], found[name]) for name in _COMPARED}
    for number, name in enumerate(list(parts)[1:]):
        of_rows, of_tars = (pc.list_element(table["parts"], number) for table in (rows, found))
        for field in _PART_FIELDS:
            differs[f"{field} of {name}"] = _differs(pc.struct_field(of_rows, field), pc.struct_field(of_tars, field))
    for place in np.flatnonzero(np.any(list(differs.values()), axis=0)).tolist():
        columns = ", ".join(name for name, mask in differs.items() if mask[place])
        shard, key = rows["shard"][place].as_py(), rows["key"][place].as_py()
        yield f"{urls.get(shard, shard)}: sample {key}: {columns} in the table differ from the tar"


def _differs(a: pa.ChunkedArray, b: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Return where two columns differ, null being equal to null: bool [N]."""
    one_null = pc.xor(pc.is_null(a), pc.is_null(b))
    differs: NDArray[np.bool_] = pc.or_(one_null, pc.fill_null(pc.not_equal(a, b), False)).to_numpy()
    return differs
