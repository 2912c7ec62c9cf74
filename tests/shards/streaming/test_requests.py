"""Requests: every range comes, little is thrown away, and the plan of them is what the transfer does."""

import itertools
import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shards import storage
from shards.storage.reading import GAP_BYTES, JOINED_BYTES
from shards.streaming import requests, transfer
from shards.streaming.requests import make_requests, piece_traffic
from tests.shards.streaming.shards_of_bytes import BLOCK, Shards, series

ranges = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 0, 0, 1]),
        st.one_of(st.just(0), st.integers(0, 8), st.sampled_from([GAP_BYTES // BLOCK, GAP_BYTES // BLOCK + 1])),
        st.one_of(st.integers(1, 5), st.integers(100, 200), st.just(JOINED_BYTES // BLOCK)),
    ),
    max_size=40,
)


def columns_of(ranges):
    """Return groups, offsets and sizes of ranges that are given as (next group?, gap before it, size)."""
    groups, offsets, end = [], [], 0
    for step, gap, size in ranges:
        groups.append((groups[-1] if groups else 0) + step)
        offsets.append(end + gap * BLOCK)
        end = offsets[-1] + size * BLOCK
    columns = groups, offsets, [size * BLOCK for _, _, size in ranges]
    return [np.array(column, np.int64) for column in columns]


def one_by_one(groups, offsets, sizes):
    """Return (group, offset, size, ranges) of the requests, by the rule as it is told, a range at a time."""
    runs, found = [], []
    for index, (group, offset, size) in enumerate(zip(groups, offsets, sizes, strict=True)):
        if runs and (runs[-1][0], runs[-1][1] + runs[-1][2]) == (group, offset):
            runs[-1][2] += size
            runs[-1][3].append(index)
        else:
            runs.append([group, offset, size, [index]])
    for group, offset, size, members in runs:
        if found and found[-1]["group"] == group:
            last = found[-1]
            gap, length = offset - last["offset"] - last["size"], offset + size - last["offset"]
            thrown = last["size"] - last["used"] + gap
            if gap <= GAP_BYTES and thrown <= last["used"] and length <= JOINED_BYTES:
                last.update(size=length, used=last["used"] + size, members=last["members"] + members)
                continue
        found.append({"group": group, "offset": offset, "size": size, "used": size, "members": members})
    return found


@given(ranges)
def test_requests_are_those_of_the_rule_and_hold_every_range(ranges):
    groups, offsets, sizes = columns_of(ranges)
    found = make_requests(groups, offsets, sizes)
    expected = one_by_one(groups.tolist(), offsets.tolist(), sizes.tolist())
    for column, name in zip(found[:3], ("group", "offset", "size"), strict=True):
        assert column.tolist() == [each[name] for each in expected]
    assert found.of_ranges.tolist() == [number for number, each in enumerate(expected) for _ in each["members"]]
    begins, ends = found.offsets[found.of_ranges], (found.offsets + found.sizes)[found.of_ranges]
    assert ((begins <= offsets) & (offsets + sizes <= ends)).all()


@given(ranges)
def test_no_request_throws_away_more_than_it_brings(ranges):
    groups, offsets, sizes = columns_of(ranges)
    found = make_requests(groups, offsets, sizes)
    used = np.bincount(found.of_ranges, sizes, len(found.sizes))
    assert (found.sizes <= 2 * used).all()


def test_small_gaps_do_not_add_up():
    # Each gap is as large as the ranges before it together: the second is one too many.
    assert make_requests(*columns_of([(0, 0, 1), (0, 1, 1), (0, 2, 1)])).sizes.tolist() == [3 * BLOCK, BLOCK]
    assert len(make_requests(*columns_of([(0, 0, 9), (0, 1, 1), (0, 2, 1)])).sizes) == 1


def test_what_overlaps_comes_whole_both_times():
    found = make_requests(np.array([0, 0, 0]), np.array([0, 5, 12]), np.array([10, 2, 4]))
    assert found.of_ranges.tolist() == [0, 1, 2]
    assert (found.offsets.tolist(), found.sizes.tolist()) == ([0, 5, 12], [10, 2, 4])


@given(series, st.integers(0, 2**32).map(random.Random), st.sampled_from([2**20, 7]))
def test_the_plan_is_what_the_transfer_does(series, draws, rows_at_once):
    dataset, count = Shards(series, draws), len(series[0])
    cuts = sorted({0, *draws.sample(range(count), count // 3), count})
    runs = [run for run in itertools.pairwise(cuts) if draws.random() < 0.8]
    first_rows, end_rows = np.array(runs, np.int64).reshape(-1, 2).T
    told = _planned(dataset, first_rows, end_rows, rows_at_once)
    for run, num_bytes, num_requests in zip(runs, *(column.tolist() for column in told), strict=True):
        before = dict(storage.traffic)
        list(transfer.fetch(dataset, *run))
        assert storage.traffic["bytes"] - before["bytes"] == num_bytes
        assert storage.traffic["gets"] - before["gets"] == num_requests


def _planned(dataset, first_rows, end_rows, rows_at_once):
    whole, requests._ROWS_AT_ONCE = requests._ROWS_AT_ONCE, rows_at_once
    try:
        return piece_traffic(dataset, first_rows, end_rows)
    finally:
        requests._ROWS_AT_ONCE = whole
