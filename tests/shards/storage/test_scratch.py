"""Scratch folders go with their makers, and with them alone."""

import errno
import os
import signal
import subprocess
import sys
import tempfile

import pytest

from shards.storage.scratch import disk_full_told, remove_left_scratch, scratch_folder

MAKER = """
import sys
from shards.storage.scratch import scratch_folder
with scratch_folder("test") as folder:
    (folder / "tiles").write_bytes(b"x")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def maker(temporary):
    process = subprocess.Popen(
        [sys.executable, "-c", MAKER],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().startswith(str(temporary))
    yield process
    process.kill()
    process.wait()


def test_a_folder_is_gone_after_its_block(temporary):
    def fail(parent):
        with scratch_folder("test", parent) as folder:
            (folder / "tiles").write_bytes(b"x")
            assert list((parent or temporary).iterdir()) == [folder]
            raise KeyError

    (temporary / "elsewhere").mkdir()
    with pytest.raises(KeyError):
        fail(temporary / "elsewhere")
    assert list((temporary / "elsewhere").iterdir()) == []
    (temporary / "elsewhere").rmdir()
    with pytest.raises(KeyError):
        fail(None)
    assert list(temporary.iterdir()) == []


def test_what_the_dead_left_is_removed_and_nothing_else(temporary, maker):
    (temporary / "pera-test-a-file").touch()
    (temporary / "pera-other-kind").mkdir()
    (temporary / "mine").mkdir()
    (temporary / "pera-test-a-link").symlink_to(temporary / "mine")
    with scratch_folder("test") as mine:
        others = set(temporary.iterdir())
        (its,) = {folder for folder in others - {mine} if (folder / "tiles").exists()}
        remove_left_scratch("test")
        assert (its / "tiles").exists()
        os.kill(maker.pid, signal.SIGKILL)
        maker.wait()
        remove_left_scratch("test", temporary)
        assert set(temporary.iterdir()) == others - {its}


def test_a_full_disk_names_the_folder_and_the_remedy(temporary):
    told = rf"device: {temporary} has [0-9.]+ MB free \(TMPDIR names"
    with pytest.raises(OSError, match=told) as caught, disk_full_told(temporary):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(ConnectionResetError, match=r"^reset$"), disk_full_told(temporary):
        raise ConnectionResetError("reset")
