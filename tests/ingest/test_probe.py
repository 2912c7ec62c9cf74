"""A probe says what a scene is and cuts its grid, or rejects it before any planning."""

import math

import numpy as np
import pytest
import rasterio

from ingest import probe
from ingest.config import Recipe
from ingest.pixels import percentile_bounds
from ingest.scene import open_scene, read_header
from shards.schema import canonical_json
from tests.ingest.rasters import PLACED, code, files_of, land, probed, write


def look(path, recipe, **known):
    return probed(files_of(path), recipe, **known)


def test_a_probe_says_what_the_plan_needs(tmp_path):
    path = write(tmp_path / "x.tif", land(4, side=70, width=90), tiled=True, blockxsize=32, blockysize=16, **PLACED)
    found = look(path, Recipe(tile_px=64))
    assert {name: found[name] for name in ("driver", "width", "height", "num_bands", "dtype", "crs", "gsd_m")} == {
        "driver": "GTiff", "width": 90, "height": 70, "num_bands": 4, "dtype": "uint8", "crs": "EPSG:32633",
        "gsd_m": 10,
    }  # fmt: skip
    assert (found["block_width"], found["block_height"]) == (32, 16)
    assert (found["factor"], found["grid_width"], found["grid_height"]) == (1, 90, 70)
    assert found["band_indexes"] == (1, 2, 3)
    assert found["band_files"] is None
    assert (found["low"], found["high"]) == (None, None)
    assert found["time"] is None


def test_the_inventorys_time_wins_over_the_files(tmp_path):
    path = write(tmp_path / "x.tif", land(3), tags={"TIFFTAG_DATETIME": "2023:07:15 10:30:00"})
    assert look(path, Recipe(tile_px=64))["time"] == "2023-07-15T10:30:00Z"
    assert look(path, Recipe(tile_px=64), time="2001-01-01T00:00:00Z")["time"] == "2001-01-01T00:00:00Z"


@pytest.mark.parametrize("name", ["x.tif.ovr", "x.TIF.MSK"])
def test_side_files_are_no_scenes(tmp_path, name):
    files = files_of(write(tmp_path / "x.tif", land(3)))
    assert code(lambda: probed(files, Recipe(tile_px=64), path=name)) == "side_file"


def test_what_has_no_tile_is_too_small(tmp_path):
    path = write(tmp_path / "x.tif", land(3, side=64), **PLACED)
    assert code(look, path, Recipe(tile_px=65)) == "too_small"
    assert look(path, Recipe(tile_px=65, edge="pad"))["grid_width"] == 64
    assert look(path, Recipe(tile_px=16, target_gsd_m=40))["grid_width"] == 16
    assert code(look, path, Recipe(tile_px=32, target_gsd_m=40)) == "too_small"


def test_a_pixel_is_a_scene_of_one_padded_tile(tmp_path):
    path = write(tmp_path / "x.tif", land(3, side=1))
    assert code(look, path, Recipe(tile_px=16)) == "too_small"
    assert look(path, Recipe(tile_px=16, edge="pad"))["width"] == 1


def test_a_fine_stride_or_grid_cannot_make_a_bomb_of_a_scene(tmp_path):
    path = write(tmp_path / "x.tif", land(3, side=64), **PLACED)
    assert look(path, Recipe(tile_px=32, max_scene_gb=1e-3))
    assert code(look, path, Recipe(tile_px=32, stride_px=1, max_scene_gb=1e-3)) == "too_large"
    assert code(look, path, Recipe(tile_px=32, warp_crs="utm", target_gsd_m=0.1, max_scene_gb=1e-3)) == "too_large"


