"""Every row of the inventory gets its end state from a look at its files; what is no file hangs nothing."""

import contextlib
import errno
import os
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.access import Place
from ingest.config import Recipe
from ingest.look import _resolved, probe_chunk, probe_row
from ingest.reasons import REMEDIES
from ingest.sandbox import Decoder, DecoderTimeoutError, Limits
from ingest.scene_row import joined_etag
from ingest.toolchain import toolchain
from shards import storage
from shards.schema import INVENTORY, SCENES
from tests.ingest.rasters import inventory_row, land, write

RECIPE = Recipe(tile_px=64)


@pytest.fixture(scope="module")
def decode():
    decode = Decoder()
    yield decode
    decode.close()


def state(decode, folder, name):
    """Return (state, reason) of a file."""
    found = probe_row(decode, Place(root=str(folder), absolute=False), inventory_row(folder, name), RECIPE)
    assert pa.Table.from_pylist([found], schema=SCENES).num_rows == 1
    assert found["reason"] is None or found["reason"] in REMEDIES
    return found["state"], found["reason"]


def test_pipes_folders_and_circular_links_do_not_hang(tmp_path, decode):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, reason in [
        ("pipe", "not_a_raster"), ("folder", "not_a_raster"), ("zero", "not_a_raster"),
        ("loop", "missing"), ("dangling", "missing"), ("x" * 300, "missing"),
    ]:  # fmt: skip
        assert state(decode, tmp_path, name) == ("rejected", reason)


def test_without_permission_a_file_is_unreadable(tmp_path, decode):
    (tmp_path / "closed").mkdir()
    write(tmp_path / "closed/x.tif", land(3))
    (tmp_path / "closed").chmod(0)
    with as_nobody():
        assert state(decode, tmp_path, "closed/x.tif") == ("rejected", "unreadable")
    (tmp_path / "closed").chmod(0o700)


@pytest.mark.skipif(os.geteuid() == 0, reason="the decoder of root may read everything")
def test_a_file_that_may_not_be_opened_is_unreadable(tmp_path, decode):
    write(tmp_path / "x.tif", land(3))
    (tmp_path / "x.tif").chmod(0)
    assert state(decode, tmp_path, "x.tif") == ("rejected", "unreadable")


