"""Which ranges of a shard come in one request: decided here alone, for the transfer and for the plan of it.

A request costs more than bytes: 10 ms are half a megabyte at 50 MB/s. So the bytes between two ranges are read along
and thrown away, but never more of them than 64 KiB at a time, nor in all more than a request has useful bytes before
them: at most half of what comes is thrown away, whatever a selection left of the shards.

Cost: 10 µs for each range of the piece that has most of them; besides, 0.3 µs per range of all pieces.

Sizes: I ranges, Q pieces, R requests.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.dataset import Dataset
from shards.rows import Rows
from shards.storage.reading import GAP_BYTES, JOINED_BYTES

Ints = NDArray[np.int64]

_ROWS_AT_ONCE = 2**20


class Requests(NamedTuple):
    """What is asked for: int64 arrays [R], and which range comes with which."""

    groups: Ints
    offsets: Ints
    sizes: Ints
    """Bytes, with what is thrown away."""
    of_ranges: Ints
    """The request that each range comes with, int64 [I]."""


def make_requests(groups: Ints, offsets: Ints, sizes: Ints) -> Requests:
    """Put ranges together into requests.

    What follows without a gap always comes along. A gap is read along if it is at most `GAP_BYTES`, if all gaps of the
    request up to it are at most as large as its ranges before it, and if the request stays within `JOINED_BYTES`.

    Args:
        groups: int64 [I], ascending: ranges of one group may share a request (those of a shard, say).
        offsets: bytes, int64 [I], ascending in each group.
        sizes: bytes, above 0, int64 [I].
    """
    ends = offsets + sizes
    apart = np.append(True, (groups[1:] != groups[:-1]) | (offsets[1:] != ends[:-1]))[: len(groups)]
    starts = np.flatnonzero(apart)
    lasts = np.append(starts[1:], len(groups))[: len(starts)] - 1
    begins = _begins(groups[starts], offsets[starts], ends[lasts])
    firsts = np.flatnonzero(begins)
    stretches = np.append(firsts[1:], len(starts))[: len(firsts)] - 1
    first, last = starts[firsts], lasts[stretches]
    of_ranges = np.cumsum(begins)[np.cumsum(apart) - 1] - 1
    return Requests(groups[first], offsets[first], ends[last] - offsets[first], of_ranges)


def _begins(groups: Ints, offsets: Ints, ends: Ints) -> NDArray[np.bool_]:
    """Return which ranges a request begins with, bool [I]; all groups are gone through at the same time."""
    begins = np.ones(len(groups), bool)
    # A gap that is too large in any case divides a group: fewer turns, each of more of them. So do ranges that overlap.
    gaps = offsets[1:] - ends[:-1]
    divided = np.append(True, (groups[1:] != groups[:-1]) | (gaps > GAP_BYTES) | (gaps < 0))[: len(groups)]
    firsts = np.flatnonzero(divided)
    counts = np.diff(firsts, append=len(groups))
    longest_first = np.argsort(-counts, kind="stable")
    firsts, counts = firsts[longest_first], counts[longest_first]
    start, used = offsets[firsts], ends[firsts] - offsets[firsts]
    for turn in range(1, int(counts.max(initial=0))):
        num_left = int(np.searchsorted(-counts, -turn))
        here = firsts[:num_left] + turn
        offset, end, start, used = offsets[here], ends[here], start[:num_left], used[:num_left]
        joined = (offset - start <= 2 * used) & (end - start <= JOINED_BYTES)
        begins[here] = ~joined
        start, used = np.where(joined, start, offset), np.where(joined, used, 0) + end - offset
    return begins


class PieceTraffic(NamedTuple):
    """What the fetch of each piece takes: int64 arrays [Q]."""

    num_bytes: Ints
    num_requests: Ints


def piece_traffic(dataset: Dataset, first_rows: Ints, end_rows: Ints) -> PieceTraffic:
    """Return what is read of the shards for each of several pieces: what `transfer.fetch` does, foretold.

    Args:
        dataset: of the pieces.
        first_rows: int64 [Q], ascending.
        end_rows: the row after the last of each, int64 [Q]; at most the first row of the next piece.
    """
    num_bytes, num_requests = np.zeros(len(first_rows), np.int64), np.zeros(len(first_rows), np.int64)
    for first, end in _runs(first_rows, end_rows):
        cuts = np.append(first_rows[first:end], end_rows[end - 1])
        columns = [_ranges(rows, cuts) for rows in (dataset.rows, *dataset.parts)]
        pieces, shards, offsets, sizes = (np.concatenate(column) for column in zip(*columns, strict=True))
        by_place = np.lexsort((offsets, shards, pieces))
        groups = pieces * len(dataset.shards) + shards
        found = make_requests(groups[by_place], offsets[by_place], sizes[by_place])
        of_piece = first + found.groups // len(dataset.shards)
        np.add.at(num_bytes, of_piece, found.sizes)
        np.add.at(num_requests, of_piece, 1)
    return PieceTraffic(num_bytes, num_requests)


def _runs(first_rows: Ints, end_rows: Ints) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of runs of pieces that lie one behind the other; of about a million rows, or one piece."""
    if not len(first_rows):
        return
    part = first_rows // _ROWS_AT_ONCE
    anew = (first_rows[1:] != end_rows[:-1]) | (part[1:] != part[:-1])
    bounds = [0, *(1 + np.flatnonzero(anew)).tolist(), len(first_rows)]
    yield from pairwise(bounds)


def _ranges(rows: Rows, cuts: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """Return (number of the piece, shard, offset, size) of the stretches of one series, cut into pieces."""
    first_rows, shards, offsets, sizes = rows.stretches(cuts)
    return np.searchsorted(cuts, first_rows, "right") - 1, shards, offsets, sizes
