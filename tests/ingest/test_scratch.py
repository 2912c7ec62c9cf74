"""Scratch folders go with their makers, and with them alone."""

import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile

import pytest

from ingest.config import Recipe, recipe_json
from ingest.sandbox import Decoder
from ingest.scene_row import to_json
from ingest.scratch import disk_full_told, remove_left_scratch, scratch_folder
from tests.ingest.rasters import MEASURED, files_of, land, probed, unit_of, write

MAKER = """
import sys
from ingest.scratch import scratch_folder
with scratch_folder() as folder:
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
    def fail():
        with scratch_folder() as folder:
            (folder / "tiles").write_bytes(b"x")
            assert list(temporary.iterdir()) == [folder]
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(temporary.iterdir()) == []


def test_what_the_dead_left_is_removed_and_nothing_else(temporary, maker):
    (temporary / "pera-ingest-a-file").touch()
    (temporary / "other").mkdir()
    with scratch_folder() as mine:
        (its,) = set(temporary.glob("pera-ingest-*")) - {mine, temporary / "pera-ingest-a-file"}
        remove_left_scratch()
        assert (its / "tiles").exists()
        os.kill(maker.pid, signal.SIGKILL)
        maker.wait()
        remove_left_scratch()
        assert sorted(temporary.iterdir()) == sorted([mine, temporary / "pera-ingest-a-file", temporary / "other"])


def test_a_full_disk_names_the_folder_and_the_remedy(temporary):
    told = rf"device: {temporary} has [0-9.]+ MB free \(TMPDIR names"
    with pytest.raises(OSError, match=told) as caught, disk_full_told(temporary):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(ConnectionResetError, match=r"^reset$"), disk_full_told(temporary):
        raise ConnectionResetError("reset")


def test_a_decoder_that_cannot_write_rejects_nothing(temporary):
    files = files_of(write(temporary / "scene.tif", land(3)))
    recipe = Recipe(tile_px=32, **MEASURED)
    unit = unit_of(probed(files, recipe), recipe)
    scratch = temporary / "tiles"
    scratch.touch()
    request = {
        "files": [{"band": "", "local": files[0].path, "size": 1}],
        "units": [to_json(unit)],
        "recipe": recipe_json(recipe),
        "scratch": str(scratch),
        "position": 0,
    }
    decode = Decoder()
    try:
        num_tiles = len(decode.call("cut", request)["rows"])
        pid = decode._process.pid
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        with pytest.raises(OSError, match="File too large") as caught:
            decode.call("cut", request)
        assert caught.value.errno == errno.EFBIG
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert len(decode.call("cut", request)["rows"]) == num_tiles == 4
        assert decode._process.pid == pid
    finally:
        decode.close()
