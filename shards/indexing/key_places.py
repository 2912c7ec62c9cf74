"""Which tar of a series holds which key, for series of many million samples.

Keys are found by 64-bit hashes and then compared themselves. Memory: 12 bytes per key, 40 while they are sorted; what
is looked up is read from the scans again.
"""

from collections.abc import Iterator, Sequence

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shards.indexing.faults import MAX_TOLD, Faults
from shards.indexing.scan_store import KeptScan, read_scan

Hashes = NDArray[np.uint64]
_NUM_EXAMPLES = 3


class KeyPlaces:
    """Hashes of a series' keys, ascending, each with the number of its tar."""

    def __init__(self) -> None:
        self._hashes: list[Hashes] = []
        self._tars: list[NDArray[np.int32]] = []
        self.hashes_N = np.empty(0, np.uint64)
        self.tars_N = np.empty(0, np.int32)

    def add(self, keys: pa.ChunkedArray, tar: int) -> None:
        """Take the keys of one tar."""
        self._hashes.append(key_hashes(keys))
        self._tars.append(np.full(len(keys), tar, np.int32))

    def sort(self) -> None:
        """Make ready for the questions below, after the last `add`."""
        hashes = np.concatenate([self.hashes_N, *self._hashes])
        self._hashes = []
        order = np.argsort(hashes, kind="stable")
        self.hashes_N = hashes[order]
        self.tars_N = np.concatenate([self.tars_N, *self._tars])[order]
        self._tars = []

    def find(self, keys: pa.ChunkedArray) -> NDArray[np.int32]:
        """Return the tar that may hold each key, -1 where none does: int32 [N]."""
        wanted = key_hashes(keys)
        if not len(self.hashes_N):
            return np.full(len(wanted), -1, np.int32)
        places = np.minimum(np.searchsorted(self.hashes_N, wanted), len(self.hashes_N) - 1)
        return np.where(self.hashes_N[places] == wanted, self.tars_N[places], np.int32(-1))

    def repeated(self) -> Hashes:
        """Return the hashes that occur more than once, ascending."""
        return np.unique(self.hashes_N[1:][self.hashes_N[1:] == self.hashes_N[:-1]])

    def lacking(self, other: "KeyPlaces") -> Hashes:
        """Return the hashes of another series that this one lacks, ascending."""
        return np.setdiff1d(other.hashes_N, self.hashes_N)

    def tars_with(self, hashes: Hashes) -> NDArray[np.int32]:
        """Return the numbers of the tars that hold any of these hashes, ascending."""
        first = np.searchsorted(self.hashes_N, hashes)
        after = np.searchsorted(self.hashes_N, hashes, "right")
        runs = [self.tars_N[start:end] for start, end in zip(first, after, strict=True)]
        return np.unique(np.concatenate([np.empty(0, np.int32), *runs]))


def key_hashes(keys: pa.ChunkedArray) -> Hashes:
    """Return a hash of each key, uint64 [N]; not the same in other versions of DuckDB."""
    with duckdb.connect(":memory:", config={"threads": "1"}) as database:
        database.register("sample", pa.table({"key": keys}))
        found: Hashes = database.execute("SELECT hash(key) AS number FROM sample").fetchnumpy()["number"]
    return found


def find_repeated_keys(places: KeyPlaces, scans: Sequence[KeptScan], urls: Sequence[str], faults: Faults) -> None:
    """Tell keys that occur in more than one tar of a series (within one tar, its scan has told them)."""
    repeated = places.repeated()
    shown = repeated[:MAX_TOLD]
    numbers: dict[str, list[int]] = {}
    for number, keys in _keys_with(shown, places, scans):
        for key in keys:
            numbers.setdefault(key, []).append(number)
    told = [(key, found) for key, found in numbers.items() if len(found) > 1]
    texts = [f"key {key!r} is in {urls[found[0]]} and again in {urls[found[1]]}" for key, found in told]
    # Two keys with one hash are no fault; among so few they are seen.
    faults.add_many(texts, len(texts) + len(repeated) - len(shown))


def find_lacking_keys(
    name: str, places: KeyPlaces, other_name: str, other: KeyPlaces, scans: Sequence[KeptScan], faults: Faults
) -> None:
    """Tell what keys a series lacks of another, whose scans are given: a line with their count and the first few."""
    lacking = places.lacking(other)
    if len(lacking):
        examples = sorted(key for _, keys in _keys_with(lacking[:_NUM_EXAMPLES], other, scans) for key in keys)
        more = ", …" if len(lacking) > len(examples) else ""
        faults.add(
            f"series {name!r} lacks {len(lacking)} keys that {other_name!r} has: "
            f"{', '.join(map(repr, examples))}{more}; give tars with equal keys, or index the series one by one"
        )


def _keys_with(hashes: Hashes, places: KeyPlaces, scans: Sequence[KeptScan]) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of the tar, its keys that have one of the hashes)."""
    for number in places.tars_with(hashes).tolist():
        keys = read_scan(scans[number], ["key"])["key"]
        yield number, keys.filter(pa.array(np.isin(key_hashes(keys), hashes))).to_pylist()


def lookup(keys: pa.ChunkedArray, places: KeyPlaces, scans: Sequence[KeptScan]) -> pa.Table:
    """Return the scanned samples with these keys, row by row, and a column shard; nulls where there is none.

    Each tar's scan is read once, so it costs little where neighbouring keys lie in few tars.
    """
    keys = keys.combine_chunks()
    numbers_N = places.find(keys)
    rows_N = np.full(len(keys), -1, np.int64)
    tables, num_rows = [], 0
    for number in np.unique(numbers_N[numbers_N >= 0]).tolist():
        mine = np.flatnonzero(numbers_N == number)
        scan = read_scan(scans[number])
        rows = pc.index_in(keys.take(pa.array(mine)), value_set=scan["key"])
        there = rows.is_valid().to_numpy(zero_copy_only=False)
        found = scan.take(rows.drop_null())
        rows_N[mine[there]] = num_rows + np.arange(found.num_rows)
        num_rows += found.num_rows
        tables.append(with_shard(found, scans[number]))
    if not tables:
        tables = [with_shard(read_scan(scans[0]).slice(0, 0), scans[0])]
    return pa.concat_tables(tables).combine_chunks().take(pa.array(rows_N, mask=rows_N < 0))


def with_shard(samples: pa.Table, scan: KeptScan) -> pa.Table:
    """Return scanned samples with a column shard: the id of their tar."""
    return samples.append_column("shard", pa.repeat(pa.scalar(scan.sha256, pa.string()), samples.num_rows))
