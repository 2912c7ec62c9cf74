"""Scans of tars, kept as files until all of them are there: what an interrupted run need not read again.

Of each tar a Parquet file with a row per sample, then a marker (JSON) that names its sha256: without the marker
nothing was done. The names come from the tar's URL, size and ETag (or time), so that a changed tar has no scan.

Memory: of a local tar 4 MiB, of a remote one 5 pieces of 8 MiB, plus what `scan` says. About 100 bytes on
disk per sample of two members.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from shards import storage
from shards.commit import encode_table
from shards.indexing.faults import Faults
from shards.indexing.scan import scan_tar
from shards.indexing.sources import Source
from shards.schema import canonical_json, sha256_hex
from shards.storage.reading import FETCH_BYTES, FETCHES_AT_ONCE

FOLDER = "index"
"""Of the dataset, where scans lie while it is being made."""
_LOCAL_BYTES = 4 * 2**20
# Counts with every change of what a scan holds, so that older ones are made again.
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class KeptScan:
    """What is known of a tar that was read, its samples in a table of their own."""

    table: str
    """URL of the table (SCANNED)."""
    table_sha256: str
    sha256: str
    """Of the tar, hex."""
    num_samples: int
    num_passed_over: int
    passed_over: str = ""
    """Name of the first of these members; empty also where an earlier version of this code kept the scan."""


class ScanStore:
    """Scans in the folder `index` of a dataset."""

    def __init__(self, url: str) -> None:
        """Find what is there: one listing."""
        self._folder = storage.child(url, FOLDER)
        self._there: set[str] = set()
        if storage.exists(self._folder):
            self._there = {info.path for info in storage.iter_files(self._folder)}

    def get(self, source: Source, label: str) -> KeptScan | None:
        """Return the scan of a tar if it was made before."""
        name = _name(source, label)
        if f"{name}.json" not in self._there or f"{name}.parquet" not in self._there:
            return None
        marker = json.loads(storage.read_bytes(self._url(name, "json")))
        return KeptScan(table=self._url(name, "parquet"), **marker)

    def make(self, source: Source, label: str, on_bytes: Callable[[int], None]) -> KeptScan | Faults:
        """Read a tar and keep what is in it; what cannot be used is told and not kept.

        Args:
            source: the tar.
            label: extension of the member that holds the label; empty: none.
            on_bytes: is told how many bytes were read, piece by piece.

        Raises:
            StorageError: the store kept failing.
        """
        with storage.user_errors(source.url):
            scan = scan_tar(_watched(_pieces(source), on_bytes), label)
            found = storage.stat(source.url)
        if (scan.size, found.size, found.etag) != (source.size, source.size, source.etag):
            # Whatever else is wrong with it may come from that.
            changed = Faults()
            changed.add("changed while it was being read: run again when nobody writes it")
            return changed
        if scan.faults.count:
            return scan.faults
        name, data = _name(source, label), encode_table(scan.samples)
        storage.write_bytes(self._url(name, "parquet"), data)
        kept = KeptScan(
            table=self._url(name, "parquet"),
            table_sha256=sha256_hex(data),
            sha256=scan.sha256,
            num_samples=scan.samples.num_rows,
            num_passed_over=scan.num_passed_over,
            passed_over=scan.passed_over,
        )
        marker = {key: value for key, value in asdict(kept).items() if key != "table"}
        storage.write_bytes(self._url(name, "json"), canonical_json(marker))
        return kept

    def remove(self, scans: Sequence[KeptScan]) -> None:
        """Remove scans that are needed no more, markers first."""
        tables = [scan.table for scan in scans]
        for urls in ([f"{table.removesuffix('.parquet')}.json" for table in tables], tables):
            for _ in storage.in_order(FETCHES_AT_ONCE, (partial(storage.remove, url) for url in urls)):
                pass
        storage.remove_empty_folder(self._folder)

    def _url(self, name: str, suffix: str) -> str:
        return storage.child(self._folder, f"{name}.{suffix}")


def read_scan(scan: KeptScan, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the samples of a tar, all columns by default.

    Raises:
        OSError: the table is not the one that was written.
    """
    data = storage.read_bytes(scan.table)
    if sha256_hex(data) != scan.table_sha256:
        raise OSError(f"{scan.table} is damaged: remove it and run again")
    return pq.read_table(pa.BufferReader(data), columns=columns, use_threads=False).combine_chunks()


def _name(source: Source, label: str) -> str:
    identity = {"format": _FORMAT, "url": source.url, "size": source.size, "etag": source.etag, "label": label}
    return sha256_hex(canonical_json(identity))[:32]


def _pieces(source: Source) -> Iterator[bytes]:
    if storage.is_local(source.url):
        with storage.local_path(source.url).open("rb") as file:
            while piece := file.read(_LOCAL_BYTES):
                yield piece
        return
    starts = range(0, source.size, FETCH_BYTES)
    calls = (partial(storage.read_range, source.url, start, min(FETCH_BYTES, source.size - start)) for start in starts)
    yield from storage.in_order(FETCHES_AT_ONCE, calls)


def _watched(pieces: Iterator[bytes], on_bytes: Callable[[int], None]) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        on_bytes(len(piece))
