"""Arrays come back as they were, and other processes map them instead of copying."""

import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import handover
from shards.handover import MAX_HANDED, Room, Span

BYTE = np.dtype(np.uint8)


def make_arrays(text, *more):
    """Return what a room gives that has a text at its beginning, and as much again that stays empty."""
    room = Room(2 * len(text))
    room.buffer[: len(text)] = list(text)
    return room.close([Span(0, len(text), BYTE)], [np.array(each) for each in more])


@pytest.mark.parametrize("shared_bytes", [0, 2**20])
@given(st.binary(max_size=30), st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), max_size=3))
def test_arrays_come_back(shared_bytes, text, more):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handover, "SHARED_BYTES", shared_bytes)
        arrays = make_arrays(text, *more)
    assert arrays.are_shared == (shared_bytes == 0 < len(text))
    for each in (arrays, pickle.loads(pickle.dumps(arrays))):
        assert [values.tolist() for values in each.values] == [list(text), *more]
        assert all(values.flags.aligned for values in each.values)


def test_what_stays_empty_takes_no_memory(monkeypatch):
    monkeypatch.setattr(handover, "SHARED_BYTES", 0)
    room = Room(2**30)
    room.buffer[:4] = 7
    arrays = room.close([Span(0, 4, BYTE)], [np.arange(3)])
    assert os.fstat(arrays._file.fileno()).st_blocks * 512 < 2**17
    assert os.fstat(arrays._file.fileno()).st_size == 8 + 24


def _tell(many, answers):
    shared = sum(each.are_shared for each in many)
    assert all(each.values[0].tolist() == [number] for number, each in enumerate(many))
    # Two for each file: Python's maps keep one of their own.
    answers.put((shared, len(list(Path("/proc/self/fd").iterdir())) - 2 * shared))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_process_is_handed_so_many_files_and_copies_of_the_others(monkeypatch, method):
    monkeypatch.setattr(handover, "SHARED_BYTES", 0)
    many = [make_arrays(bytes([number])) for number in range(200)]
    context = multiprocessing.get_context(method)
    answers = context.SimpleQueue()
    for _ in range(2):
        worker = context.Process(target=_tell, args=(many, answers))
        worker.start()
        num_shared, num_others = answers.get()
        assert num_shared == MAX_HANDED
        assert num_others < 30
        worker.join()
        assert worker.exitcode == 0
