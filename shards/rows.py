"""Where every sample lies, for tables of many million rows: 6 bytes per sample, shared by all processes of a machine.

Tar members begin at multiples of 512 bytes, so offsets and sizes are kept in such units: a size in 16 bits (in 32 where
a sample has 32 MiB or more). An offset is kept once per stretch, that is up to 64 rows which lie one behind the other;
a selection has more and shorter ones, of 16 bytes each. Finding a place costs 2 µs.

Sent to a worker process that is being started, a large table is not copied, see `shards.handover`.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from shards.handover import Arrays, Room, Span
from shards.tar import BLOCK

Ints = NDArray[np.int64]

_WORD_BYTES = 4
_UNITS = 2**32
_UNIT_BITS = BLOCK.bit_length() - 1
_STRETCH_ROWS = 64
_CHUNK_ROWS = 2**13  # worked on at a time: intermediate arrays stay in the cache, and malloc maps none anew


class Place(NamedTuple):
    """Where one sample lies."""

    shard: int
    """Number of the shard, in the order of the names given."""
    offset: int
    """Byte."""
    size: int
    """Bytes."""
    crc32c: int


class Rows:
    """Places of the samples in one series of shards, by row of the samples table."""

    def __init__(self, run_starts_R: Ints, arrays: Arrays) -> None:
        """Take what `read_rows` makes.

        Args:
            run_starts_R: first row of each run, that is rows of one shard with rising offsets; int64.
            arrays: checksum (uint32) and size in units (uint16 or uint32) of each sample; first row (int64), shard
                (int32) and offset in units (uint32) of each stretch.
        """
        self.run_starts_R = run_starts_R
        self._arrays = arrays
        self._crcs_P, self.units_P, self._first_rows, self._shards, self._offsets = arrays.values
        # For single places: views give Python's numbers, many times as fast as arrays do.
        self._views = [each.data for each in arrays.values]

    def __len__(self) -> int:
        return len(self.units_P)

    def __reduce__(self) -> tuple[type["Rows"], tuple[Any, ...]]:
        return Rows, (self.run_starts_R, self._arrays)

    def place(self, row: int) -> Place:
        """Return where a row's sample lies."""
        crcs_P, units_P, first_rows, shards, offsets = self._views
        stretch = bisect_right(first_rows, row) - 1
        offset = offsets[stretch] + sum(units_P[first_rows[stretch] : row])
        return Place(shards[stretch], offset * BLOCK, units_P[row] * BLOCK, crcs_P[row])

    def places(self, rows: Sequence[int]) -> list[Place]:
        """Return where the samples of several rows lie: 25 µs, and 0.6 µs for each, a sixth of what `place` takes."""
        rows_I = np.array(rows, np.int64)
        stretches = np.searchsorted(self._first_rows, rows_I, "right") - 1
        sizes = self.units_P[rows_I].astype(np.int64) * BLOCK
        ends = self._offsets[stretches] * np.int64(BLOCK) + self.num_bytes(self._first_rows[stretches], rows_I + 1)
        columns = self._shards[stretches], ends - sizes, sizes, self._crcs_P[rows_I]
        return list(map(Place, *(column.tolist() for column in columns)))

    def extents(self, first: int, end: int) -> tuple[Ints, Ints, Ints]:
        """Return (shard, offset, size) of each row from one to the one before another, in bytes, int64 [P]."""
        stretches = np.searchsorted(self._first_rows, np.arange(first, end), "right") - 1
        begin = int(self._first_rows[stretches[0]]) if len(stretches) else first
        units = self.units_P[begin:end].astype(np.int64)
        before = np.cumsum(units) - units
        offsets = self._offsets[stretches] + before[first - begin :] - before[self._first_rows[stretches] - begin]
        return self._shards[stretches].astype(np.int64), offsets * BLOCK, units[first - begin :] * BLOCK

    def num_bytes(self, first_rows: Ints, end_rows: Ints) -> Ints:
        """Return the size of the samples from one row to the one before another, int64 [I]; each below 2 TiB.

        Args:
            first_rows: int64 [I].
            end_rows: int64 [I], each above its first row.
        """
        by_row = np.argsort(first_rows, kind="stable")
        first, last = first_rows[by_row], end_rows[by_row] - 1
        between = np.add.reduceat(self.units_P, np.stack([first, last], 1).ravel(), dtype=np.uint32)[::2]
        units = np.empty(len(first), np.int64)
        units[by_row] = np.where(first < last, between + self.units_P[last], between)
        return units * BLOCK

    def stretches(self, cuts: Ints) -> tuple[Ints, Ints, Ints, Ints]:
        """Return (first row, shard, offset, size) of stretches of rows that lie together, in bytes, int64 [I].

        Args:
            cuts: rows, ascending: what is from the first to before the last is returned, and cut at all between.
        """
        low = int(np.searchsorted(self._first_rows, cuts[0], "right")) - 1
        own = self._first_rows[low : int(np.searchsorted(self._first_rows, cuts[-1]))]
        starts = np.sort(np.concatenate([own, cuts[:-1]]), kind="stable")
        starts = starts[np.diff(starts, prepend=-1) > 0]
        units = np.add.reduceat(self.units_P[own[0] : cuts[-1]], starts - own[0], dtype=np.uint32).astype(np.int64)
        before = np.cumsum(units) - units
        stretch = np.searchsorted(own, starts, "right") - 1
        offsets = self._offsets[low + stretch] + before - before[np.searchsorted(starts, own)][stretch]
        chosen = starts >= cuts[0]
        shards = self._shards[low + stretch].astype(np.int64)
        return starts[chosen], shards[chosen], offsets[chosen] * BLOCK, units[chosen] * BLOCK


