"""Consecutive rows of a dataset as one piece of bytes: where each lies in it, and how it comes from the shards.

For each series of shards the bytes of the rows follow one another. Rows that lie together come in one request; those
of a selection, with gaps, in several, see `requests`. Memory: one answer at a time, at most the piece's own size, or
16 MiB where gaps are read too.
"""

from collections.abc import Iterator

import numpy as np

from shards import storage
from shards.dataset import Dataset
from shards.errors import UserError
from shards.streaming.requests import Ints, make_requests
from shards.tar import BLOCK


def num_bytes(dataset: Dataset, first_row: int, end_row: int) -> int:
    """Return the size of the rows from one to the one before another, all series together."""
    return sum(int(rows.units_P[first_row:end_row].sum()) for rows in (dataset.rows, *dataset.parts)) * BLOCK


def starts(dataset: Dataset, first_row: int, end_row: int) -> list[Ints]:
    """Return where each row's bytes begin in the piece, and where the last one ends, in each series: int64 [P + 1]."""
    found, before = [], 0
    for rows in (dataset.rows, *dataset.parts):
        units = rows.units_P[first_row:end_row].astype(np.int64)
        found.append((before + np.append(0, np.cumsum(units))) * BLOCK)
        before += int(units.sum())
    return found


def fetch(dataset: Dataset, first_row: int, end_row: int) -> Iterator[tuple[int, memoryview]]:
    """Yield (offset in the piece, bytes) until the whole piece has come.

    Raises:
        UserError: a shard is missing, has changed, or may not be read.
        StorageError: the store kept failing.
    """
    shards, offsets, sizes, positions = _ranges(dataset, first_row, end_row)
    requests = make_requests(shards, offsets, sizes)
    members = np.searchsorted(requests.of_ranges, np.arange(len(requests.sizes) + 1)).tolist()
    ranges = list(zip(offsets.tolist(), sizes.tolist(), positions.tolist(), strict=True))
    asked = zip(*(column.tolist() for column in requests[:3]), strict=True)
    for (shard, start, size), first, end in zip(asked, members[:-1], members[1:], strict=True):
        url = dataset.shards[shard].url
        with storage.user_errors(url):
            try:
                dataset.require_unchanged(shard)
                body = _read(url, start, size)
            except FileNotFoundError as error:
                told = f"{url}: not there (some of samples {first_row} to {end_row - 1} lie in it)"
                raise UserError(f"{told}; restore it or rebuild the dataset") from error
        for offset, length, position in ranges[first:end]:
            yield position, body[offset - start : offset - start + length]


def _read(url: str, start: int, size: int) -> memoryview:
    body = memoryview(storage.read_range(url, start, size))
    if len(body) != size:
        raise UserError(f"{url} changed: it ends before byte {start + size}; restore it or index it again")
    return body


def _ranges(dataset: Dataset, first_row: int, end_row: int) -> tuple[Ints, Ints, Ints, Ints]:
    """Return shard, offset there, size and offset in the piece of what to take, by shard and offset; int64 [I]."""
    columns, before = [], 0
    for rows in (dataset.rows, *dataset.parts):
        shards, offsets, sizes = rows.extents(first_row, end_row)
        ends = np.cumsum(sizes)
        # Neighbours in both are one range.
        apart = (shards[1:] != shards[:-1]) | (offsets[1:] != offsets[:-1] + sizes[:-1])
        starts = np.append(0, 1 + np.flatnonzero(apart))
        columns.append(
            (shards[starts], offsets[starts], np.add.reduceat(sizes, starts), before + (ends - sizes)[starts])
        )
        before += int(ends[-1])
    found = [np.concatenate(column) for column in zip(*columns, strict=True)]
    by_place = np.lexsort((found[1], found[0]))
    shards, offsets, sizes, positions = (column[by_place] for column in found)
    return shards, offsets, sizes, positions
