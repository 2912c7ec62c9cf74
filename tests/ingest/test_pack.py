"""A group's units are cut by a decoder; what the decoder cannot do names the scene, or costs it alone."""

import pytest

from ingest.access import Access
from ingest.config import Recipe
from ingest.pack import _cut, _Scratch
from ingest.reasons import SceneRejectedError
from ingest.sandbox import DecoderTimeoutError

RECIPE = Recipe(tile_px=16)


def unit_at(row):
    """Return a unit of one row of two tiles."""
    return {
        "scene": "00000000000000ab", "path": "a/x.tif", "grid_width": 32, "grid_height": 64, "factor": 1,
        "first_row": row, "end_row": row + 1, "first_column": 0, "end_column": 2,
    }  # fmt: skip


def cut_with(call, units, folder):
    """Cut units with a decoder that does what `call` does; return the scratch file."""
    scratch = _Scratch(folder / "tiles")
    decoder = type("Fake", (), {"call": lambda _, name, request, read: call(request)})()
    _cut(units, Access([], []), RECIPE, decoder, scratch)
    return scratch


def test_a_decoder_without_an_answer_names_the_scene(tmp_path):
    def call(request):
        raise DecoderTimeoutError("no answer")

    with pytest.raises(DecoderTimeoutError, match=r"a/x.tif: no answer: .*--scene_deadline_s"):
        cut_with(call, [unit_at(0)], tmp_path)


@pytest.mark.parametrize("reason", ["decoder_failed", "decoder_crashed"])
def test_of_several_units_the_culprit_alone_is_rejected(tmp_path, reason):
    def call(request):
        if any(unit["first_row"] == 1 for unit in request["units"]):
            raise SceneRejectedError(reason, "told")
        return {"rows": [], "rejects": []}

    scratch = cut_with(call, [unit_at(row) for row in range(3)], tmp_path)
    assert [(reject["x"], reject["y"], reject["reason"]) for reject in scratch.rejects] == [
        (0, 16, reason),
        (16, 16, reason),
    ]
