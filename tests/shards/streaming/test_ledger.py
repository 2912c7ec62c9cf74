"""The ledger: lines are appended, none stands twice after a resume, and a wrong place is told at once."""

import errno
import json
from pathlib import Path

import pytest

from shards.errors import UserError
from shards.streaming.ledger import Ledger
from shards.streaming.stream import Replacement


def entry(number):
    # The name of a tar may hold what Python takes for the end of a line.
    return Replacement(number=number, dataset="d", epoch=0, row=1, name="a\u2028b", fault="bad", replaced_by=2)


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
    Ledger(str(path), 16).append([entry(20)])
    assert numbers(path) == [1, 15, 20]
    Ledger(str(path), 0)
    assert path.read_bytes() == b""


@pytest.mark.parametrize("text", ["notes\n", "{}\n", "[1]\n", '{"number": "a"}\n'])
def test_a_file_of_something_else_is_left_alone(path, text):
    path.write_text(text)
    with pytest.raises(UserError, match="holds other lines than those of a ledger: give another file"):
        Ledger(str(path), 5)
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
