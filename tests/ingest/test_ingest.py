"""The whole stage through Ray: the same bytes for any number of workers, everything accounted for."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from ingest.cluster import Failure, cluster
from ingest.config import IngestConfig
from ingest.run import IncompleteError, ingest
from shards import storage
from shards.dataset import open_dataset
from shards.errors import UserError
from shards.images import decode_image
from shards.tables import read_table, read_version, version_url
from shards.verify import verify


@pytest.fixture(scope="module", autouse=True)
def shared_cluster():
    """One Ray cluster for all runs of this process: starting one takes longer than most of them."""
    with cluster("", 2):
        yield


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder as real life has it: several types and places, and things that are no scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(1, 255, (3, 200, 150 + 20 * number), np.uint8)
        if number == 3:
            pixels[:, :, :100] = 0
        write(folder / f"utm{number}.tif", pixels, crs=f"EPSG:3263{number}", nodata=0)
    reflectance = rng.integers(200, 4000, (4, 160, 160), np.uint16)
    write(folder / "sub/s2.tif", reflectance, names=("blue", "green", "red", "nir"), crs="EPSG:32733")
    Image.fromarray(rng.integers(0, 255, (130, 130, 3), np.uint8)).save(folder / "sub/plain.png")
    write(folder / "grey.tif", rng.integers(1, 255, (1, 128, 128), np.uint8))
    write(folder / "small.tif", rng.integers(1, 255, (3, 20, 20), np.uint8))
    write(folder / "flat.tif", np.full((3, 128, 128), 90, np.uint8))
    write(folder / "cut.tif", rng.integers(1, 255, (3, 128, 128), np.uint8))
    data = (folder / "cut.tif").read_bytes()
    (folder / "cut.tif").write_bytes(data[: len(data) // 2])
    (folder / "README.txt").write_text("not a scene")
    (folder / "nothing.tif").touch()
    return folder


def write(path, pixels, names=None, **profile):
    path.parent.mkdir(exist_ok=True)
    transform = rasterio.Affine(0.5, 0, 4e5, 0, -0.5, 5e6)
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=count, dtype=pixels.dtype, transform=transform,
        tiled=True, blockxsize=64, blockysize=64, **profile,
    ) as target:  # fmt: skip
        target.write(pixels)
        if names:
            target.descriptions = names


def configure(scenes, out, **values):
    return IngestConfig(
        **{"scenes": str(scenes), "out": str(out), "tile_px": 64, "shard_mb": 0.1, "workers": 2} | values
    )


@pytest.fixture(scope="module")
def made(scenes, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("out") / "data")
    return ingest(configure(scenes, out))


def test_every_file_has_its_end_state_and_the_dataset_is_whole(made):
    assert list(verify(made.url)) == []
    scenes = {row["path"]: row for row in read_table(made.url, made.version, "scenes").to_pylist()}
    used = {path for path, row in scenes.items() if row["state"] == "used"}
    # Of the truncated file one tile is whole; the others are rejected one by one.
    assert used == {"utm0.tif", "utm1.tif", "utm2.tif", "utm3.tif", "sub/s2.tif", "sub/plain.png", "cut.tif"}
    reasons = {path: row["reason"] for path, row in scenes.items() if row["state"] == "rejected"}
    assert reasons == {
        "grey.tif": "bands_missing",
        "small.tif": "too_small",
        "flat.tif": "no_tiles_left",
        "README.txt": "not_a_raster",
        "nothing.tif": "empty_file",
    }
    assert made.rejected == Counter(reasons.values())
    assert scenes["flat.tif"]["detail"] == "4 low_contrast"
    assert (scenes["cut.tif"]["num_tiles"], scenes["cut.tif"]["num_dropped"]) == (1, 3)
    assert made.dropped == {"low_contrast": 4, "corrupt": 3, "low_valid_share": 8}


def test_tiles_hold_the_pixels_of_their_window(scenes, tmp_path):
    outcome = ingest(configure(scenes, tmp_path / "out", encoding="png", edge="drop"))
    dataset = open_dataset(outcome.url)
    rows = read_table(outcome.url, outcome.version, "samples").to_pylist()
    seen = set()
    for index, row in enumerate(rows):
        sample = dataset.read(index)
        metadata = json.loads(sample.metadata)
        assert metadata["key"] == sample.key == row["key"]
        path = metadata["path"]
        if not path.startswith("utm"):
            continue
        seen.add(path)
        with rasterio.open(scenes / path) as source:
            window = rasterio.windows.Window(row["x"], row["y"], 64, 64)
            expected = source.read(window=window).transpose(1, 2, 0)
            assert row["bounds"] == pytest.approx(list(source.window_bounds(window)))
            assert row["transform"] == pytest.approx(list(source.window_transform(window))[:6])
        assert np.array_equal(decode_image(sample.ext, sample.image), expected)
        assert row["gsd_m"] == 0.5
        assert row["crs"] == f"EPSG:3263{path[3]}"
    assert len(seen) == 4


def test_band_figures_are_those_of_all_valid_pixels(scenes, tmp_path):
    outcome = ingest(configure(scenes, tmp_path / "out", encoding="png", min_valid_share=1.0))
    dataset = open_dataset(outcome.url)
    samples = [dataset.read(index) for index in range(dataset.num_samples)]
    pixels = np.concatenate([decode_image(sample.ext, sample.image).reshape(-1, 3) for sample in samples])
    for band, figures in enumerate(outcome.version.bands):
        assert figures.mean == pytest.approx(pixels[:, band].mean(), abs=1e-5)
        assert figures.std == pytest.approx(pixels[:, band].std(), abs=1e-5)


def test_digest_does_not_depend_on_workers_or_place(scenes, made, run_stage, tmp_path):
    moved, out = tmp_path / "moved", str(tmp_path / "out")
    shutil.copytree(scenes, moved)
    options = ["--tile_px", "64", "--shard_mb", "0.1", "--workers", "1"]
    run_stage("ingest", "--scenes", str(moved), "--out", out, *options, check=True)
    version = read_version(out)
    assert version.digest == made.version.digest
    names = read_table(out, version, "shards")["shard"].to_pylist()
    assert names == [shard["shard"] for shard in shards(made)]


def shards(outcome):
    return read_table(outcome.url, outcome.version, "shards").to_pylist()


def test_an_interrupted_run_goes_on_from_its_markers(scenes, made, tmp_path):
    out = str(tmp_path / "out")
    first = ingest(configure(scenes, out))
    # As a crash would leave it: no version, one group without marker, one without anything.
    storage.remove(version_url(out, 1))
    markers = sorted(Path(out, "groups").glob("*.json"))
    markers[0].unlink()
    for path in Path(out, "groups").glob(f"{markers[1].stem}*"):
        path.unlink()
    kept = markers[2].stat().st_mtime_ns
    again = ingest(configure(scenes, out))
    assert again.created
    assert again.version == first.version
    assert again.version.digest == made.version.digest
    assert markers[2].stat().st_mtime_ns == kept


def test_a_killed_driver_leaves_nothing_that_a_restart_trips_over(scenes, made, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ingest", "--scenes", scenes, "--out", out, "--tile_px", "64", "--shard_mb", "0.1"]
    driver = subprocess.Popen([*map(str, command), "--workers", "1"], stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(out.glob("groups/*.json")):
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    killed_in_time = not list(out.glob("versions/*.json"))
    again = ingest(configure(scenes, out))
    assert again.created == killed_in_time
    assert again.version.digest == made.version.digest
    assert list(verify(str(out))) == []


def test_names_of_all_kinds(tmp_path):
    folder = tmp_path / "scenes"
    rng = np.random.default_rng(0)
    for name in ["a::b.tif", "mit Leerzeichen ü.tif", "[x].tif", "100%.tif"]:
        write(folder / name, rng.integers(1, 255, (3, 64, 64), np.uint8))
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.tif")).write_bytes((folder / "100%.tif").read_bytes())
    (folder / "circle").symlink_to(folder)
    outcome = ingest(configure(folder, tmp_path / "out"))
    assert list(verify(outcome.url)) == []
    assert outcome.version.num_samples == 4
    assert outcome.rejected == {"missing": 1, "not_a_raster": 1}
    assert all(key.isascii() for key in read_table(outcome.url, outcome.version, "samples")["key"].to_pylist())


def test_when_no_tile_is_left_nothing_stays(scenes, tmp_path):
    with pytest.raises(UserError, match=r"no tile of .* is left: .*low_contrast"):
        ingest(configure(scenes, tmp_path / "out", min_contrast=1.0))
    assert not (tmp_path / "out").exists()


def test_the_same_command_again_finds_the_version(scenes, made):
    again = ingest(configure(scenes, made.url))
    assert not again.created
    assert again.version == made.version
    assert again.rejected == made.rejected


def test_another_recipe_does_not_overwrite(scenes, made):
    with pytest.raises(UserError, match=r"already holds version 1 .*tile_px 64 instead of 32.*choose another --out"):
        ingest(configure(scenes, made.url, tile_px=32))


def test_other_scenes_do_not_overwrite(made, tmp_path):
    other = tmp_path / "scenes"
    other.mkdir()
    (other / "file").write_text("x")
    with pytest.raises(UserError, match=r"was made from .*not from .*: choose another --out"):
        ingest(configure(other, made.url))


def test_multi_band_values_are_kept(scenes, tmp_path):
    config = configure(
        scenes, tmp_path / "out", bands=("red", "nir"), normalisation="keep", dtype="uint16", edge="pad", stride_px=64
    )
    outcome = ingest(config)
    assert [band.name for band in outcome.version.bands] == ["red", "nir"]
    dataset = open_dataset(outcome.url)
    row = read_table(outcome.url, outcome.version, "samples").to_pylist()[0]
    tile = decode_image("npy", dataset.read(0).image)
    with rasterio.open(scenes / "sub/s2.tif") as source:
        window = rasterio.windows.Window(row["x"], row["y"], min(64, 160 - row["x"]), min(64, 160 - row["y"]))
        expected = source.read([3, 4], window=window).transpose(1, 2, 0)
    assert np.array_equal(tile[: expected.shape[0], : expected.shape[1]], expected)


def test_percentile_scaling_is_recorded_and_uses_the_range(made):
    row = next(row for row in read_table(made.url, made.version, "scenes").to_pylist() if row["path"] == "sub/s2.tif")
    assert row["band_indexes"] == [3, 2, 1]
    assert row["low"] == pytest.approx([238, 238, 238], abs=15)
    assert row["high"] == pytest.approx([3962, 3962, 3962], abs=15)
    samples = read_table(made.url, made.version, "samples").to_pylist()
    clipped = [sample["clipped_share"] for sample in samples if sample["scene"] == row["scene"]]
    assert len(clipped) == 9
    assert all(0.02 < share < 0.1 for share in clipped)


def test_labels_come_from_folders(scenes, tmp_path):
    outcome = ingest(configure(scenes, tmp_path / "out", label_from="folder"))
    labels = Counter(read_table(outcome.url, outcome.version, "samples")["label"].to_pylist())
    assert labels["sub"] == 9 + 9
    assert labels[None] == outcome.version.num_samples - 18


def test_from_a_bucket_into_a_bucket(scenes, made, object_store, run_stage):
    source, out = f"{object_store}/archive", f"{object_store}/dataset"
    for info in storage.list_files(str(scenes)):
        storage.write_bytes(storage.join(source, info.path), storage.read_bytes(str(scenes / info.path)))
    options = ["--tile_px", "64", "--shard_mb", "0.1", "--workers", "2"]
    run_stage("ingest", "--scenes", source, "--out", out, *options, check=True)
    assert read_version(out).digest == made.version.digest
    assert list(verify(out)) == []


def test_real_scenes(real_images, tmp_path):
    # The folder holds copies of some scenes, which count here.
    config = configure(real_images / "scenes", tmp_path / "out", tile_px=128, shard_mb=64.0, drop_duplicates=False)
    outcome = ingest(config)
    assert list(verify(outcome.url)) == []
    folder = real_images / "scenes"
    listed = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    found = read_table(outcome.url, outcome.version, "scenes")["path"].to_pylist()
    # Zip files are read as folders: their members stand in for them.
    assert {path for path in listed if not path.endswith(".zip")} == {path for path in found if ".zip/" not in path}
    assert outcome.version.num_scenes - outcome.version.num_rejected >= 24
    values = {"tile_px": 64, "replicate_grey": True, "shard_mb": 64.0, "drop_duplicates": False}
    grey = ingest(configure(real_images / "scenes", tmp_path / "grey", **values))
    assert list(verify(grey.url)) == []
    # All but side files, non-rasters and multi-band scenes without red, green, blue can supply something now.
    assert grey.version.num_scenes - grey.version.num_rejected > 200
    assert read_version(grey.url) == grey.version


def test_a_store_that_fails_during_the_inventory_is_one_line(scenes, tmp_path, monkeypatch):
    def fail(config):
        raise error

    monkeypatch.setattr("ingest.run.build_inventory", fail)
    error = PermissionError("s3://b/a.zip: ExpiredToken")
    with pytest.raises(UserError, match=r"no permission for .*scenes.*s3://b/a.zip: ExpiredToken"):
        ingest(configure(scenes, tmp_path / "out"))
    error = storage.StorageError("s3://b/a.zip: gave up", "server")
    with pytest.raises(IncompleteError) as caught:
        ingest(configure(scenes, tmp_path / "out"))
    assert caught.value.lines == ["s3://b/a.zip: gave up"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("", "1 parts failed; run"),
        ("head:6379", "1 parts failed on head:6379, whose machines go by their own settings (AWS_…) and disks; run"),
    ],
)
def test_what_fails_on_a_cluster_points_to_its_machines(scenes, tmp_path, monkeypatch, address, told):
    monkeypatch.setattr("ingest.run.cluster", lambda address, workers: contextlib.nullcontext())
    monkeypatch.setattr("ingest.run.run_tasks", lambda *args, **more: [Failure(0, "Unable to locate credentials")])
    with pytest.raises(IncompleteError) as caught:
        ingest(replace(configure(scenes, tmp_path / "out"), address=address))
    assert caught.value.lines == ["probe 0: Unable to locate credentials"]
    assert told in str(caught.value)
