"""Probe many scenes: one Ray task per chunk of the inventory, its result kept under a name made of all its inputs.

So a probe is done once per content: an interrupted run, a later version and a rebuild find it, as long as sizes,
ETags, recipe and tools are the same. Scenes that were rejected for what may pass (PASSING_CODES: missing, unreadable,
too much for the decoder) are the exception: each run looks at them again.
"""

import errno
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingest.access import Place, reach, require_shared
from ingest.config import Recipe, recipe_json
from ingest.reasons import PASSING_CODES, SceneRejectedError
from ingest.sandbox import Decoder, Limits, decoder, faults_named
from ingest.scene_row import from_json, joined_etag, member_of, scene_files, to_json
from ingest.second_look import call_surely
from ingest.sources import rejecting
from ingest.toolchain import require_toolchain
from shards import storage
from shards.commit import encode_table
from shards.schema import INVENTORY, SCENES, canonical_json, sha256_hex

_STATS_AT_ONCE = 32


def probe_chunk(
    out: str, inventory: str, chunk: int, place: Place, recipe: Recipe, limits: Limits, tools: Mapping[str, str]
) -> dict[str, Any]:
    """Probe one row group of an inventory file; return {"url", "num_rows", "reasons"} of the table it is kept in.

    Args:
        out: the dataset.
        inventory: URL of a Parquet file with the columns INVENTORY.
        chunk: number of its row group.
        place: where the paths begin.
        recipe: decides what can be used.
        limits: of the decoder.
        tools: versions that this process must have, too.

    Raises:
        OSError: a scene cannot be reached, or changed meanwhile; a store refuses access.
        RuntimeError: this machine has other tools, or does not have the scenes' folder.
    """
    require_toolchain(tools)
    require_shared(place)
    rows = _read_chunk(inventory, chunk).to_pylist()
    with ThreadPoolExecutor(_STATS_AT_ONCE) as threads:
        rows = list(threads.map(lambda row: _resolved(place, row), rows))
    told = canonical_json({"rows": [to_json(row) for row in rows], "recipe": recipe_json(recipe), "tools": dict(tools)})
    url = storage.join(out, "probes", f"{sha256_hex(told)[:32]}.parquet")
    kept = pq.read_table(pa.BufferReader(storage.read_bytes(url)), use_threads=False) if storage.exists(url) else None
    table = _completed(kept, rows, lambda row: probe_row(decoder(limits), place, row, recipe))
    if kept is None or not table.equals(kept):
        storage.write_bytes(url, encode_table(table))
    reasons = Counter(reason for reason in table["reason"].to_pylist() if reason)
    return {"url": url, "num_rows": table.num_rows, "reasons": dict(reasons)}


def _completed(
    kept: pa.Table | None, rows: Sequence[dict[str, Any]], probe: Callable[[dict[str, Any]], dict[str, Any]]
) -> pa.Table:
    """Return the probes of all rows (SCENES, in their order), of kept ones those that do not pass."""
    passing = np.ones(len(rows), np.bool_)
    if kept is not None:
        assert kept["scene"].to_pylist() == [row["scene"] for row in rows]
        passing = pc.is_in(kept["reason"], pa.array(PASSING_CODES)).to_numpy()
        if not passing.any():
            return kept
    table = pa.Table.from_pylist([probe(rows[place]) for place in np.flatnonzero(passing).tolist()], schema=SCENES)
    if kept is None:
        return table
    order = np.argsort(np.concatenate([np.flatnonzero(passing), np.flatnonzero(~passing)]))
    return pa.concat_tables([table, kept.filter(pa.array(~passing))]).take(pa.array(order)).combine_chunks()


class _Ranged(io.RawIOBase):
    """A stored file that is read by ranges, each of them tried again when the network fails."""

    def __init__(self, url: str) -> None:
        self._url, self._size, self._at = url, storage.stat(url).size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = storage.read_range(self._url, self._at, min(len(buffer), max(0, self._size - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _read_chunk(inventory: str, chunk: int) -> pa.Table:
    with _Ranged(inventory) as file:
        return pq.ParquetFile(file, pre_buffer=True).read_row_group(chunk, columns=INVENTORY.names, use_threads=False)


def _resolved(place: Place, row: dict[str, Any]) -> dict[str, Any]:
    """Look up sizes and ETags, all of a scene's, unless its row and all its files have theirs."""
    files = scene_files(row)
    if row["reason"] or all(each["etag"] and each["size"] is not None for each in (row, *files)):
        return row
    try:
        found = [_stat(place, row, file) for file in files]
    except SceneRejectedError as rejection:
        return row | {"reason": rejection.code, "detail": rejection.detail}
    if not row["files"]:
        return row | {"size": found[0].size, "etag": found[0].etag}
    files = [file | {"size": info.size, "etag": info.etag} for file, info in zip(files, found, strict=True)]
    return row | {"files": files, "size": sum(info.size for info in found), "etag": joined_etag(files)}


def _stat(place: Place, row: Mapping[str, Any], file: Mapping[str, Any]) -> storage.FileInfo:
    url = place.url(row["archive"] or file["path"])
    with rejecting(url):
        return storage.stat_member(url, member_of(row, file)) if row["archive"] else storage.stat(url)


def probe_row(decode: Decoder, place: Place, row: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Return a row of the inventory with what its probe found: the columns SCENES, `reason` null if usable.

    Raises:
        OSError: the scene cannot be reached, or changed meanwhile.
    """
    if row["reason"]:
        return row | {"state": "rejected"}
    try:
        _require_regular(place, row)
        # Members of archives are unpacked; remote files are probed by ranges.
        with reach(place, row, whole=False) as access:
            request = {"files": access.files, "scene": to_json(row), "recipe": recipe_json(recipe)}
            with faults_named(str(row["path"])):
                found = call_surely(decode, "probe", request, access)
    except SceneRejectedError as rejection:
        return row | {"state": "rejected", "reason": rejection.code, "detail": rejection.detail}
    return row | from_json(found) | {"state": "used"}


def _require_regular(place: Place, row: Mapping[str, Any]) -> None:
    """Reject what is no regular file: reading a pipe would wait for ever."""
    if row["archive"]:
        return
    for file in scene_files(row):
        url = place.url(file["path"])
        if not storage.is_local(url):
            continue
        path = storage.local_path(url)
        try:
            if path.exists() and not path.is_file():
                raise SceneRejectedError("not_a_raster", "not a regular file")
        except PermissionError as error:
            raise SceneRejectedError("unreadable", "permission denied") from error
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # all else is the disk's fault
                raise
            raise SceneRejectedError("missing", "too long a name") from error
        if not path.exists():
            raise SceneRejectedError("missing", "cannot be opened")
