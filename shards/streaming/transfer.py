"""Consecutive rows of a dataset as one piece of bytes: where each lies in it, and how it comes from the shards.

For each series of shards the bytes of the rows follow one another. Rows that lie together come in one request; those
of a selection, with gaps, in several (near ones are joined, and what lies between them is thrown away). Memory: one
answer at a time, at most the piece's own size, or 16 MiB where gaps are read too.
"""

from collections.abc import Iterator

import numpy as np

from shards import storage
from shards.dataset import Dataset
from shards.errors import UserError
from shards.storage.reading import join_ranges
from shards.tar import BLOCK


def num_bytes(dataset: Dataset, first_row: int, end_row: int) -> int:
    """Return the size of the rows from one to the one before another, all series together."""
    return sum(int(rows.units_P[first_row:end_row].sum()) for rows in (dataset.rows, *dataset.parts)) * BLOCK


def spans(dataset: Dataset, first_row: int, end_row: int, row: int) -> list[tuple[int, int]]:
    """Return (offset, size) of a row's bytes among those of its piece, one for each series."""
    found, before = [], 0
    for rows in (dataset.rows, *dataset.parts):
        units = rows.units_P
        found.append(((before + int(units[first_row:row].sum())) * BLOCK, int(units[row]) * BLOCK))
        if dataset.parts:
            before += int(units[first_row:end_row].sum())
    return found


def fetch(dataset: Dataset, first_row: int, end_row: int) -> Iterator[tuple[int, memoryview]]:
    """Yield (offset in the piece, bytes) until the whole piece has come.

    Raises:
        UserError: a shard is missing, has changed, or may not be read.
        StorageError: the store kept failing.
    """
    for number, places in _places(dataset, first_row, end_row).items():
        url = dataset.shards[number].url
        with storage.user_errors(url):
            try:
                dataset.require_unchanged(number)
                yield from _fetch_from(url, places)
            except FileNotFoundError as error:
                told = f"{url}: not there (some of samples {first_row} to {end_row - 1} lie in it)"
                raise UserError(f"{told}; restore it or rebuild the dataset") from error


def _fetch_from(url: str, places: list[tuple[int, int, int]]) -> Iterator[tuple[int, memoryview]]:
    for (start, size), members in join_ranges([(offset, size) for offset, size, _ in places]):
        body = memoryview(storage.read_range(url, start, size))
        if len(body) != size:
            raise UserError(f"{url} changed: it ends before byte {start + size}; restore it or index it again")
        for offset, length, position in map(places.__getitem__, members):
            yield position, body[offset - start : offset - start + length]


def _places(dataset: Dataset, first_row: int, end_row: int) -> dict[int, list[tuple[int, int, int]]]:
    """Return for each shard what to take from it: (offset there, size, offset in the piece), neighbours joined."""
    places: dict[int, list[tuple[int, int, int]]] = {}
    before = 0
    for rows in (dataset.rows, *dataset.parts):
        shards, offsets, sizes = rows.extents(first_row, end_row)
        ends = np.cumsum(sizes)
        apart = (shards[1:] != shards[:-1]) | (offsets[1:] != offsets[:-1] + sizes[:-1])
        starts = np.append(0, 1 + np.flatnonzero(apart))
        columns = offsets[starts], np.add.reduceat(sizes, starts), before + (ends - sizes)[starts]
        for shard, *place in zip(shards[starts].tolist(), *(column.tolist() for column in columns), strict=True):
            places.setdefault(shard, []).append((place[0], place[1], place[2]))
        before += int(ends[-1])
    return places
