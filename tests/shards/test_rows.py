"""Places of samples: kept in few bytes each, and handed over to workers without a copy."""

import itertools
import multiprocessing
import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.rows import Place, read_rows

NAMES = [f"shard-{number}" for number in range(5)]
BLOCK = 512


def make_table(rows):
    shard, offset, size, crc = zip(*rows, strict=True) if rows else ([], [], [], [])
    columns = {
        "shard": pa.array([NAMES[number] for number in shard], pa.string()),
        "offset": pa.array([value * BLOCK for value in offset], pa.int64()),
        "size": pa.array([value * BLOCK for value in size], pa.int32()),
        "crc32c": pa.array(crc, pa.uint32()),
    }
    return pa.table(columns)


row = st.tuples(st.integers(0, 4), st.integers(0, 2**32 - 1), st.integers(0, 2**20), st.integers(0, 2**32 - 1))


@given(st.lists(st.lists(row, max_size=8), min_size=1, max_size=4))
def test_every_place_comes_back_and_runs_are_of_one_shard(chunks):
    flat = [each for chunk in chunks for each in chunk]
    rows = read_rows([make_table(chunk) for chunk in chunks], len(flat), NAMES)
    assert len(rows) == len(flat)
    found = [rows.place(number) for number in range(len(flat))]
    assert found == [Place(shard, offset * BLOCK, size * BLOCK, crc) for shard, offset, size, crc in flat]
    assert rows.places([]) == []
    assert rows.places([*range(len(flat)), *range(len(flat) - 1, -1, -2)]) == found + found[::-2]
    starts = set(rows.run_starts_R.tolist())
    for number, (before, after) in enumerate(itertools.pairwise(flat), 1):
        assert (number in starts) == (before[0] != after[0] or after[1] <= before[1])


@pytest.mark.parametrize("shared_bytes", [0, 2**20])
def test_sizes_of_more_than_16_bits_widen_what_came_before(monkeypatch, shared_bytes):
    monkeypatch.setattr("shards.handover.SHARED_BYTES", shared_bytes)
    flat = [(0, 0, 3, 1), (0, 3, 2**16 - 1, 2), (1, 9, 2**16, 3), (1, 8, 1, 4), (2, 0, 2**20, 2**32 - 1)]
    for cut in range(6):
        rows = read_rows([make_table(flat[:cut]), make_table(flat[cut:])], len(flat), NAMES)
        assert rows.units_P.dtype == np.uint32
        found = [rows.place(number) for number in range(len(flat))]
        assert found == [Place(shard, offset * BLOCK, size * BLOCK, crc) for shard, offset, size, crc in flat]
        assert rows.places(range(len(flat))) == found
    assert read_rows([make_table(flat[:2])], 2, NAMES).units_P.dtype == np.uint16


@given(st.lists(row, min_size=1, max_size=20), st.data())
def test_bytes_of_runs_of_rows_are_added(flat, data):
    rows = read_rows([make_table(flat)], len(flat), NAMES)
    first_rows = data.draw(st.lists(st.integers(0, len(flat) - 1), min_size=1, max_size=10))
    end_rows = [data.draw(st.integers(first + 1, len(flat))) for first in first_rows]
    found = rows.num_bytes(np.array(first_rows), np.array(end_rows))
    sizes = [size * BLOCK for _, _, size, _ in flat]
    assert found.tolist() == [sum(sizes[first:end]) for first, end in zip(first_rows, end_rows, strict=True)]


step = st.tuples(st.sampled_from([0] * 30 + [1]), st.sampled_from([0] * 20 + [7]), st.integers(1, 3))


@given(st.lists(step, min_size=1, max_size=150), st.data())
def test_stretches_are_the_rows_one_behind_the_other(steps, data):
    ends, flat = [0, 0], []
    for shard, gap, size in steps:
        flat.append((shard, ends[shard] + gap, size, 0))
        ends[shard] += gap + size
    rows = read_rows([make_table(flat)], len(flat), NAMES)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(flat)), min_size=2, max_size=9)))
    first_rows, shards, offsets, sizes = (column.tolist() for column in rows.stretches(np.array(cuts)))
    assert first_rows == sorted({*first_rows, *cuts[:-1]})
    ends = [*first_rows[1:], cuts[-1]]
    for first, end, shard, offset, size in zip(first_rows, ends, shards, offsets, sizes, strict=True):
        for number in range(first, end):
            place = rows.place(number)
            assert (place.shard, place.offset) == (shard, offset)
            offset, size = offset + place.size, size - place.size
        assert size == 0


def test_codes_of_a_dictionary_are_understood():
    table = make_table([(4, 0, 1, 9), (1, 0, 1, 9)])
    coded = table.set_column(0, "shard", table["shard"].dictionary_encode())
    assert [place.shard for place in map(read_rows([coded], 2, NAMES).place, range(2))] == [4, 1]


@pytest.mark.parametrize(
    ("count", "names", "told"),
    [(1, NAMES, "more than the 1"), (3, NAMES, "2 samples instead of the 3"), (2, NAMES[:1], "shards table lacks")],
)
def test_tables_that_do_not_fit_are_refused(count, names, told):
    with pytest.raises(ValueError, match=told):
        read_rows([make_table([(0, 0, 1, 0), (1, 1, 1, 0)])], count, names)


@pytest.mark.parametrize("offset", [511, -512, 512 * 2**32])
def test_places_that_no_tar_has_are_refused(offset):
    table = make_table([(0, 0, 1, 0)]).set_column(1, "offset", pa.array([offset], pa.int64()))
    with pytest.raises(ValueError, match="multiple of 512"):
        read_rows([table], 1, NAMES)


def large_rows():
    count = 600_000
    numbers = np.arange(count)
    columns = {"shard": pa.array(["shard-0"] * count), "offset": numbers * BLOCK, "size": numbers.astype(np.int32) * 0}
    return read_rows([pa.table({**columns, "crc32c": numbers.astype(np.uint32)})], count, NAMES)


def _look(rows, answers):
    answers.put([(each.place(99_999), each._arrays.are_shared) for each in rows])


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_workers_map_the_same_memory(method):
    assert look([large_rows()], method) == [(Place(0, 99_999 * BLOCK, 0, 99_999), True)]


def look(rows, method):
    context = multiprocessing.get_context(method)
    answers = context.SimpleQueue()
    worker = context.Process(target=_look, args=(rows, answers))
    worker.start()
    found = answers.get()
    worker.join()
    assert worker.exitcode == 0
    return found


def test_copies_are_made_where_memory_cannot_be_handed_over():
    copy = pickle.loads(pickle.dumps(large_rows()))
    assert copy.place(7) == Place(0, 7 * BLOCK, 0, 7)
