"""A derived version points to the shards of another; it verifies, loads, and never loses a row in silence."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from shards import storage
from shards.commit import commit_version, encode_table, write_table
from shards.curation.derive import derive, tables_digest
from shards.curation.select import select
from shards.dataset import open_dataset
from shards.errors import UserError
from shards.indexing.index import index
from shards.schema import REJECTS, SCENES, TableFile, sha256_hex
from shards.settle import band_figures
from shards.tables import list_versions, read_table, read_version
from shards.verify import verify
from tests.shards.foreign_tars import write_series

OPERATION = {"op": "select", "where": "by hand"}


class Keep:
    """Keeps samples by their numbers."""

    def __init__(self, numbers):
        self.columns = ["key"]
        self.keys = {f"sample-{number:06d}" for number in numbers}

    def keep(self, samples):
        """Say which samples stay."""
        return np.array([key in self.keys for key in samples["key"].to_pylist()])

    def reasons(self, left_out):
        """Say why the others go."""
        details = [f"not {key}" for key in left_out["key"].to_pylist()]
        return pa.array(["not_selected"] * left_out.num_rows), pa.array(details)


@pytest.fixture
def url(tmp_path, write_dataset):
    return write_dataset(str(tmp_path / "data"))


def files(url):
    return {path: path.read_bytes() for path in Path(url).rglob("*") if path.is_file()}


def test_the_next_version_of_the_same_dataset(url):
    before = files(url)
    parent = read_version(url)
    version = derive(url, parent, None, Keep([0, 3, 4, 23]), OPERATION)
    assert (version.version, list_versions(url)) == (2, [1, 2])
    assert (version.num_samples, version.num_scenes, version.num_rejected) == (4, 24, 20)
    assert version.record["parent"] == 1
    assert version.record["base"] == {"url": ".", "version": 1, "digest": parent.digest}
    assert version.record["operations"] == [OPERATION]
    assert list(verify(url)) == []
    # Nothing that was there is touched.
    assert {path: data for path, data in files(url).items() if path in before} == before


def test_rows_keep_their_order_and_figures_are_measured_again(url):
    parent = read_version(url)
    whole = read_table(url, parent, "samples").to_pylist()
    version = derive(url, parent, None, Keep(range(0, 24, 5)), OPERATION)
    kept = read_table(url, version, "samples")
    assert kept.to_pylist() == [row for row in whole if row["key"] in Keep(range(0, 24, 5)).keys]
    assert version.bands == band_figures(["red", "green", "blue"], [kept])
    assert version.bands != parent.bands


def test_what_goes_is_listed_with_its_scene(url):
    version = derive(url, read_version(url), None, Keep(range(1, 24)), OPERATION)
    whole, tile = read_table(url, version, "rejects").to_pylist()
    scene = {"scene": "scene-000000", "path": "scene-000000.tif"}
    assert tile == scene | {"x": 0, "y": 0, "reason": "not_selected", "detail": "not sample-000000"}
    assert whole == scene | {"x": None, "y": None, "reason": "no_tiles_left", "detail": "1 not_selected"}


def test_shards_without_samples_are_no_longer_named(url):
    version = derive(url, read_version(url), None, Keep([0, 3]), OPERATION)
    (shard,) = read_table(url, version, "shards").to_pylist()
    assert (version.num_shards, version.num_bytes, shard["num_samples"]) == (1, shard["size"], 8)
    assert list(verify(url)) == []


def test_another_dataset_points_here_from_everywhere(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    version = derive("data", read_version(url), "../" + tmp_path.name + "/small", Keep([5, 7]), OPERATION)
    small = str(tmp_path / "small")
    assert (version.version, version.record["parent"]) == (1, None)
    assert version.record["base"] == {"url": url, "version": 1, "digest": read_version(url).digest}
    assert not Path(small, "shards").exists()
    monkeypatch.chdir("/")
    assert [open_dataset(small).read(row).key for row in range(2)] == ["sample-000007", "sample-000005"]
    assert list(verify(small)) == []
    second = derive(small, version, None, Keep([5]), OPERATION)
    assert (second.version, len(second.record["operations"])) == (2, 2)
    assert list(verify(small)) == []


def test_the_same_again_is_the_version_that_is_there(url, tmp_path):
    for out, number in [(None, 2), (str(tmp_path / "small"), 1)]:
        for _ in range(2):
            assert derive(url, read_version(url, 1), out, Keep([5, 7]), OPERATION).version == number
        assert derive(url, read_version(url, 1), out, Keep([5, 8]), OPERATION).version == number + 1


def test_nothing_is_written_where_all_or_none_stay(url, tmp_path):
    before = files(url)
    parent = read_version(url)
    assert derive(url, parent, url + "/", Keep(range(24)), OPERATION) is parent
    with pytest.raises(UserError, match=r"no sample of .* is left by select \(where by hand\)"):
        derive(url, parent, str(tmp_path / "small"), Keep([]), OPERATION)
    assert files(url) == before
    assert not (tmp_path / "small").exists()


def test_elsewhere_a_version_of_all_samples_is_written(url, tmp_path):
    """There may be nothing yet, or an older selection, which whoever reads there would take for this one."""
    parent, out = read_version(url), str(tmp_path / "small")
    derive(url, parent, out, Keep([5, 7]), OPERATION)
    version = derive(url, parent, out, Keep(range(24)), OPERATION)
    assert (version.version, version.num_samples, version.digest) == (2, 24, parent.digest)
    assert list(verify(out)) == []
    assert derive(url, parent, out, Keep(range(24)), OPERATION).version == 2


def test_scenes_and_rejects_of_the_parent_stay(url):
    """A scene that was rejected keeps its reason; tiles that were left out before are still counted."""
    parent = read_version(url)
    scenes = read_table(url, parent, "scenes").to_pylist()
    scenes[0]["num_dropped"] = 2
    scenes.append({"scene": "bad", "path": "bad.tif", "state": "rejected", "reason": "corrupt", "num_tiles": 0})
    scenes[-1] |= {"num_dropped": 0, "detail": "told"}
    tile = {"scene": scenes[0]["scene"], "path": scenes[0]["path"], "x": 1, "y": 2, "reason": "black", "detail": ""}
    rejects = [{"scene": "bad", "path": "bad.tif", "reason": "corrupt", "detail": "told"}, tile, tile | {"x": 3}]
    tables = {
        "scenes": write_table(url, "scenes", [pa.Table.from_pylist(scenes, SCENES)]),
        "rejects": write_table(url, "rejects", [pa.Table.from_pylist(rejects, REJECTS)]),
    }
    parent = dataclasses.replace(parent, version=2, num_scenes=25, num_rejected=1, tables={**parent.tables, **tables})
    digest = tables_digest(url, parent)
    commit_version(url, dataclasses.replace(parent, digest=digest))
    assert list(verify(url)) == []
    number = int(scenes[0]["scene"][-6:])
    version = derive(url, read_version(url), None, Keep(set(range(24)) - {number}), OPERATION)
    assert list(verify(url)) == []
    settled = {row["scene"]: row for row in read_table(url, version, "scenes").to_pylist()}
    assert settled["bad"] == dict.fromkeys(SCENES.names) | scenes[-1]
    assert settled[scenes[0]["scene"]]["detail"] == "2 black, 1 not_selected"
    assert settled[scenes[0]["scene"]]["num_dropped"] == 3


def test_figures_of_the_parent_stay_where_tiles_have_none(url):
    """Datasets of before, or of other tools, have no band_sums."""
    parent = read_version(url)
    old = read_table(url, parent, "samples").drop_columns(["num_valid", "band_sums", "band_squares", "dhash"])
    data = encode_table(old)
    storage.write_bytes(storage.join(url, "tables/old.parquet"), data)
    file = TableFile(url="tables/old.parquet", sha256=sha256_hex(data), num_rows=old.num_rows)
    parent = dataclasses.replace(parent, version=2, tables={**parent.tables, "samples": (file,)})
    commit_version(url, parent)
    version = derive(url, parent, None, Keep([1, 2]), OPERATION)
    assert version.bands == parent.bands
    assert list(verify(url)) == []


def test_many_table_files(url, monkeypatch):
    monkeypatch.setattr("shards.commit._ROWS_PER_FILE", 5)
    first = derive(url, read_version(url), None, Keep(range(2, 24)), OPERATION)
    assert [len(first.tables[name]) for name in ("samples", "scenes", "rejects")] == [5, 5, 1]
    second = derive(url, first, None, Keep(range(2, 24, 2)), OPERATION)
    assert len(second.tables["samples"]) == 3
    assert list(verify(url)) == []


def test_in_a_bucket(object_store, write_dataset, tmp_path):
    local = write_dataset(str(tmp_path / "data"))
    url = f"{object_store}/derive/data"
    for path, data in files(local).items():
        storage.write_bytes(storage.child(url, path.relative_to(local).as_posix()), data)
    for out in (f"{object_store}/derive/small", str(tmp_path / "small")):
        version = derive(url, read_version(url), out, Keep([5, 7]), OPERATION)
        assert version.record["base"]["url"] == url
        assert list(verify(out)) == []


def test_samples_without_scenes(tmp_path):
    """Of an indexed dataset: what goes is listed by its key, and what was left out before stays listed."""
    out = str(tmp_path / "out")
    index([str(write_series(tmp_path / "tars")[0].parent)], out)
    first, _ = select(out, "label = '1'")
    second, third = select(out, "key > 'd/000003'")
    assert (first.num_samples, second.num_samples, third.num_samples) == (15, 5, 4)
    assert (third.num_scenes, third.num_rejected, third.bands) == (0, 0, first.bands)
    rejects = read_table(out, third, "rejects").to_pylist()
    assert sorted(row["path"] for row in rejects if row["detail"] == "label = '1'") == [
        f"d/{number:06d}" for number in range(15) if number % 3 != 1
    ]
    assert rejects[-1] == {
        "scene": None,
        "path": "d/000001",
        "x": 0,
        "y": 0,
        "reason": "not_selected",
        "detail": "key > 'd/000003'",
    }
    assert len(rejects) == 11
    assert list(verify(out)) == []
