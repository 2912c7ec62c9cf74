"""Tiles hold exactly the pixels of their place, however the file is stored and the work is cut up."""

import itertools
import tracemalloc
from unittest import mock

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import cut as cutting
from ingest.config import Recipe
from ingest.grid import tile_origins
from ingest.pixels import Scaling, scale
from tests.ingest.rasters import (
    MEASURED,
    PLACED,
    copy_cut_short,
    cut,
    cut_scene,
    files_of,
    land,
    probed,
    smooth,
    unit_of,
    write,
)


def expected_tiles(values, valid, recipe):
    """Return {(x, y) on the grid: (pixels [H, W, C], valid [H, W])} by plain slicing of a padded copy."""
    side, stride = recipe.tile_px, recipe.stride_px or recipe.tile_px
    _, height, width = values.shape
    padded = np.pad(np.where(valid, values, 0), ((0, 0), (0, side), (0, side)))
    known = np.pad(valid, ((0, side), (0, side)))
    found = {}
    for y in tile_origins(height, side, stride, recipe.edge).tolist():
        for x in tile_origins(width, side, stride, recipe.edge).tolist():
            here = np.s_[y : y + side, x : x + side]
            found[x, y] = padded[:, *here].transpose(1, 2, 0), known[here]
    return found


def naive_mean(values, valid, factor):
    """Return (values, valid) of blocks of n × n pixels, one by one; integers with halves rounded up."""
    height, width = (side // factor for side in valid.shape)
    means, known = np.zeros((len(values), height, width), values.dtype), np.zeros((height, width), bool)
    for y, x in itertools.product(range(height), range(width)):
        here = np.s_[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
        count = int(valid[here].sum())
        known[y, x] = count * 2 >= factor**2
        for band in range(len(values)):
            total = int(values[band][here][valid[here]].sum(dtype=np.int64))
            means[band, y, x] = (2 * total + count) // (2 * count) if known[y, x] else 0
    return means, known


def rectangles(columns, rows, across, down):
    """Yield the parts of units that together cover a tile grid."""
    for row in range(0, rows, down):
        for column in range(0, columns, across):
            yield {
                "first_row": row, "end_row": min(rows, row + down),
                "first_column": column, "end_column": min(columns, column + across),
            }  # fmt: skip


LAYOUTS = [
    {"tiled": True, "blockxsize": 16, "blockysize": 16},
    {"tiled": True, "blockxsize": 48, "blockysize": 32, "interleave": "band"},
    {"tiled": True, "blockxsize": 32, "blockysize": 80, "compress": "deflate"},
    {"blockysize": 1},
    {"blockysize": 7, "interleave": "band"},
    {"blockysize": 1000, "compress": "lzw"},
]


@st.composite
def recipes(draw, dtype):
    return Recipe(
        tile_px=16,
        stride_px=draw(st.sampled_from([0, 5, 16, 23])),
        edge=draw(st.sampled_from(["shift", "drop", "pad"])),
        target_gsd_m=draw(st.sampled_from([0, 10, 20, 30])),
        zero_is_nodata=draw(st.booleans()),
        normalisation="none" if dtype == "uint8" else "keep",
        dtype=dtype,
        **(MEASURED | ({} if dtype == "uint8" else {"encoding": "npy"})),
    )


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(["uint8", "uint16", "int16"]), st.integers(16, 90), st.integers(16, 90))
def test_tiles_are_the_sources_pixels_however_it_is_cut(tmp_path_factory, data, dtype, height, width):
    recipe = data.draw(recipes(dtype))
    factor = max(1, int(recipe.target_gsd_m) // 10)
    values = np.random.default_rng(height * width).integers(0, 4 if dtype == "uint8" else 3000, (3, height, width))
    values = values.astype(dtype)
    values[:, : height // 3, : width // 2] = 1
    nodata = data.draw(st.sampled_from([None, 1]))
    path = write(tmp_path_factory.mktemp("x") / "x.tif", values, nodata=nodata, **PLACED,
                 **data.draw(st.sampled_from(LAYOUTS)))  # fmt: skip
    valid = np.ones(values.shape[1:], bool) if nodata is None else (values != nodata).any(axis=0)
    if recipe.zero_is_nodata:
        valid &= values.any(axis=0)
    grid = values[:, : height // factor * factor, : width // factor * factor]
    grid, known = naive_mean(grid, valid[: grid.shape[1], : grid.shape[2]], factor) if factor > 1 else (values, valid)
    if min(grid.shape[1:]) < 16 and recipe.edge != "pad":
        return
    expected = expected_tiles(grid, known, recipe)
    files = files_of(path)
    unit = unit_of(probed(files, recipe), recipe)
    whole, rejects, rows = cut(files, unit, recipe)

    assert len(rows) + len(rejects) == len(expected)
    for (x, y), (pixels, mask) in expected.items():
        place = x * factor, y * factor
        if not mask.any():
            assert rejects[place] == "low_valid_share"
            continue
        assert np.array_equal(whole[place], pixels), place
    assert {(row["x"], row["y"]): row["valid_share"] for row in rows} == {
        (x * factor, y * factor): round(mask.mean(), 6) for (x, y), (_, mask) in expected.items() if mask.any()
    }

    parts, part_rejects = [], {}
    shape = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    step_bytes, block_rows = data.draw(st.sampled_from([1, 3000, 20_000])), data.draw(st.sampled_from([1, 16, 2048]))
    with mock.patch.multiple(cutting, _STEP_BYTES=step_bytes, _MAX_BLOCK_ROWS=block_rows):
        for part in rectangles(unit["end_column"], unit["end_row"], *shape):
            _, some, found = cut(files, unit | part, recipe)
            assert not part_rejects.keys() & some.keys()
            part_rejects |= some
            parts += found
    assert part_rejects == rejects
    assert sorted(parts, key=by_key) == sorted(rows, key=by_key)


def by_key(row):
    return row["key"]


def plain(dtype="uint8", **values):
    """Return a recipe of tiles of 16 pixels that keeps values as they are."""
    kept = {} if dtype == "uint8" else {"normalisation": "keep", "dtype": dtype, "encoding": "npy"}
    return Recipe(**({"tile_px": 16} | MEASURED | kept | values))


@pytest.mark.parametrize(
    "profile",
    [
        {"driver": "PNG"},
        {"driver": "JP2OpenJPEG", "quality": "100", "reversible": "yes", "blockxsize": 32, "blockysize": 32},
        {"driver": "COG", "blocksize": 128, "compress": "zstd"},
        {"interleave": "band", "compress": "lzma"},
        {"compress": "deflate", "predictor": 2, "endianness": "big"},
        {"compress": "packbits", "blockysize": 9},
    ],
)
def test_tiles_are_the_sources_pixels_in_all_formats(tmp_path, profile):
    pixels = land(3, side=80, width=100)
    tiles, rejects, _ = cut_scene(files_of(write(tmp_path / "x", pixels, **profile)), plain(edge="shift"))
    assert not rejects
    for (x, y), (tile, _) in expected_tiles(pixels, np.ones((80, 100), bool), plain()).items():
        assert np.array_equal(tiles[x, y], tile)


def test_lossy_sources_give_what_gdal_decodes(tmp_path):
    for profile in ({"driver": "JPEG"}, {"compress": "jpeg", "photometric": "ycbcr", "blockysize": 16}):
        path = write(tmp_path / "x", smooth(3, 64), **profile)
        with rasterio.open(path) as source:
            decoded = source.read()
        tiles, _, _ = cut_scene(files_of(path), plain())
        assert len(tiles) == 16
        assert np.array_equal(tiles[16, 32], decoded[:, 32:48, 16:32].transpose(1, 2, 0))


def test_sixteen_bands_and_floats_are_kept(tmp_path):
    bands = tuple(f"b{number}" for number in range(1, 17))
    values = np.random.default_rng(0).normal(0, 1e4, (16, 32, 32)).astype(np.float32)
    values[5, :3, :4] = np.nan
    tiles, _, rows = cut_scene(files_of(write(tmp_path / "x.tif", values, names=bands)), plain("float32", bands=bands))
    expected = np.where(np.isnan(values).any(axis=0), 0, values)
    assert np.array_equal(tiles[0, 0], expected[:, :16, :16].transpose(1, 2, 0))
    assert rows[0]["num_valid"] == 256 - 12


def test_palettes_give_colours(tmp_path):
    indexes = np.random.default_rng(0).integers(0, 3, (1, 32, 32)).astype(np.uint8)
    colours = {0: (200, 10, 20, 255), 1: (5, 6, 7, 255), 2: (0, 255, 0, 0)}
    path = write(tmp_path / "x.png", indexes, driver="PNG", colormap=colours)
    tiles, _, rows = cut_scene(files_of(path), plain())
    table = np.array([(200, 10, 20), (5, 6, 7), (0, 0, 0)], np.uint8)
    assert np.array_equal(tiles[16, 0], table[indexes[0, :16, 16:]])
    assert rows[0]["num_valid"] == np.count_nonzero(indexes[0, :16, :16] != 2)


def test_files_of_two_resolutions_make_one_tile(tmp_path):
    fine, coarse = land(1, "uint16", side=70), land(1, "uint16", side=35)
    paths = [
        write(tmp_path / "a.tif", fine, **PLACED),
        write(tmp_path / "b.tif", coarse, crs="EPSG:32633", transform=rasterio.Affine(20, 0, 5e5, 0, -20, 5e6)),
    ]
    recipe = plain("uint16", bands=("a", "b"), stride_px=13)
    tiles, _, _ = cut_scene(files_of(*paths, bands="ab"), recipe)
    both = np.concatenate([fine, np.kron(coarse, np.ones((1, 2, 2), np.uint16))])
    expected = expected_tiles(both, np.ones((70, 70), bool), recipe)
    assert tiles.keys() == expected.keys()
    assert all(np.array_equal(tiles[place], tile) for place, (tile, _) in expected.items())


def test_warping_to_the_scenes_own_grid_changes_nothing(tmp_path):
    pixels = land(3, side=64)
    files = files_of(write(tmp_path / "x.tif", pixels, **PLACED))
    recipe = plain(warp_crs="EPSG:32633", target_gsd_m=10)
    tiles, rejects, rows = cut_scene(files, recipe)
    assert not rejects
    assert len(tiles) == 16
    for (x, y), tile in tiles.items():
        assert np.array_equal(tile, pixels[:, y : y + 16, x : x + 16].transpose(1, 2, 0))
    native = {row["key"]: row for row in cut_scene(files, plain())[2]}
    for row in rows:
        assert row["bounds"] == native[row["key"]]["bounds"]
        assert row["gsd_m"] == 10


def test_warped_tiles_beyond_the_scene_have_no_data(tmp_path):
    turned = rasterio.Affine.translation(5e5, 5e6) @ rasterio.Affine.rotation(45) @ rasterio.Affine.scale(10, -10)
    files = files_of(write(tmp_path / "x.tif", land(3, side=64), crs="EPSG:32633", transform=turned))
    tiles, rejects, rows = cut_scene(files, plain(warp_crs="utm", target_gsd_m=10))
    assert "low_valid_share" in rejects.values()
    assert all(0 < row["valid_share"] <= 1 for row in rows)
    assert len(tiles) + len(rejects) == len(set(tiles) | set(rejects)) == 36


def test_linear_scaling_with_offset_and_scale(tmp_path):
    values = np.random.default_rng(0).integers(1, 5000, (3, 16, 16)).astype(np.uint16)
    values[:, :2] = 0
    path = write(tmp_path / "x.tif", values)
    recipe = Recipe(tile_px=16, normalisation="linear", low=0.1, high=0.3, offset=-1000, scale=1e-4, **MEASURED)
    tiles, _, rows = cut_scene(files_of(path), recipe)
    scaling = Scaling(low=(0.1,) * 3, high=(0.3,) * 3, offset=-1000, scale=1e-4)
    expected, clipped = scale(values, scaling)
    expected[:, :2] = 0
    assert np.array_equal(tiles[0, 0], expected.transpose(1, 2, 0))
    assert rows[0]["clipped_share"] == round(float(clipped[2:].mean()), 6)
    assert 0 < rows[0]["clipped_share"] < 1
    # By hand: (3000 − 1000) · 0.0001 = 0.2 is the middle of 0.1…0.3.
    middle = np.full((3, 16, 16), 3000, np.uint16)
    assert scale(middle, scaling)[0][0, 0, 0] == 128


def test_the_scenes_own_offset_wins(tmp_path):
    values = np.random.default_rng(0).integers(1200, 5000, (3, 16, 16)).astype(np.uint16)
    files = files_of(write(tmp_path / "x.tif", values))
    linear = Recipe(tile_px=16, normalisation="linear", low=0, high=255, offset=-1000, **MEASURED)
    assert cut_scene(files, linear, offset=0.0)[0][0, 0].min() == 255
    kept = cut_scene(files, plain("uint16", offset=-1000))[0][0, 0]
    assert np.array_equal(kept, (values - 1000).transpose(1, 2, 0))
    assert np.array_equal(cut_scene(files, plain("uint16", offset=-1000), offset=-7.0)[0][0, 0],
                          (values - 7).transpose(1, 2, 0))  # fmt: skip


def test_a_kept_offset_leaves_no_data_alone_and_dark_pixels_pixels(tmp_path):
    values = np.full((3, 16, 16), 900, np.uint16)
    values[:, :8], values[:, 8:10] = 0, 2000
    tiles, _, rows = cut_scene(files_of(write(tmp_path / "x.tif", values)), plain("uint16", offset=-1000))
    assert (tiles[0, 0][:8] == 0).all()
    assert (tiles[0, 0][8:10] == 1000).all()
    assert (tiles[0, 0][10:] == 1).all()
    assert rows[0]["valid_share"] == 0.5


def test_percentiles_give_the_same_scaling_to_all_units(tmp_path):
    values = np.random.default_rng(0).integers(1, 9000, (3, 48, 48)).astype(np.uint16)
    files = files_of(write(tmp_path / "x.tif", values, blockysize=16))
    recipe = Recipe(tile_px=16, **MEASURED)
    unit = unit_of(probed(files, recipe), recipe)
    tiles, _, _ = cut(files, unit, recipe)
    low, high = (np.array(unit[name])[:, None, None] for name in ("low", "high"))
    expected = np.rint((np.clip(values.astype(np.float64), low, high) - low) * 255 / (high - low)).astype(np.uint8)
    assert np.array_equal(tiles[16, 32], expected[:, 32:48, 16:32].transpose(1, 2, 0))
    alone, _, _ = cut(files, unit | {"first_row": 2, "end_row": 3}, recipe)
    assert np.array_equal(alone[16, 32], tiles[16, 32])


NAMES = ["red", "green", "blue", "scl"]


def test_filters_say_which_and_where(tmp_path):
    quality = np.zeros((1, 32, 64), np.uint8)
    quality[:, :16, 48:] = 9
    pixels = np.concatenate([land(3, side=32, width=64), quality])
    pixels[:3, :16, :16] = 0
    pixels[:3, :16, 16:32] = 99
    pixels[:3, :16, 32:48] = 254
    pixels[:3, 0, 32:48] = 1
    files = files_of(write(tmp_path / "x.tif", pixels, names=NAMES, photometric="minisblack"))
    recipe = Recipe(
        tile_px=16, encoding="png", cloud_band="scl", cloud_values=(9,), max_cloud_share=0.4, max_saturated_share=0.5
    )
    tiles, rejects, rows = cut_scene(files, recipe)
    assert rejects == {(0, 0): "low_valid_share", (16, 0): "low_contrast", (32, 0): "saturated", (48, 0): "cloudy"}
    assert tiles.keys() == {(0, 16), (16, 16), (32, 16), (48, 16)}
    assert {row["cloud_share"] for row in rows} == {0.0}


def test_cloud_shares_with_a_factor(tmp_path):
    quality = np.zeros((1, 32, 32), np.uint8)
    quality[:, :2, :32] = 9  # a row of coarse pixels, all cloudy
    quality[:, 3, ::2] = 9  # of the next one a quarter: not cloudy
    quality[:, 4:6:2] = 9  # and half of the third: cloudy
    pixels = np.concatenate([land(3, side=32), quality])
    files = files_of(write(tmp_path / "x.tif", pixels, names=NAMES, photometric="minisblack", **PLACED))
    _, _, rows = cut_scene(files, plain(target_gsd_m=20, cloud_band="scl", cloud_values=(9,)))
    assert [row["cloud_share"] for row in rows] == [2 / 16]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["uint8", "float32"]), st.sampled_from([2, 3, 7]), st.sampled_from(LAYOUTS),
    st.integers(1, 30_000), st.booleans(),
)  # fmt: skip
def test_averages_do_not_depend_on_the_steps_in_which_it_is_read(
    tmp_path_factory, dtype, factor, layout, step_bytes, is_masked
):
    side = 40 * factor + 1
    values = np.random.default_rng(factor).integers(1, 99, (3, side, side)) * (1.1 if dtype == "float32" else 1)
    quality = np.random.default_rng(1).integers(0, 2, (1, side, side))
    if is_masked:
        values[:, : side // 2, ::3] = 0
    path = write(tmp_path_factory.mktemp("x") / "x.tif", np.concatenate([values, quality]).astype(dtype), names=NAMES,
                 photometric="minisblack", **PLACED, **layout)  # fmt: skip
    recipe = plain(dtype, target_gsd_m=10 * factor, edge="pad", cloud_band="scl", cloud_values=(1,))
    files = files_of(path)
    unit = unit_of(probed(files, recipe), recipe)
    whole = cut(files, unit, recipe)
    with mock.patch.object(cutting, "_STEP_BYTES", step_bytes):
        _, rejects, rows = cut(files, unit, recipe)
    assert (sorted(rows, key=by_key), rejects) == (sorted(whole[2], key=by_key), whole[1])


def test_averaging_takes_no_more_memory_than_a_step_and_the_tile(tmp_path):
    path = write(tmp_path / "x.tif", land(3, side=2048), tiled=True, blockxsize=64, blockysize=64, **PLACED)
    recipe = plain(tile_px=64, target_gsd_m=320)
    files = files_of(path)
    unit = unit_of(probed(files, recipe), recipe)
    assert unit["factor"] == 32
    with mock.patch.object(cutting, "_STEP_BYTES", 2**20):
        tracemalloc.start()
        tiles, _, _ = cut(files, unit, recipe)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert len(tiles) == 1
    assert peak < 2048 * 2048 * 3 / 2  # all that the tile is made of is 12.6 MB


def test_what_is_known_of_a_tile(tmp_path):
    files = files_of(write(tmp_path / "x.tif", land(3, side=32), **PLACED))
    known = {"label": "forest", "sensor": None, "time": "2020-01-02T03:04:05Z"}
    _, _, rows = cut_scene(files, plain(sensor="naip"), **known)
    row = rows[-1]
    assert row["key"] == "00000000000000ab-y000016-x000016"
    assert (row["label"], row["sensor"], row["time"]) == ("forest", "naip", "2020-01-02T03:04:05Z")
    assert row["bounds"] == [5e5 + 160, 5e6 - 320, 5e5 + 320, 5e6 - 160]
    assert row["band_sums"] == tuple(float(band.sum()) for band in land(3, side=32)[:, 16:, 16:].astype(int))
    assert cut_scene(files, plain(sensor="naip"), **known | {"sensor": "aviris"})[2][0]["sensor"] == "aviris"


def test_a_factor_places_tiles_in_source_pixels(tmp_path):
    files = files_of(write(tmp_path / "x.tif", land(3, side=64), **PLACED))
    _, _, rows = cut_scene(files, plain(target_gsd_m=20))
    assert [(row["x"], row["y"]) for row in rows] == [(0, 0), (32, 0), (0, 32), (32, 32)]
    assert rows[1]["bounds"] == [5e5 + 320, 5e6 - 320, 5e5 + 640, 5e6]
    assert rows[1]["gsd_m"] == 20


DAMAGED = {
    "tiled": {"driver": "COG", "blocksize": 128, "compress": "deflate"},
    "uncompressed": {"driver": "COG", "blocksize": 128, "compress": "none"},
    "lzw": {"driver": "COG", "blocksize": 128, "compress": "lzw"},
    "zstd": {"driver": "COG", "blocksize": 128, "compress": "zstd"},
    "jpeg in tiff": {"driver": "COG", "blocksize": 128, "compress": "jpeg"},
    "striped": {"blockysize": 16},
    "png": {"driver": "PNG"},
    "jpeg": {"driver": "JPEG"},
    "jp2": {"driver": "JP2OpenJPEG", "quality": "100", "reversible": "yes", "blockxsize": 128, "blockysize": 128},
    "jp2 whole": {"driver": "JP2OpenJPEG", "quality": "100", "reversible": "yes"},
}


@pytest.mark.parametrize("share", [0.4, 0.8, 0.99])
@pytest.mark.parametrize("name", DAMAGED)
def test_of_a_file_cut_short_whole_tiles_are_right_and_the_rest_is_rejected(tmp_path, name, share):
    path = write(tmp_path / "whole", land(3, side=512), **DAMAGED[name])
    recipe = plain(tile_px=128)
    unit = unit_of(probed(files_of(path), recipe), recipe)
    whole, _, _ = cut(files_of(path), unit, recipe)
    assert len(whole) == 16
    tiles, rejects, _ = cut(files_of(copy_cut_short(path, tmp_path / "cut", share)), unit, recipe)
    assert tiles.keys() | rejects.keys() == whole.keys()
    assert rejects
    assert set(rejects.values()) == {"corrupt"}
    assert all(np.array_equal(tile, whole[place]) for place, tile in tiles.items())
    # What is stored by tiles or rows is kept as far as it goes; a PNG's checksum lies at its end.
    assert tiles or name in ("jp2 whole", "png")


def test_a_damaged_block_costs_the_tiles_that_need_it(tmp_path):
    pixels, path = land(3, side=256), tmp_path / "x.tif"
    write(path, pixels, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    with rasterio.open(path) as source:
        offset, size = (int(source.get_tag_item(f"BLOCK_{item}_2_1", "TIFF", bidx=1)) for item in ("OFFSET", "SIZE"))
    data = bytearray(path.read_bytes())
    data[offset + size // 2] ^= 255
    path.write_bytes(data)
    recipe = plain(tile_px=64, stride_px=32, edge="drop")
    tiles, rejects, _ = cut_scene(files_of(path), recipe)
    # The block covers x 128…192 and y 64…128.
    touching = {(x, y) for x in (96, 128, 160) for y in (32, 64, 96)}
    assert rejects == dict.fromkeys(touching, "corrupt")
    assert len(tiles) == 49 - 9
    assert all(np.array_equal(tile, pixels[:, y : y + 64, x : x + 64].transpose(1, 2, 0))
               for (x, y), tile in tiles.items())  # fmt: skip


def test_a_scene_that_cannot_be_opened_any_more_is_rejected_tile_by_tile(tmp_path):
    files, recipe = files_of(write(tmp_path / "x.tif", land(3, side=32))), plain()
    unit = unit_of(probed(files, recipe), recipe)
    (tmp_path / "x.tif").write_bytes(b"")
    tiles, rejects, _ = cut(files, unit | {"first_row": 1}, recipe)
    assert not tiles
    assert rejects == {(0, 16): "empty_file", (16, 16): "empty_file"}
