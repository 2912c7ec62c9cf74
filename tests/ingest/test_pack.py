"""A group's units are cut by a decoder; what the decoder cannot do names the scene, or costs it alone."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from ingest import pack
from ingest.access import Access, Place
from ingest.config import Recipe
from ingest.pack import NotDeterministicError, _cut, _Scratch, group_url, pack_group
from ingest.plan import encode_groups, plan_units
from ingest.reasons import PASSING_CODES, SceneRejectedError
from ingest.sandbox import DecoderTimeoutError, Limits
from ingest.toolchain import toolchain
from shards import storage
from shards.schema import SCENES, canonical_json
from tests.ingest.rasters import PLACED, files_of, inventory_row, land, probed, write

RECIPE = Recipe(tile_px=16)


@pytest.fixture
def group(tmp_path):
    """A function that packs a group of one scene; answers of a decoder may be given in place of the real one's."""
    (tmp_path / "scenes").mkdir()
    write(tmp_path / "scenes/x.tif", land(3, side=32), **PLACED)
    listed = {name: value for name, value in inventory_row(tmp_path / "scenes", "x.tif").items() if value is not None}
    row = probed(files_of(tmp_path / "scenes/x.tif"), RECIPE) | listed | {"state": "used"}
    scenes, tools, out = pa.Table.from_pylist([row], SCENES), toolchain(), str(tmp_path / "out")
    ((name, data),) = encode_groups(plan_units(scenes, RECIPE), scenes, RECIPE, tools)
    storage.write_bytes(group_url(out, name, ".parquet"), data)

    def call():
        place = Place(root=str(tmp_path / "scenes"), absolute=False)
        return pack_group(out, name, place, RECIPE, Limits(), tools)

    yield SimpleNamespace(name=name, out=out, pack=call)
    pack.decoder(Limits()).close()


def failing(code):
    """Return a stand-in for `call_surely` whose scenes are all rejected."""

    def call(*_):
        raise SceneRejectedError(code, "told")

    return call


def test_a_finished_group_is_resumed(group):
    first = group.pack()
    assert (first["group"], first["samples"]["num_rows"], first.pop("resumed")) == (group.name, 4, False)
    assert group.pack() == first | {"resumed": True}


@pytest.mark.parametrize("per_batch", [1, 3, 1024])
def test_tiles_wait_in_the_order_in_which_they_came(tmp_path, monkeypatch, per_batch):
    monkeypatch.setattr(pack, "_ROWS_PER_BATCH", per_batch)
    with (tmp_path / "tiles").open("w+b", buffering=0) as file:
        scratch = _Scratch(tmp_path / "tiles", file)
        assert scratch.tiles().num_rows == 0
        for first in range(0, 10, 2):
            scratch.add([{"key": str(number), "member_size": number} for number in (first, first + 1)])
        assert scratch.tiles()["key"].to_pylist() == [str(number) for number in range(10)]
        assert scratch.size == sum(range(10))


@pytest.mark.parametrize("name", ["put_file", "write_bytes"])
def test_a_file_that_cannot_be_put_fails_the_group_before_its_marker(group, monkeypatch, name):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage, name, full)
        with pytest.raises(OSError, match=r"No space left on device: .* MB free"):
            group.pack()
    assert not Path(group_url(group.out, group.name, ".json")).exists()
    assert group.pack()["samples"]["num_rows"] == 4


def test_few_files_are_put_at_once_and_all_in_the_end():
    begun, done, may_end = [], [], threading.Semaphore(0)

    def put(number):
        begun.append(number)
        assert may_end.acquire(timeout=60)
        done.append(number)

    with pack._Puts() as puts:
        for number in range(3):
            puts.add(put, number)
        assert done == []
        threading.Timer(0.2, may_end.release, [5]).start()
        puts.add(put, 3)  # waits for the first
        assert done
        puts.add(put, 4)
        puts.finish()
        assert sorted(begun) == sorted(done) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("code", PASSING_CODES)
def test_what_may_pass_is_no_last_word(group, monkeypatch, code):
    whole = Path(group_url(group.out, group.name, ".json"))
    with monkeypatch.context() as patch:
        patch.setattr(pack, "call_surely", failing(code))
        first = group.pack()
        assert (first["left_out"], first["samples"]["num_rows"], first["resumed"]) == ({code: 4}, 0, False)
        assert storage.exists(group_url(group.out, first["group"], "-rejects.parquet"))
        assert not whole.exists()
        assert group.pack() == first
    assert group.pack()["samples"]["num_rows"] == 4
    assert whole.exists()


def test_what_is_final_is_the_last_word(group, monkeypatch):
    monkeypatch.setattr(pack, "call_surely", failing("corrupt"))
    first = group.pack()
    assert (first["group"], first["left_out"]) == (group.name, {"corrupt": 4})
    assert group.pack()["resumed"]


def test_a_marker_of_older_versions_with_what_may_pass_is_no_last_word_either(group):
    url = group_url(group.out, group.name, ".json")
    old = canonical_json({"group": group.name, "left_out": {"decoder_crashed": 4}})
    storage.write_bytes(url, old)
    second = group.pack()
    assert (second["samples"]["num_rows"], second["left_out"]) == (4, {})
    assert second["group"] != group.name
    assert storage.read_bytes(url) == old


def test_other_bytes_for_the_same_group_are_told_in_one_line(group, monkeypatch):
    url = group_url(group.out, group.name, ".json")
    # Another worker finishes the group, with other bytes, while this one packs it.
    finish = pack._put_group

    def overtaken(*arguments, **named):
        storage.write_bytes(url, b'{"left_out":{}}')
        return finish(*arguments, **named)

    monkeypatch.setattr(pack, "_put_group", overtaken)
    with pytest.raises(NotDeterministicError) as caught:
        group.pack()
    told = str(caught.value)
    assert "\n" not in told
    assert told.startswith(f"group {group.name} was packed twice and gave other bytes")
    assert told.endswith(f"remove {url} and run again")


def unit_at(row):
    """Return a unit of one row of two tiles."""
    return {
        "scene": "00000000000000ab", "path": "a/x.tif", "grid_width": 32, "grid_height": 64, "factor": 1,
        "first_row": row, "end_row": row + 1, "first_column": 0, "end_column": 2,
    }  # fmt: skip


def cut_with(call, units, folder):
    """Cut units with a decoder that does what `call` does; return the scratch file."""
    decoder = type("Fake", (), {"call": lambda _, name, request, read, finish: call(request)})()
    with (folder / "tiles").open("w+b", buffering=0) as file:
        scratch = _Scratch(folder / "tiles", file)
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
        return {"rejects": []}

    scratch = cut_with(call, [unit_at(row) for row in range(3)], tmp_path)
    assert [(reject["x"], reject["y"], reject["reason"]) for reject in scratch.rejects] == [
        (0, 16, reason),
        (16, 16, reason),
    ]
