"""The warp: grids that fit together, windows that suffice, pixels that are where and what they should be."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ingest  # noqa: F401  (sets GDAL's environment before rasterio is imported)

# isort: split
import rasterio.warp

from ingest.config import Recipe
from ingest.pixels import downsample
from ingest.reasons import SceneRejectedError
from ingest.warp import Grid, require_target, target_grid, warp_tile, warp_window
from shards.errors import UserError

UTM33 = "EPSG:32633"
SCENE = Grid(crs=UTM33, transform=(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_400_000.0), width=300, height=200)


def recipe(crs, gsd_m=10.0):
    return Recipe(warp_crs=crs, target_gsd_m=gsd_m)


def grid_of(source, crs, gsd_m=10.0):
    return target_grid(source.crs, source.transform, source.width, source.height, recipe(crs, gsd_m))


def picture(source, dtype="uint8", num_bands=2):
    """Smooth values that are a function of the place, 20…230."""
    rows, columns = np.mgrid[: source.height, : source.width]
    bands = [125 + 100 * np.sin(columns / 25 + band) * np.cos(rows / 30) for band in range(num_bands)]
    return np.stack(bands).astype(dtype)


def shifted(source, x, y):
    a, b, c, d, e, f = source.transform
    return a, b, a * x + b * y + c, d, e, d * x + e * y + f


def warp(values, valid, source, grid, x, y, side):
    """Warp a tile from its window alone, as the packer does."""
    window = warp_window(grid, x, y, side, source)
    rows, columns = window.toslices()
    transform = shifted(source, window.col_off, window.row_off)
    return warp_tile(values[:, rows, columns], valid[rows, columns], transform, source.crs, grid, x, y, side)


def everywhere(source):
    return np.ones((source.height, source.width), bool)


def test_a_scene_on_the_grid_keeps_its_grid():
    assert grid_of(SCENE, UTM33) == SCENE
    assert grid_of(SCENE, "utm") == SCENE


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32"])
def test_identity_is_a_crop(dtype):
    values = picture(SCENE, dtype)
    tile, valid = warp(values, everywhere(SCENE), SCENE, SCENE, 40, 30, 64)
    assert tile.dtype == values.dtype
    assert valid.all()
    assert np.allclose(tile, values[:, 30:94, 40:104], rtol=1e-6 if dtype == "float32" else 0, atol=0)


def test_a_grid_moved_by_whole_pixels_moves_the_pixels():
    source = Grid(crs=UTM33, transform=shifted(SCENE, 7, -3), width=300, height=200)
    values = picture(source)
    tile, valid = warp(values, everywhere(source), source, SCENE, 0, 0, 64)
    assert not valid[:, :7].any()
    assert not tile[:, :, :7].any()
    assert valid[:, 7:].all()
    assert np.array_equal(tile[:, :, 7:], values[:, 3:67, : 64 - 7])


def test_half_a_pixel_is_the_mean_of_two():
    source = Grid(crs=UTM33, transform=shifted(SCENE, 0.5, 0), width=300, height=200)
    values = np.zeros((1, 200, 300), np.uint16)
    values[:, :, 10], values[:, :, 11] = 1000, 3000
    tile, _ = warp(values, everywhere(source), source, SCENE, 0, 0, 32)
    assert tile[0, 5, 9:14].tolist() == [0, 500, 2000, 1500, 0]


@pytest.mark.parametrize("gsd_m", [10.0, 15.0, 20.0, 37.0])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_what_has_no_data_never_bleeds(gsd_m, dtype):
    """Beside a constant there is something wild without data: it must show nowhere."""
    values = np.full((2, 200, 300), 100, dtype)
    valid = np.random.default_rng(0).random((200, 300)) < 0.6
    wild = np.nan if dtype == "float32" else np.iinfo(dtype).max
    values[:, ~valid] = wild
    source = Grid(crs=UTM33, transform=shifted(SCENE, 0.3, 0.4), width=300, height=200)
    grid = grid_of(source, UTM33, gsd_m)
    tile, kept = warp(values, valid, source, grid, 1, 1, 40)
    assert 0.3 < kept.mean() < 1
    assert np.allclose(tile[:, kept], 100, rtol=1e-6 if dtype == "float32" else 0, atol=0)
    assert not tile[:, ~kept].any()


@pytest.mark.parametrize("gsd_m", [10.0, 25.0])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16"])
def test_zero_and_the_largest_value_are_values_like_others(dtype, gsd_m):
    for value in (0, np.iinfo(dtype).max):
        values = np.full((1, 200, 300), value, dtype)
        tile, valid = warp(values, everywhere(SCENE), SCENE, grid_of(SCENE, UTM33, gsd_m), 2, 2, 50)
        assert valid.all()
        assert (tile == value).all()


def test_from_twice_the_pixel_size_on_all_pixels_count():
    values = np.zeros((1, 200, 300), np.uint16)
    values[:, ::4, ::4] = 1600  # bilinear at every second or fourth pixel would miss or exaggerate these
    tile, _ = warp(values, everywhere(SCENE), SCENE, grid_of(SCENE, UTM33, 40.0), 0, 0, 40)
    assert (tile == 100).all()
    tile, _ = warp(values, everywhere(SCENE), SCENE, grid_of(SCENE, UTM33, 20.0), 0, 0, 40)
    assert set(np.unique(tile).tolist()) == {0, 400}


def test_blocks_that_are_averaged_count_from_the_scene_also_at_its_cut_edge():
    values = np.random.default_rng(2).integers(0, 60000, (2, 200, 299)).astype(np.uint16)
    source = Grid(crs=UTM33, transform=(10.0, 0.0, 510_000.0, 0.0, -10.0, 5_400_000.0), width=299, height=200)
    grid = grid_of(source, UTM33, 30.0)
    assert (grid.width, grid.height) == (100, 67)
    tile, valid = warp(values, everywhere(source), source, grid, 60, 40, 40)
    means, _ = downsample(values[:, :198, :297], everywhere(source)[:198, :297], 3)
    assert valid[:27, :39].all()
    assert valid[:26].all()
    assert not valid[26, 39]  # 2 × 2 of 3 × 3 pixels are less than half
    assert not valid[27:].any()
    assert np.array_equal(tile[:, :26, :39], means[:, 40:, 60:])


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["EPSG:3857", "EPSG:4326", "EPSG:3035", "EPSG:32632"]), st.sampled_from([7.0, 10.0, 33.0]))
def test_pixels_are_where_they_belong(crs, gsd_m):
    """A picture of the place's own coordinates shows, warped, each pixel's place as PROJ computes it."""
    rows, columns = np.mgrid[:200, :300] + 0.5
    values = np.stack([columns, rows]).astype(np.float32)
    grid = grid_of(SCENE, crs, gsd_m)
    side = 48
    x, y = grid.width // 2 - side // 2, grid.height // 2 - side // 2
    tile, valid = warp(values, everywhere(SCENE), SCENE, grid, x, y, side)
    target_rows, target_columns = np.mgrid[:side, :side] + 0.5
    a, _, c, _, e, f = grid.transform
    east, north = a * (target_columns + x) + c, e * (target_rows + y) + f
    xs, ys = rasterio.warp.transform(crs, UTM33, east.ravel(), north.ravel())
    expected = np.stack([(np.array(xs) - 500_000) / 10, (5_400_000 - np.array(ys)) / 10]).reshape(2, side, side)
    inside = valid & (expected > 4).all(axis=0) & (expected[0] < 296) & (expected[1] < 196)
    assert inside.mean() > 0.5
    assert np.abs(tile - expected)[:, inside].max() < max(gsd_m / 10, 1) / 8


@pytest.mark.parametrize(("crs", "gsd_m"), [("EPSG:3857", 12.0), ("EPSG:4326", 30.0), ("EPSG:3035", 9.0)])
def test_a_window_is_as_good_as_the_whole_scene(crs, gsd_m):
    values, valid = picture(SCENE, "uint16") * np.uint16(200), np.random.default_rng(1).random((200, 300)) < 0.9
    grid = grid_of(SCENE, crs, gsd_m)
    for x, y in [(0, 0), (grid.width // 2 - 16, grid.height // 2 - 16), (grid.width - 32, grid.height - 32)]:
        from_window = warp(values, valid, SCENE, grid, x, y, 32)
        from_scene = warp_tile(values, valid, SCENE.transform, UTM33, grid, x, y, 32)
        assert np.array_equal(from_window[1], from_scene[1])
        assert np.array_equal(from_window[0], from_scene[0])


def test_a_tile_repeats_and_its_neighbour_agrees():
    rows, columns = np.mgrid[:200, :300] + 0.5
    values = np.stack([columns, rows]).astype(np.float32)
    grid = grid_of(SCENE, "EPSG:3857", 20.0)
    first, again, beside = (warp(values, everywhere(SCENE), SCENE, grid, x, 30, 64) for x in (60, 60, 77))
    assert first[0].tobytes() == again[0].tobytes()
    assert np.array_equal(first[1][:, 17:], beside[1][:, :-17])
    assert np.abs(first[0][:, :, 17:] - beside[0][:, :, :-17]).max() < 1 / 8  # values are pixels


def test_rotated_and_south_up_scenes_come_out_north_up():
    turn = math.radians(30)
    turned = (10 * math.cos(turn), 10 * math.sin(turn), 5e5, 10 * math.sin(turn), -10 * math.cos(turn), 5.4e6)
    for transform in (turned, (10.0, 0.0, 5e5, 0.0, 10.0, 5.3e6)):
        source = Grid(crs=UTM33, transform=transform, width=200, height=200)
        rows, columns = np.mgrid[:200, :200] + 0.5
        d, e, f = transform[3:]
        north = (d * columns + e * rows + f)[None].astype(np.float64)
        grid = grid_of(source, UTM33)
        tile, valid = warp(north, everywhere(source), source, grid, grid.width // 2 - 20, grid.height // 2 - 20, 40)
        top = grid.transform[5] - 10 * (grid.height // 2 - 20)
        assert valid.all()
        assert np.allclose(tile[0], (top - 10 * (np.arange(40) + 0.5))[:, None], atol=1e-3)


def test_a_tile_beside_the_scene_needs_no_pixels():
    grid = grid_of(SCENE, "EPSG:3857")
    assert warp_window(grid, grid.width + 500, 0, 64, SCENE) is None
    window = warp_window(grid, 0, 0, 64, SCENE)
    assert 0 <= window.col_off < window.col_off + window.width <= 300
    assert window.width < 120


@given(st.floats(-170, 170), st.floats(-60, 60), st.sampled_from([0.3, 10.0, 30.0]))
@settings(deadline=None)
def test_grids_lie_on_multiples_and_hold_the_scene(lon, lat, gsd_m):
    source = Grid(crs="EPSG:4326", transform=(1e-4, 0.0, lon, 0.0, -1e-4, lat), width=100, height=80)
    grid = grid_of(source, "utm", gsd_m)
    a, _, c, _, e, f = grid.transform
    assert (a, e) == (gsd_m, -gsd_m)
    assert c / gsd_m == pytest.approx(round(c / gsd_m), abs=1e-6)
    assert f / gsd_m == pytest.approx(round(f / gsd_m), abs=1e-6)
    # Tiles all over the grid find the scene's pixels, and together all of it.
    window = warp_window(grid, 0, 0, max(grid.width, grid.height), source)
    assert (window.col_off, window.row_off, window.width, window.height) == (0, 0, 100, 80)


@pytest.mark.parametrize(
    ("lon", "lat", "crs"),
    [
        (15.0, 50.0, "EPSG:32633"),
        (15.0, -50.0, "EPSG:32733"),
        (-179.9, 10.0, "EPSG:32601"),
        (179.9, 10.0, "EPSG:32660"),
        (5.0, 60.0, "EPSG:32631"),
        (10.0, 86.0, "EPSG:32661"),
        (10.0, -81.0, "EPSG:32761"),
    ],
)
def test_utm_is_the_zone_of_the_centre(lon, lat, crs):
    source = Grid(crs="EPSG:4326", transform=(1e-4, 0.0, lon - 0.005, 0.0, -1e-4, lat + 0.005), width=100, height=100)
    assert grid_of(source, "utm").crs == crs


@pytest.mark.parametrize("crs", ["EPSG:4326", "utm"])
@pytest.mark.parametrize("source_crs", ["EPSG:32660", "EPSG:4326"])
def test_scenes_across_the_antimeridian_stay_whole(source_crs, crs):
    if source_crs == "EPSG:4326":
        source = Grid(crs=source_crs, transform=(1e-4, 0.0, 179.99, 0.0, -1e-4, 0.51), width=200, height=150)
    else:  # zone 60 ends at 180° E, 334 km east of its middle meridian
        source = Grid(crs=source_crs, transform=(10.0, 0.0, 833_000.0, 0.0, -10.0, 60_000.0), width=200, height=150)
    grid = grid_of(source, crs)
    assert grid.width < 400
    assert grid.height < 400
    values = picture(source)
    side = 100
    tile, valid = warp(values, everywhere(source), source, grid, 50, 30, side)
    assert valid.all()
    assert np.abs(np.diff(tile.astype(int), axis=2)).max() < 20


@pytest.mark.parametrize(
    ("crs", "transform", "target"),
    [
        (None, SCENE.transform, "utm"),
        (UTM33, None, "utm"),
        (UTM33, (10.0, 10.0, 5e5, 10.0, 10.0, 5.4e6), "utm"),
        (UTM33, (math.nan, 0.0, 5e5, 0.0, -10.0, 5.4e6), "utm"),
        ('LOCAL_CS["plan"]', SCENE.transform, "EPSG:3857"),
        ('LOCAL_CS["plan"]', SCENE.transform, "utm"),
        (UTM33, SCENE.transform, "EPSG:999999"),
        ("EPSG:4326", (1.0, 0.0, -150.0, 0.0, -1.0, 90.0), "EPSG:3857"),  # the pole is infinitely far away
        ("EPSG:32660", (10.0, 0.0, 833_000.0, 0.0, -10.0, 60_000.0), "EPSG:3857"),  # torn to both ends of the map
    ],
)
def test_what_has_no_place_is_rejected(crs, transform, target):
    with pytest.raises(SceneRejectedError, match="no_place"):
        target_grid(crs, transform, 300, 200, recipe(target))


@pytest.mark.parametrize("name", ["EPSG:99999", "UTM", "epsg:3857x", "EPSG:4978", 'LOCAL_CS["x",UNIT["metre",1]]'])
def test_a_target_that_is_no_map_is_refused_by_name(name, capfd):
    with pytest.raises(UserError, match=rf"--warp_crs {re.escape(name)} is no CRS of a map: give a code such as"):
        require_target(name)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["EPSG:3857", "EPSG:4326", "utm", "+proj=utm +zone=33"])
def test_a_target_that_is_one_is_taken(name):
    require_target(name)
