"""Datasets that grow, are built again, and are compared: contents, not histories, decide about digests."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from ingest.__main__ import _report, main
from ingest.cluster import cluster
from ingest.config import IngestConfig, RebuildConfig
from ingest.rebuild import rebuild
from ingest.run import ingest
from shards import storage
from shards.card.page import write_card
from shards.curation.dedup import dedup
from shards.curation.select import select
from shards.errors import UserError
from shards.tables import read_table, read_version
from shards.verify import verify


@pytest.fixture(scope="module", autouse=True)
def shared_cluster():
    """One Ray cluster for all runs of this process: starting one takes longer than most of them."""
    with cluster("", 2):
        yield


def write_scene(path, seed, side=200):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(1, 255, (3, side, side), np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=3, dtype="uint8", tiled=True, blockxsize=64,
        blockysize=64, crs="EPSG:32631", transform=rasterio.Affine(0.5, 0, 4e5 + seed * 1000, 0, -0.5, 5e6),
    ) as target:  # fmt: skip
        target.write(pixels)


def configure(scenes, out, **values):
    common = {"tile_px": 64, "shard_mb": 0.1, "workers": 2}
    return IngestConfig(**{"scenes": str(scenes), "out": str(out)} | common | values)


def rebuild_of(url, version, out):
    return rebuild(RebuildConfig(rebuild=url, version=version, out=str(out), workers=2))


def columns(url, version, table, *names):
    rows = read_table(url, version, table, list(names)).to_pylist()
    return [tuple(row.values()) for row in rows]


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A dataset of six scenes; then two more came, one changed, one vanished, one is a copy."""
    root = tmp_path_factory.mktemp("grown")
    scenes, out = root / "scenes", str(root / "data")
    for seed in range(6):
        write_scene(scenes / f"s{seed}.tif", seed)
    (scenes / "README").write_text("no scene")
    first = ingest(configure(scenes, out)).version
    write_scene(scenes / "later/s6.tif", 6)
    write_scene(scenes / "s1.tif", 101)
    shutil.copy(scenes / "s2.tif", scenes / "later/copy.tif")
    second = ingest(configure(scenes, out))
    return scenes, out, first, second


def test_a_later_version_keeps_the_old_shards(grown):
    _, out, first, second = grown
    assert (first.version, second.version.version) == (1, 2)
    assert second.created
    assert list(verify(out, 1)) == []
    assert list(verify(out, 2)) == []
    old = {url for (url,) in columns(out, first, "shards", "url")}
    new = {url for (url,) in columns(out, second.version, "shards", "url")}
    assert new > (old & new)
    # Only what lost all its tiles may go.
    kept = {row[0] for row in columns(out, second.version, "samples", "shard")}
    assert all(Path(url).stem not in kept for url in old - new)
    record = second.version.record
    assert record["parent"] == 1
    assert len(record["plans"]) == 2


def test_a_grown_dataset_equals_one_made_at_once(grown, tmp_path):
    scenes, _, first, second = grown
    at_once = ingest(configure(scenes, tmp_path / "data")).version
    assert at_once.digest == second.version.digest != first.digest
    assert at_once.bands == second.version.bands
    assert at_once.num_samples == second.version.num_samples


def test_equal_tiles_are_kept_once_whichever_came_first(grown):
    _, out, _, second = grown
    rejects = columns(out, second.version, "rejects", "path", "reason", "detail")
    doubles = [(path, detail) for path, reason, detail in rejects if reason == "duplicate"]
    assert len(doubles) == 16
    assert len({path for path, _ in doubles}) == 1
    keys = {key for (key,) in columns(out, second.version, "samples", "key")}
    assert {detail for _, detail in doubles} <= keys


def test_the_same_again_makes_no_version(grown):
    scenes, out, _, second = grown
    again = ingest(configure(scenes, out))
    assert not again.created
    assert again.version == second.version