@pytest.mark.parametrize(("target_gsd_m", "factor"), [(4, 1), (10, 1), (14, 1), (16, 2), (20, 2), (26, 3), (60, 6)])
def test_the_factor_is_the_nearest_whole_number(tmp_path, target_gsd_m, factor):
    path = write(tmp_path / "x.tif", land(3, side=100), **PLACED)
    found = look(path, Recipe(tile_px=16, target_gsd_m=target_gsd_m))
    assert (found["factor"], found["grid_width"], found["grid_height"]) == (factor, 100 // factor, 100 // factor)


def test_without_a_place_there_is_no_target_gsd(tmp_path):
    path = write(tmp_path / "x.tif", land(3))
    assert code(look, path, Recipe(tile_px=16, target_gsd_m=20)) == "no_place"
    assert code(look, path, Recipe(tile_px=16, target_gsd_m=20, warp_crs="utm")) == "no_place"
    nowhere = rasterio.Affine(float("nan"), 0, 0, 0, 1, 0)
    broken = write(tmp_path / "y.tif", land(3), crs="EPSG:32633", transform=nowhere)
    assert code(look, broken, Recipe(tile_px=16, target_gsd_m=20)) == "no_place"


@pytest.mark.parametrize("size", [0, 1e-300, 1e200])
def test_pixels_without_a_size_have_no_place(tmp_path, size):
    path = write(tmp_path / "x.tif", land(3), crs="EPSG:32633", transform=rasterio.Affine(size, 0, 5e5, 0, -size, 5e6))
    assert look(path, Recipe(tile_px=16))["gsd_m"] is None
    for warp_crs in ("", "utm"):
        assert code(look, path, Recipe(tile_px=16, target_gsd_m=20, warp_crs=warp_crs)) == "no_place"


@pytest.mark.parametrize("size", [1e-60, 1e-3])
@pytest.mark.parametrize("warp_crs", ["", "utm"])
def test_a_scene_within_one_pixel_is_too_small(tmp_path, size, warp_crs):
    path = write(tmp_path / "x.tif", land(3), crs="EPSG:32633", transform=rasterio.Affine(size, 0, 5e5, 0, -size, 5e6))
    assert code(look, path, Recipe(tile_px=16, target_gsd_m=20, warp_crs=warp_crs, edge="pad")) == "too_small"


def test_a_warped_scene_has_a_grid_of_its_own(tmp_path):
    path = write(tmp_path / "x.tif", land(3), **PLACED)
    found = look(path, Recipe(tile_px=16, target_gsd_m=20, warp_crs="EPSG:32633"))
    assert (found["factor"], found["grid_width"], found["grid_height"]) == (None, 32, 32)


def test_bounds_by_policy(tmp_path):
    pixels = land(3, "uint16")
    pixels[:, :8] = 0
    path = write(tmp_path / "x.tif", pixels, nodata=0)
    linear = look(path, Recipe(tile_px=16, normalisation="linear", low=5, high=50))
    assert (linear["low"], linear["high"]) == ((5, 5, 5), (50, 50, 50))
    assert look(path, Recipe(tile_px=16, normalisation="keep", dtype="uint16"))["low"] is None
    found = look(path, Recipe(tile_px=16, percentiles=(2, 98)))
    # A small scene is sampled whole, without the pixels that have no data.
    assert (found["low"], found["high"]) == percentile_bounds(pixels[:, 8:].reshape(3, -1), (2, 98))


def test_a_scene_without_data_cannot_be_scaled(tmp_path):
    path = write(tmp_path / "x.tif", np.zeros((3, 64, 64), np.uint16))
    assert code(look, path, Recipe(tile_px=16)) == "no_data"
    nan = write(tmp_path / "y.tif", np.full((3, 64, 64), np.nan, np.float32))
    assert code(look, nan, Recipe(tile_px=16)) == "no_data"


def test_a_scene_with_little_data_is_scaled_by_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "_SAMPLE_PX", 16)
    monkeypatch.setattr(probe, "_SAMPLE_WINDOWS", 2)
    pixels = np.zeros((3, 256, 256), np.uint16)
    pixels[:, 32:64, 96:128] = land(3, "uint16", side=32)
    path = write(tmp_path / "x.tif", pixels, nodata=0)
    # Of 256 windows 4 have data; the two of these scenes' samples have none.
    expected = percentile_bounds(pixels[:, 32:48, 96:128].reshape(3, -1), (1, 99))
    found = [probed(files_of(path), Recipe(tile_px=16), scene=f"{number:016x}") for number in range(2)]
    assert [(row["low"], row["high"]) for row in found] == [expected] * 2


def test_a_damaged_block_in_the_sample_is_a_rejection(tmp_path):
    path = tmp_path / "x.tif"
    write(path, land(3, "uint16", side=256), driver="COG", blocksize=128)
    path.write_bytes(path.read_bytes()[:-1000])
    assert code(look, path, Recipe(tile_px=16)) == "corrupt"


def test_the_sample_is_bounded_and_chosen_by_the_scene(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "_SAMPLE_PX", 16)
    monkeypatch.setattr(probe, "_SAMPLE_WINDOWS", 5)
    files = files_of(write(tmp_path / "x.tif", land(3, "uint16", side=90)))
    with open_scene(files, Recipe()) as scene:
        header = read_header(scene, files, Recipe())
        one, again, other = (probe.sample_values(scene, header, name, Recipe()) for name in ("0a", "0a", "0b"))
    assert one.shape[0] == 3
    assert one.shape[1] <= 5 * 16**2
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_all_of_the_answer_can_travel_as_json(tmp_path):
    for dtype in ("uint8", "int16", "float32"):
        path = write(tmp_path / "x.tif", land(3, dtype), nodata=-1 if dtype != "uint8" else 255, **PLACED)
        found = look(path, Recipe(tile_px=16))
        assert canonical_json({name: found[name] for name in found})
        assert all(math.isfinite(value) for value in found["low"] or ())
