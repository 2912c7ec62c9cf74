"""A file is corrupt only if all its bytes could be read: what a disk or mount fails to give is no content."""

import errno
import os

import pytest

from ingest import second_look
from ingest.access import Access, Place
from ingest.config import Recipe
from ingest.look import probe_row
from ingest.pack import _cut, _Scratch
from ingest.reasons import PASSING_CODES, SceneRejectedError
from ingest.sandbox import Decoder
from ingest.second_look import call_surely
from tests.ingest.rasters import copy_cut_short, inventory_row, land, unit_of, write

RECIPE = Recipe(tile_px=32)
CORRUPT = {"rejects": [{"reason": "corrupt"}, {"reason": "low_contrast"}]}
GOOD = {"rejects": [{"reason": "low_contrast"}]}


class Answers:
    """A decoder that gives answers in turn."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def call(self, name, request, read, finish):
        """Give the next answer; a text is the code of a rejection."""
        answer = self.answers.pop(0)
        if isinstance(answer, str):
            raise SceneRejectedError(answer, "told")
        return answer


def access_to(*paths):
    return Access([{"band": "", "local": path and str(path), "size": 1} for path in paths], [""] * len(paths))


@pytest.mark.parametrize("first", [CORRUPT, "corrupt"])
def test_a_read_that_fails_wins(first):
    # The memory of a process is a file that answers EIO where nothing is mapped.
    with pytest.raises(SceneRejectedError, match=r"unreadable: Input/output error"):
        call_surely(Answers(first), "cut", {}, access_to("/proc/self/cmdline", "/proc/self/mem"))
    assert "unreadable" in PASSING_CODES


@pytest.mark.parametrize("first", [CORRUPT, "corrupt"])
def test_a_fault_that_passed_is_no_content(tmp_path, first):
    path = tmp_path / "x"
    path.write_bytes(bytes(3 * 2**20 + 1))
    assert call_surely(Answers(first, GOOD), "cut", {}, access_to(path)) == GOOD
    assert call_surely(Answers(first, CORRUPT), "cut", {}, access_to(path)) == CORRUPT
    with pytest.raises(SceneRejectedError, match="corrupt"):
        call_surely(Answers(first, "corrupt"), "probe", {}, access_to(path))


def test_nothing_else_is_looked_at_twice(tmp_path):
    assert call_surely(Answers(GOOD), "cut", {}, access_to(tmp_path / "not there")) == GOOD
    assert call_surely(Answers(CORRUPT), "cut", {}, access_to(None)) == CORRUPT
    assert call_surely(Answers({"width": 3}), "probe", {}, access_to(tmp_path / "not there")) == {"width": 3}
    with pytest.raises(SceneRejectedError, match="bands_missing"):
        call_surely(Answers("bands_missing"), "probe", {}, access_to(tmp_path / "not there"))


def failing_open(path, *arguments, **named):
    """Open a file as a mount does whose server has lost it."""
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)


def test_probe_and_pack_call_it_unreadable(tmp_path, monkeypatch):
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    write(tmp_path / "x.tif", land(3), tiled=True, blockxsize=32, blockysize=32)
    copy_cut_short(tmp_path / "x.tif", scenes / "cut.tif", 0.6)
    (scenes / "head.tif").write_bytes((tmp_path / "x.tif").read_bytes()[:40])
    place, decode = Place(root=str(scenes), absolute=False), Decoder()

    def probe(name):
        return probe_row(decode, place, inventory_row(scenes, name), RECIPE)

    try:
        assert probe("head.tif")["reason"] == "corrupt"
        unit = unit_of(probe("cut.tif"), RECIPE)
        access = access_to(scenes / "cut.tif")
        with (tmp_path / "tiles").open("w+b", buffering=0) as file:
            scratch = _Scratch(tmp_path / "tiles", file)
            _cut([unit], access, RECIPE, decode, scratch)
        assert {reject["reason"] for reject in scratch.rejects} == {"corrupt"}
        assert scratch.tiles().num_rows
        monkeypatch.setattr(second_look, "open", failing_open, raising=False)
        row = probe("head.tif")
        assert (row["state"], row["reason"], row["detail"]) == ("rejected", "unreadable", "Stale file handle")
        with (tmp_path / "again").open("w+b", buffering=0) as file:
            again = _Scratch(tmp_path / "again", file)
            _cut([unit], access, RECIPE, decode, again)
        assert [reject["reason"] for reject in again.rejects] == ["unreadable"] * 4
    finally:
        decode.close()