def test_scenes_that_are_gone_stay_and_are_told(grown, tmp_path):
    scenes, out, _, second = grown
    shutil.copytree(scenes, tmp_path / "scenes", copy_function=shutil.copy2)
    shutil.copytree(out, tmp_path / "data")
    moved = ingest(configure(tmp_path / "scenes", tmp_path / "new")).version
    assert moved.digest == second.version.digest
    (tmp_path / "scenes/s3.tif").unlink()
    outcome = ingest(configure(tmp_path / "scenes", tmp_path / "new"))
    assert outcome.gone == 1
    assert not outcome.created


def test_a_chip_that_was_moved_to_another_class_has_its_new_label(tmp_path):
    """Whichever key is smaller; also where the right copy was there before the wrong one went."""
    scenes, out = tmp_path / "scenes", tmp_path / "data"
    for seed in range(8):
        write_scene(scenes / f"river/{seed}.tif", seed, side=64)
    for seed in range(4):
        (scenes / "lake").mkdir(exist_ok=True)
        shutil.copy(scenes / f"river/{seed}.tif", scenes / f"lake/{seed}.tif")
    ingest(configure(scenes, out, label_from="folder"))
    for seed in range(8):
        (scenes / f"river/{seed}.tif").rename(scenes / f"lake/{seed}.tif")
    outcome = ingest(configure(scenes, out, label_from="folder"))
    assert (outcome.gone, outcome.created) == (8, True)
    assert columns(str(out), outcome.version, "samples", "label") == [("lake",)] * 8
    assert list(verify(str(out))) == []
    assert not ingest(configure(scenes, out, label_from="folder")).created


def test_an_ingest_after_a_selection_builds_upon_the_ingest(grown, tmp_path, capsys):
    scenes, out, *_ = grown
    shutil.copytree(out, tmp_path / "data")
    shutil.copytree(scenes, tmp_path / "scenes", copy_function=shutil.copy2)
    data = str(tmp_path / "data")
    selected = select(data, "x = 0")[1]
    assert selected.version == 3
    outcome = ingest(configure(scenes, data))
    assert not outcome.created
    assert read_version(data).version == 3
    _report(outcome, data)
    assert "version 3 is a selection (select x = 0): it is the newest\n" in capsys.readouterr().out


def test_rebuild_gives_the_same_digest(grown, tmp_path):
    _, out, first, second = grown
    result = rebuild_of(out, None, tmp_path / "again")
    assert result.equal
    assert list(result.lines) == []
    assert result.rebuilt.digest == second.version.digest
    # Version 1 was made of a scene that has changed since: that is found and told.
    other = rebuild_of(out, 1, tmp_path / "older")
    assert not other.equal
    assert any("s1.tif" in line and "changed" in line for line in other.lines), list(other.lines)
    assert first.digest != other.rebuilt.digest


def test_rebuild_repeats_selections(grown, tmp_path):
    _, out, *_ = grown
    selected = select(out, "x < 64 and valid_share > 0.5", str(tmp_path / "some"))[1]
    fewer = dedup(str(tmp_path / "some"), 8)[1]
    assert fewer.record["operations"][0]["op"] == "select"
    result = rebuild_of(str(tmp_path / "some"), selected.version, tmp_path / "again")
    assert result.equal, list(result.lines)


def test_rebuild_tells_of_other_tools(grown, tmp_path, monkeypatch):
    _, out, *_ = grown
    shutil.copytree(out, tmp_path / "data")
    path = tmp_path / "data/versions/00000002.json"
    text = path.read_text()
    assert '"gdal":"' in text
    path.write_text(text.replace('"gdal":"', '"gdal":"1.'))
    result = rebuild_of(str(tmp_path / "data"), 2, tmp_path / "again")
    assert result.equal
    assert any(line.startswith("toolchain: gdal was 1.") for line in result.lines)


def test_what_cannot_be_rebuilt_is_one_line(write_dataset, tmp_path):
    url = write_dataset(str(tmp_path / "foreign"))
    with pytest.raises(UserError, match="has no record of how it was made"):
        rebuild_of(url, None, tmp_path / "again")