def read_rows(tables: Iterable[pa.Table], num_rows: int, shard_names: Sequence[str]) -> Rows:
    """Make rows from the columns shard, offset, size, crc32c.

    Args:
        tables: of these columns, piece by piece: only one is held at a time.
        num_rows: of all of them.
        shard_names: the shards' ids.

    Raises:
        ValueError: a shard is unknown, an offset or size no multiple of 512 or too large, or rows are too many or few.
    """
    made = _RowsSoFar(num_rows)
    numbers = {name: number for number, name in enumerate(shard_names)}
    for table in tables:
        if made.num_rows + table.num_rows > num_rows:
            raise ValueError(f"more than the {num_rows} samples announced")
        columns = _codes(table["shard"], numbers), *(_values(table[name]) for name in ("offset", "size", "crc32c"))
        for first in range(0, table.num_rows, _CHUNK_ROWS):
            made.add(*(column[first : first + _CHUNK_ROWS] for column in columns))
    if made.num_rows != num_rows:
        raise ValueError(f"{made.num_rows} samples instead of the {num_rows} announced")
    return made.rows()


def _codes(column: pa.ChunkedArray, numbers: Mapping[str, int]) -> NDArray[np.int32]:
    """Return the number of each row's shard."""
    chunks = []
    for chunk in column.chunks:
        coded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
        known = np.array([numbers.get(name, -1) for name in coded.dictionary.to_pylist()], np.int32)
        if (known < 0).any():
            raise ValueError("samples in a shard that the shards table lacks")
        chunks.append(known[_values(coded.indices)])
    return np.concatenate([np.zeros(0, np.int32), *chunks])


def _values(column: pa.ChunkedArray | pa.Array) -> NDArray[Any]:
    """Return the numbers of a column."""
    array = column if isinstance(column, pa.Array) else column.combine_chunks()
    if array.null_count:
        raise ValueError("a sample without a place")
    # Arrow's own to_numpy imports pandas: 0.3 s and 20 MB in every process.
    values: NDArray[Any] = np.from_dlpack(array)
    return values


def _in_units(values: NDArray[Any]) -> NDArray[Any]:
    # One pass finds a value with a bit that none may have: below a unit, above the range, or the sign.
    bits = int(np.bitwise_or.reduce(values))
    if bits % BLOCK or not 0 <= bits < _UNITS * BLOCK:
        raise ValueError(f"an offset or size is no multiple of {BLOCK} in 0 to {_UNITS * BLOCK}")
    return values >> _UNIT_BITS


class _RowsSoFar:
    """Rows of a table that comes piece by piece."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = 0
        # Sizes have room for 32 bits: what 16 leave empty costs nothing.
        self._room = Room(2 * num_rows * _WORD_BYTES)
        words = self._room.buffer.view(np.uint32)
        self._crcs_P, self._wide_units_P = words[:num_rows], words[num_rows:]
        self._units_P: NDArray[Any] = self._wide_units_P.view(np.uint16)[:num_rows]
        self._run_starts: list[Ints] = []
        self._first_rows: list[Ints] = []
        self._shards: list[NDArray[np.int32]] = []
        self._offsets: list[NDArray[np.int64]] = []
        self._last = -1, -1, -1

    def add(self, codes: NDArray[np.int32], offsets: Ints, sizes: NDArray[np.int32], crcs: NDArray[np.uint32]) -> None:
        """Add some rows: number of the shard, byte, bytes and checksum of each."""
        here = slice(self.num_rows, self.num_rows + len(codes))
        offsets, units = _in_units(offsets), _in_units(sizes)
        if len(units) and units.max() > np.iinfo(self._units_P.dtype).max:
            self._widen()
        self._units_P[here] = units
        self._crcs_P[here] = crcs
        self._cut(codes, offsets, offsets + units)
        self.num_rows = here.stop

    def _widen(self) -> None:
        so_far = self._units_P[: self.num_rows].copy()
        self._units_P = self._wide_units_P
        self._units_P[: self.num_rows] = so_far

    def _cut(self, codes: NDArray[np.int32], offsets: Ints, ends: Ints) -> None:
        before_code, before_offset, before_end = self._last
        other_shard = np.append(codes[0] != before_code, codes[1:] != codes[:-1])
        apart = other_shard | np.append(offsets[0] != before_end, offsets[1:] != ends[:-1])
        apart[-self.num_rows % _STRETCH_ROWS :: _STRETCH_ROWS] = True
        starts = np.flatnonzero(apart)
        self._first_rows.append(self.num_rows + starts)
        self._shards.append(codes[starts])
        self._offsets.append(offsets[starts])
        begins_run = other_shard | np.append(offsets[0] <= before_offset, offsets[1:] <= offsets[:-1])
        self._run_starts.append(self.num_rows + np.flatnonzero(begins_run))
        self._last = int(codes[-1]), int(offsets[-1]), int(ends[-1])

    def rows(self) -> Rows:
        """Return them all."""
        stretches = [
            _join(self._first_rows, np.int64),
            _join(self._shards, np.int32),
            _join(self._offsets, np.uint32),
        ]
        crcs = Span(0, self.num_rows, self._crcs_P.dtype)
        units = Span(crcs.end, self.num_rows, self._units_P.dtype)
        return Rows(_join(self._run_starts, np.int64), self._room.close([crcs, units], stretches))


def _join(parts: Sequence[NDArray[Any]], dtype: DTypeLike) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *parts], dtype=dtype, casting="unsafe")
