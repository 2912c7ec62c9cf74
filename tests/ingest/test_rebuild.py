"""A version is built again from what lies at its scenes' places today: copied, moved, packed in archives."""

import hashlib
import json
import shutil
import zipfile

import pyarrow as pa
import pytest

from ingest.cluster import cluster
from ingest.config import IngestConfig, RebuildConfig
from ingest.rebuild import rebuild, recorded_inventory
from ingest.run import ingest
from shards.commit import write_table
from shards.schema import SCENES, Version
from shards.tables import read_table
from tests.ingest.rasters import PLACED, land, write

BANDS = {"source_bands": ("r", "g", "b"), "file_pattern": r"(?P<scene>\w+)_(?P<band>[rgb])\.tif$"}


@pytest.fixture(scope="module", autouse=True)
def shared_cluster():
    """One Ray cluster for all runs of this process: starting one takes longer than most of them."""
    with cluster("", 2):
        yield


def made(scenes, out, **values):
    config = IngestConfig(scenes=str(scenes), out=str(out), tile_px=64, workers=2, min_contrast=0.0, **values)
    return ingest(config).version


def built_again(url, out, scenes=""):
    return rebuild(RebuildConfig(rebuild=str(url), out=str(out), scenes=str(scenes), workers=2))


def write_bands(folder, name, first=0):
    """Write a scene of three files of one band each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, band in enumerate("rgb"):
        pixels = (land(1, side=128) + first + number).astype("uint8")
        write(folder / f"{name}_{band}.tif", pixels, **PLACED)


def packed(folder, target):
    """Pack a folder's files into an archive, and remove them."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"in/{path.name}")
    shutil.rmtree(folder)


def test_scenes_of_several_files_that_were_copied_elsewhere(tmp_path):
    scenes, moved = tmp_path / "scenes", tmp_path / "moved"
    write_bands(scenes, "plain")
    write_bands(tmp_path / "files", "zipped", 20)
    packed(tmp_path / "files", scenes / "a.zip")
    write(scenes / "alone_r.tif", land(1, side=128), **PLACED)
    first = made(scenes, tmp_path / "data", **BANDS)
    assert (first.num_scenes, first.num_rejected, first.num_samples) == (3, 1, 8)
    # Other times, so other ETags, of the files and of the archive.
    shutil.copytree(scenes, moved, copy_function=shutil.copyfile)
    shutil.rmtree(scenes)
    result = built_again(tmp_path / "data", tmp_path / "again", moved)
    assert result.equal, list(result.lines)
    rows = read_table(str(tmp_path / "again"), result.rebuilt, "scenes", ["path", "size", "etag", "files"]).to_pylist()
    assert all(row["size"] == sum(file["size"] for file in row["files"]) for row in rows)
    # What was looked up again is what a listing finds: nothing is new.
    assert made(moved, tmp_path / "again", **BANDS) == result.rebuilt


def test_relative_paths_and_an_archive_that_was_written_again(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write(tmp_path / "here/x.tif", land(3, side=128), **PLACED)
    (tmp_path / "here/scenes").mkdir()
    with zipfile.ZipFile("scenes/a.zip", "w") as archive:
        archive.write("x.tif")
    first = made("scenes", "data")
    assert first.record["scenes"] == str(tmp_path / "here/scenes")
    shutil.copyfile("scenes/a.zip", "copy")
    shutil.move("copy", "scenes/a.zip")
    monkeypatch.chdir(tmp_path)
    result = built_again("here/data", "again")
    assert result.equal, list(result.lines)
    assert (tmp_path / "again/versions").is_dir()


def test_an_item_with_sizes_and_checksums_of_its_own(tmp_path):
    write_bands(tmp_path, "x")
    assets = {
        band: {
            "href": f"x_{band}.tif",
            "file:size": (tmp_path / f"x_{band}.tif").stat().st_size,
            "file:checksum": "1220" + hashlib.sha256((tmp_path / f"x_{band}.tif").read_bytes()).hexdigest(),
        }
        for band in "rgb"
    }
    item = {"type": "Feature", "stac_version": "1.0.0", "id": "x", "properties": {}, "assets": assets}
    (tmp_path / "item.json").write_text(json.dumps(item))
    first = made(tmp_path / "item.json", tmp_path / "out/data", source_bands=("r", "g", "b"))
    assert (first.num_scenes, first.num_rejected, first.num_samples) == (1, 0, 4)
    assert made(tmp_path / "item.json", tmp_path / "out/data", source_bands=("r", "g", "b")) == first
    result = built_again(tmp_path / "out/data", tmp_path / "out/again")
    assert result.equal, list(result.lines)


def row(**values):
    return dict.fromkeys(SCENES.names) | {"size": 3, "etag": "e", "state": "rejected"} | values


def test_only_what_ruled_a_scene_out_unopened_stays(tmp_path):
    files = [{"path": "x/r.tif", "size": 1, "etag": "e", "band": "r"}]
    rows = [
        row(scene="0", path="a.tif", state="used"),
        row(scene="1", path="z.zip/b.tif", archive="z.zip", state="used"),
        row(scene="2", path="x", files=files, state="used"),
        row(scene="3", path="c.tif", reason="corrupt", detail="d"),
        row(scene="4", path="y", files=files, reason="superseded", detail="by x"),
        row(scene="5", path="gone.tif", size=None, etag=None, reason="missing"),
    ]
    tables = {"scenes": write_table(str(tmp_path), "scenes", [pa.Table.from_pylist(rows, SCENES)])}
    version = Version(
        version=1, digest="", bands=(), dtype="uint8", tile_px=64, num_samples=0, num_shards=0, num_scenes=6,
        num_rejected=0, num_bytes=0, tables=tables,
    )  # fmt: skip
    found = recorded_inventory(str(tmp_path), version).to_pylist()
    assert [(each["size"], each["etag"]) for each in found] == [(None, None)] * 4 + [(3, "e"), (None, None)]
    assert [each["reason"] for each in found] == [None] * 4 + ["superseded", "missing"]
    assert found[2]["files"] == [files[0] | {"size": None, "etag": None}]
    assert found[4]["files"] == files
    assert found[1]["archive"] == "z.zip"
    assert found[0]["files"] is None