def test_the_command_line_of_rebuild(grown, tmp_path, run_stage):
    _, out, *_ = grown
    again = run_stage("ingest", "--rebuild", out, "--out", str(tmp_path / "again"), "--workers", "2")
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1].startswith("equal:")
    different = run_stage("shards", "diff", out, out, "--version_a", "1", "--version_b", "2")
    assert different.returncode == 1
    assert "later/s6.tif" in different.stdout
    assert storage.exists(str(tmp_path / "again/card.html"))


def test_landsat_scenes_of_several_files(real_images, tmp_path):
    from ingest.__main__ import _DESCRIPTION
    from shards import cli

    folder = real_images / "scenes/gdalcubes_L8NY18"
    arguments = ["--scenes", str(folder), "--out", str(tmp_path / "data"), "--tile_px", "64", "--workers", "2"]
    config = cli.parse_config(
        "ingest", _DESCRIPTION, IngestConfig, [*arguments, "--config", "ingest/configs/landsat_l1_rgb.yaml"]
    )
    outcome = ingest(config)
    assert list(verify(outcome.url)) == []
    used = [row for row in read_table(outcome.url, outcome.version, "scenes").to_pylist() if row["state"] == "used"]
    assert len(used) == 19
    assert all(len(row["files"]) == 3 and row["time"].year == 2018 for row in used)


def test_tiles_come_back_when_the_tile_that_was_kept_for_them_changes(tmp_path):
    scenes = tmp_path / "scenes"
    for name in ("a.tif", "b.tif", "c.tif"):
        write_scene(scenes / name, 1)
    write_scene(scenes / "other.tif", 2)
    first = ingest(configure(scenes, tmp_path / "data"))
    kept = {path: tiles for path, tiles in columns(first.url, first.version, "scenes", "path", "num_tiles") if tiles}
    (original,) = set(kept) & {"a.tif", "b.tif", "c.tif"}
    write_scene(scenes / original, 3)
    second = ingest(configure(scenes, tmp_path / "data")).version
    at_once = ingest(configure(scenes, tmp_path / "fresh")).version
    assert second.digest == at_once.digest
    assert list(verify(first.url)) == []


def test_a_newer_version_counts_though_the_older_file_is_gone(tmp_path):
    scenes = tmp_path / "scenes"
    values = {"file_pattern": r"(?P<acquisition>\w+)_(?P<version>N\d+)\.tif$"}
    write_scene(scenes / "x_N0300.tif", 1)
    write_scene(scenes / "y_N0300.tif", 2)
    ingest(configure(scenes, tmp_path / "data", **values))
    (scenes / "x_N0300.tif").unlink()
    write_scene(scenes / "x_N0500.tif", 3)
    second = ingest(configure(scenes, tmp_path / "data", **values)).version
    states = dict(columns(str(tmp_path / "data"), second, "scenes", "path", "reason"))
    assert states == {"x_N0300.tif": "superseded", "y_N0300.tif": None, "x_N0500.tif": None}
    assert list(verify(str(tmp_path / "data"))) == []
    assert not ingest(configure(scenes, tmp_path / "data", **values)).created


def test_what_was_missing_is_looked_at_again(tmp_path, capsys):
    write_scene(tmp_path / "archive/a.tif", 1)
    listed = tmp_path / "archive/list.csv"
    listed.write_text("path\na.tif\nb.tif\n")
    command = ["--scenes", str(listed), "--out", str(tmp_path / "data"), "--tile_px", "64"]
    assert main(command) == 1
    captured = capsys.readouterr()
    told = "1 scenes (1 missing) were left out for what may pass: run the same command again"
    assert captured.err.splitlines()[-1] == f"ingest: {told}"
    assert "version 1 made 16 tiles" in captured.out
    assert main(command) == 1
    assert "version 1 is already there" in capsys.readouterr().out
    write_scene(tmp_path / "archive/b.tif", 2)
    assert main(command) == 0
    assert "version 2 made 32 tiles" in capsys.readouterr().out
    (tmp_path / "archive/c.tif").touch()  # rejected by its content
    listed.write_text("path\na.tif\nb.tif\nc.tif\n")
    assert main(command) == 0


