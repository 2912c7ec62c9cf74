"""The ledger: lines are appended, none stands twice after a resume, and a wrong place is told at once."""

import errno
import json
import threading
from pathlib import Path

import pytest

from shards.errors import UserError
from shards.streaming.ledger import Ledger
from shards.streaming.order import OrderSettings
from shards.streaming.stream import Replacement, Stream
from tests.places import places_only


def entry(number):
    # The name of a tar may hold what Python takes for the end of a line.
    return Replacement(number=number, dataset="d", epoch=0, row=1, name="a\u2028b", fault="bad", replaced_by=2)


def going_on(start, rank=0, world=1):
    """Return a rank's stream of batch 4 from a sample on."""
    settings = OrderSettings(seed=0, lanes=4, block_bytes=2048, window=2)
    return Stream([places_only([1] * 40, "d")], settings, global_batch=4, start=start, rank=rank, world=world)


def numbers(path):
    return [json.loads(line)["number"] for line in path.read_bytes().split(b"\n") if line]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


def test_entries_are_appended(path):
    Ledger(str(path)).append([entry(3)])
    Ledger(path.as_uri()).append([entry(5), entry(4)])
    assert numbers(path) == [3, 5, 4]


def test_a_stream_that_goes_on_keeps_what_lies_behind_it(path):
    Ledger(str(path)).append([entry(number) for number in (1, 15, 17, 16)])
    with path.open("a") as file:
        file.write('{"number": 1')
    Ledger(str(path), going_on(16)).append([entry(20)])
    assert numbers(path) == [1, 15, 20]
    Ledger(str(path), going_on(0))
    assert path.read_bytes() == b""


def test_ranks_that_go_on_with_one_file_leave_each_others_lines(path):
    Ledger(str(path)).append([entry(number) for number in range(24)])
    for rank in range(2):
        stream = going_on(16, rank, 2)
        Ledger(str(path), stream).append([entry(slot.number) for step in (0, 1) for slot in stream.slots(step)])
    assert numbers(path)[:16] == list(range(16))
    assert sorted(numbers(path)[16:]) == list(range(16, 24))


def test_nothing_is_lost_where_ranks_begin_while_others_write(path):
    def begin(rank):
        stream = going_on(16, rank, 4)
        for _ in range(30):
            Ledger(str(path), stream).append([entry(rank), entry(stream.slots(0)[0].number)])

    threads = [threading.Thread(target=begin, args=[rank]) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number in numbers(path) if number < 16) == sorted([0, 1, 2, 3] * 30)
    assert sorted(number for number in numbers(path) if number >= 16) == [16, 17, 18, 19]


@pytest.mark.parametrize("text", ["notes\n", "{}\n", "[1]\n", '{"number": "a"}\n'])
def test_a_file_of_something_else_is_left_alone(path, text):
    path.write_text(text)
    with pytest.raises(UserError, match="holds other lines than those of a ledger: give another file"):
        Ledger(str(path), going_on(5))
    assert path.read_text() == text


def test_a_place_that_cannot_be_written_is_told_before_there_is_an_entry(tmp_path):
    for url, told in [
        ("s3://bucket/ledger", "is in a store, where nothing can be appended: give a local file"),
        (str(tmp_path / "none" / "ledger"), "cannot be written: No such file or directory; give a file in a folder"),
        (str(tmp_path), "cannot be written: Is a directory"),
    ]:
        with pytest.raises(UserError, match=told):
            Ledger(url)


def test_a_disk_that_fills_up_is_told(path, monkeypatch):
    ledger = Ledger(str(path))

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=f"the ledger {path} cannot be written: No space left on device"):
        ledger.append([entry(1)])
