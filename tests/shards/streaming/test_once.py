"""Files are made once, whoever comes and whoever dies."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from shards.streaming import once

MAKER = """
import os, sys
from pathlib import Path
from shards.streaming import once
part = once.lock_part(Path(sys.argv[1]), wait=True)
os.write(part, b"half")
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


@pytest.fixture
def maker(path):
    """A process that has half made the file."""
    command = [sys.executable, "-c", MAKER, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def make(path, content=b"whole", wait=True):
    """Make the file, or return None if somebody else does."""
    part = once.lock_part(path, wait=wait)
    if part is None:
        return None
    os.write(part, content)
    once.complete(path)
    os.close(part)
    return content


def waiter(path):
    """Return a thread that waits for the file in the kernel, and the list that takes what it makes."""
    made = []
    thread = threading.Thread(target=lambda: made.append(make(path)), daemon=True)
    thread.start()
    while f"-> FLOCK  ADVISORY  WRITE {os.getpid()} " not in Path("/proc/locks").read_text():
        time.sleep(0.01)
    return thread, made


def test_a_file_is_there_whole_or_not_at_all(path):
    part = once.lock_part(path, wait=True)
    os.write(part, b"half")
    assert not path.exists()
    assert once.lock_part(path, wait=False) is None
    os.write(part, b" and half")
    once.complete(path)
    os.close(part)
    assert path.read_bytes() == b"half and half"
    assert make(path) is None
    assert list(path.parent.iterdir()) == [path]


def test_who_gives_up_leaves_nothing_and_the_next_one_makes_it(path):
    part = once.lock_part(path, wait=True)
    thread, made = waiter(path)
    once.give_up(path)
    os.close(part)
    thread.join()
    assert made == [None]  # it looks again, as every caller does
    assert list(path.parent.iterdir()) == []
    assert make(path) == b"whole"


def test_who_waited_finds_it_made(path):
    part = once.lock_part(path, wait=True)
    thread, made = waiter(path)
    once.complete(path)
    os.close(part)
    thread.join()
    assert made == [None]
    assert list(path.parent.iterdir()) == [path]


def test_what_the_killed_left_is_begun_anew(path, maker):
    assert make(path, wait=False) is None
    thread, made = waiter(path)
    maker.kill()
    thread.join()
    assert made == [b"whole"]
    assert path.read_bytes() == b"whole"


def test_removing_spares_what_is_being_made(path, maker):
    part = path.with_name("file.part")
    once.remove(part)
    assert part.read_bytes() == b"half"
    maker.kill()
    maker.wait()
    once.remove(part)
    assert not part.exists()
    make(path)
    once.remove(path)
    once.remove(path)
    assert list(path.parent.iterdir()) == []


def test_names_in_a_listing(path):
    assert once.made_name("file") == once.made_name("file.part") == "file"