def test_tiles_left_out_for_what_may_pass_are_looked_at_again(tmp_path, monkeypatch):
    scenes, data = tmp_path / "scenes", tmp_path / "data"
    for seed in range(3):
        write_scene(scenes / f"s{seed}.tif", seed)
    shutil.copy(scenes / "s1.tif", scenes / "copy.tif")

    def crashing(*call):
        # In a worker: its decoder crashes on one scene.
        from ingest import pack
        from ingest.reasons import SceneRejectedError

        well = pack.call_surely

        def call_surely(decode, name, request, access, finish):
            if any(unit["path"] == "s1.tif" for unit in request["units"]):
                raise SceneRejectedError("decoder_crashed", "told")
            return well(decode, name, request, access, finish)

        pack.call_surely = call_surely
        try:
            return pack.pack_group(*call)
        finally:
            pack.call_surely = well

    with monkeypatch.context() as patch:
        patch.setattr("ingest.run.pack_group", crashing)
        first = ingest(configure(scenes, data))
        assert first.left_out.passing_tiles == {"decoder_crashed": 16}
        assert first.version.num_samples == 48
        again = ingest(configure(scenes, data))
        assert (again.created, again.version) == (False, first.version)
        assert again.left_out == first.left_out
    second = ingest(configure(scenes, data))
    assert second.version.version == 2
    assert second.left_out.passing_line == ""
    assert second.version.digest == ingest(configure(scenes, tmp_path / "fresh")).version.digest
    assert list(verify(str(data))) == []
    assert not ingest(configure(scenes, data)).created


def test_large_tables_keep_the_samples_of_a_shard_together(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.commit._ROWS_PER_FILE", 7)
    scenes = tmp_path / "scenes"
    for seed in range(5):
        write_scene(scenes / f"s{seed}.tif", seed)
    ingest(configure(scenes, tmp_path / "data"))
    write_scene(scenes / "s2.tif", 20)
    second = ingest(configure(scenes, tmp_path / "data")).version
    assert len(second.tables["samples"]) > 5
    assert list(verify(str(tmp_path / "data"))) == []
    assert second.digest == ingest(configure(scenes, tmp_path / "fresh")).version.digest


def test_a_rebuild_needs_a_place_of_its_own(grown):
    _, out, *_ = grown
    with pytest.raises(UserError, match="a rebuild needs a place of its own"):
        rebuild_of(out, None, out)


def test_a_lost_card_is_written_again(grown, tmp_path):
    scenes, out, *_ = grown
    shutil.copytree(out, tmp_path / "data")
    card = tmp_path / "data/card.html"
    card.unlink()
    assert not ingest(configure(scenes, tmp_path / "data")).created
    assert "Version 2" in card.read_text()
    # As a run leaves it that is killed between the version and its card.
    write_card(str(tmp_path / "data"), read_version(str(tmp_path / "data"), 1))
    assert "Version 2" not in card.read_text()
    assert not ingest(configure(scenes, tmp_path / "data")).created
    assert "Version 2" in card.read_text()


def test_a_failed_ingest_leaves_the_users_own_files_alone(tmp_path):
    scenes, out = tmp_path / "scenes", tmp_path / "out"
    scenes.mkdir()
    (scenes / "README").write_text("no scene")
    for name in ("groups", "plans", "probes", "inventories"):
        (out / name).mkdir(parents=True)
        (out / name / "mine.txt").write_text("keep")
    before = sorted(out.rglob("*"))
    with pytest.raises(UserError, match=r"none of the 1 files in .*scenes can be used: 1 not_a_raster"):
        ingest(configure(scenes, out))
    assert sorted(out.rglob("*")) == before