@contextlib.contextmanager
def as_nobody():
    """Give up root's rights where the tests run with them."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_fault_of_the_disk_rejects_nothing(tmp_path, decode, monkeypatch):
    class Failing(Path):
        _flavour = type(Path())._flavour

        def exists(self):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("shards.storage.local_path", lambda url: Failing(url))
    with pytest.raises(OSError, match="Input/output"):
        state(decode, tmp_path, "x.tif")


def test_what_the_inventory_left_out_stays_left_out(tmp_path, decode):
    row = inventory_row(tmp_path, "x.tif", reason="superseded", detail="by y.tif")
    found = probe_row(decode, Place(root=str(tmp_path), absolute=False), row, RECIPE)
    assert (found["state"], found["reason"], found["detail"]) == ("rejected", "superseded", "by y.tif")


def test_a_chunk_is_probed_once_per_content(tmp_path, monkeypatch):
    write(tmp_path / "a.tif", land(3))
    (tmp_path / "b.tif").touch()
    place = Place(root=str(tmp_path), absolute=False)

    def probe():
        rows = [inventory_row(tmp_path, name) for name in ("a.tif", "b.tif")]
        pq.write_table(pa.Table.from_pylist(rows, schema=INVENTORY), tmp_path / "inventory.parquet")
        inventory = str(tmp_path / "inventory.parquet")
        return probe_chunk(str(tmp_path / "out"), inventory, 0, place, RECIPE, Limits(), toolchain())

    first = probe()
    assert (first["num_rows"], first["reasons"]) == (2, {"empty_file": 1})
    table = pq.read_table(first["url"])
    assert table.schema.names == SCENES.names
    assert table["state"].to_pylist() == ["used", "rejected"]
    with monkeypatch.context() as patch:
        patch.setattr("ingest.look.probe_row", lambda *_: pytest.fail("probed again"))
        assert probe() == first
    write(tmp_path / "a.tif", land(1))
    again = probe()
    assert again["url"] != first["url"]
    assert again["reasons"] == {"bands_missing": 1, "empty_file": 1}


def test_what_may_pass_is_looked_at_again(tmp_path, monkeypatch):
    for name in ("a.tif", "b.tif", "c.tif"):
        write(tmp_path / name, land(3))
    rows = [inventory_row(tmp_path, name) for name in ("b.tif", "a.tif", "c.tif")]
    pq.write_table(pa.Table.from_pylist(rows, schema=INVENTORY), tmp_path / "inventory.parquet")
    place, looked = Place(root=str(tmp_path), absolute=False), []

    def probe(reasons):
        looked.clear()

        def look(decode, place, row, recipe):
            looked.append(row["path"])
            reason = reasons.get(row["path"])
            return row | {"state": "rejected", "reason": reason} if reason else probe_row(decode, place, row, recipe)

        with monkeypatch.context() as patch:
            patch.setattr("ingest.look.probe_row", look)
            inventory = str(tmp_path / "inventory.parquet")
            return probe_chunk(str(tmp_path / "out"), inventory, 0, place, RECIPE, Limits(), toolchain())

    first = probe({"a.tif": "decoder_memory", "c.tif": "corrupt"})
    assert looked == ["b.tif", "a.tif", "c.tif"]
    assert probe({"a.tif": "decoder_failed"})["reasons"] == {"decoder_failed": 1, "corrupt": 1}
    assert looked == ["a.tif"]
    last = probe({})
    assert (last["url"], last["num_rows"], last["reasons"]) == (first["url"], 3, {"corrupt": 1})
    assert looked == ["a.tif"]
    table = pq.read_table(last["url"])
    assert table["path"].to_pylist() == ["b.tif", "a.tif", "c.tif"]
    assert table["reason"].to_pylist() == [None, None, "corrupt"]
    assert table["width"].to_pylist() == [64, 64, None]
    probe({})
    assert looked == []


@pytest.mark.parametrize(("root", "is_local"), [("s3://bucket/x", False), (".", True)])
def test_only_a_local_refusal_is_a_scenes_own(root, is_local, monkeypatch):
    def refuse(url):
        raise PermissionError("ExpiredToken")

    monkeypatch.setattr("shards.storage.stat", refuse)
    row = dict.fromkeys(INVENTORY.names) | {"path": "a.tif"}
    if is_local:
        assert _resolved(Place(root=root, absolute=False), row)["reason"] == "unreadable"
        return
    with pytest.raises(OSError, match=r"s3://bucket/x/a.tif: ExpiredToken"):
        _resolved(Place(root=root, absolute=False), row)


def test_a_decoder_without_an_answer_names_the_scene(tmp_path):
    class Silent:
        def call(self, *_):
            raise DecoderTimeoutError("no answer")

    write(tmp_path / "x.tif", land(3))
    place, row = Place(root=str(tmp_path), absolute=False), inventory_row(tmp_path, "x.tif")
    with pytest.raises(DecoderTimeoutError, match=r"x.tif: no answer: .*--scene_deadline_s"):
        probe_row(Silent(), place, row, RECIPE)


def test_sizes_that_a_list_did_not_give_are_looked_up(tmp_path):
    write(tmp_path / "a.tif", land(3))
    rows = [inventory_row(tmp_path, name, size=None, etag=None) for name in ("a.tif", "gone.tif")]
    pq.write_table(pa.Table.from_pylist(rows, schema=INVENTORY), tmp_path / "inventory.parquet")
    place = Place(root=str(tmp_path), absolute=True)
    found = probe_chunk(
        str(tmp_path / "out"), str(tmp_path / "inventory.parquet"), 0, place, RECIPE, Limits(), toolchain()
    )
    rows = pq.read_table(found["url"]).to_pylist()
    assert rows[0]["size"] == (tmp_path / "a.tif").stat().st_size
    assert rows[0]["state"] == "used"
    assert rows[1]["reason"] == "missing"


def test_a_machine_without_the_folder_of_the_scenes_calls_none_missing(tmp_path):
    rows = [inventory_row(tmp_path, "a.tif", size=1, etag="listed elsewhere")]
    pq.write_table(pa.Table.from_pylist(rows, schema=INVENTORY), tmp_path / "inventory.parquet")
    (tmp_path / "unmounted").mkdir()
    for name in ("unmounted", "nowhere", "inventory.parquet"):
        place = Place(root=str(tmp_path / name), absolute=False)
        with pytest.raises(RuntimeError, match=rf" has nothing at {tmp_path / name}: .*a disk that all of them share"):
            probe_chunk(
                str(tmp_path / "out"), str(tmp_path / "inventory.parquet"), 0, place, RECIPE, Limits(), toolchain()
            )
    assert not (tmp_path / "out").exists()


def test_a_scene_of_which_anything_is_unknown_is_looked_up_whole(tmp_path):
    place = Place(root=str(tmp_path), absolute=False)
    files = []
    for name in ("a", "b"):
        (tmp_path / f"{name}.tif").write_bytes(b"12345")
        info = storage.stat(f"{tmp_path}/{name}.tif")
        files.append({"path": f"{name}.tif", "size": info.size, "etag": info.etag, "band": name})
    row = dict.fromkeys(INVENTORY.names) | {"path": "x", "files": files, "size": 10, "etag": "listed"}
    assert _resolved(place, row) == row
    known = row | {"etag": joined_etag(files)}
    stale = [file | {"etag": "older"} for file in files]
    for unknown in ({"size": None}, {"etag": None}, {"files": [stale[0], stale[1] | {"size": None}]}):
        assert _resolved(place, row | {"files": stale, "size": 7, "etag": "older"} | unknown) == known
    (tmp_path / "b.tif").unlink()
    assert _resolved(place, row | {"size": None})["reason"] == "missing"


def test_members_of_archives_are_looked_up(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/x.tif", b"123")
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    place = Place(root=str(tmp_path), absolute=False)
    (listed,) = storage.list_zip(f"{tmp_path}/a.zip")

    def found(archive, member):
        row = dict.fromkeys(INVENTORY.names) | {"path": f"{archive}/{member}", "archive": archive}
        row = _resolved(place, row)
        return row["size"], row["etag"], row["reason"]

    assert found("a.zip", "in/x.tif") == (3, listed.etag, None)
    assert found("a.zip", "y.tif") == (None, None, "missing")
    assert found("gone.zip", "x.tif") == (None, None, "missing")
    assert found("bad.zip", "x.tif") == (None, None, "bad_archive")
