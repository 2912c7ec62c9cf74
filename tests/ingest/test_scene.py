"""Scenes of one file or several supply the bands that a recipe wants, or are rejected with the right code."""

import io
import os

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.windows import Window

from ingest.config import Recipe
from ingest.scene import BandFacts, Bands, SceneFile, find_bands, open_scene, read_header
from tests.ingest.rasters import PLACED, code, files_of, header, land, read, write

ALL = Window(0, 0, 64, 64)


def facts(count, descriptions=(), colours=()):
    return BandFacts(count=count, descriptions=list(descriptions) or [""] * count, colours=list(colours))


@pytest.mark.parametrize(
    ("facts", "recipe", "expected"),
    [
        (facts(3, [], ["red", "green", "blue"]), Recipe(), (1, 2, 3)),
        (facts(3, [], ["blue", "green", "red"]), Recipe(), (3, 2, 1)),
        (facts(4, ["Blue", "Green", "Red", "NIR"], ["gray"] + ["undefined"] * 3), Recipe(), (3, 2, 1)),
        (facts(4, [], ["gray", "undefined", "undefined", "undefined"]), Recipe(), (1, 2, 3)),
        (facts(13, [], ["gray"] + ["undefined"] * 12), Recipe(source_bands=(4, 3, 2)), (4, 3, 2)),
        (facts(16, [f"B{n}" for n in range(16)]), Recipe(source_bands=("b3", 2, "B1")), (4, 2, 2)),
        (facts(1, [], ["gray"]), Recipe(replicate_grey=True), (1, 1, 1)),
        (facts(3, ["Band 1", "layer_02", "3"], ["gray", "undefined", "undefined"]), Recipe(), (1, 2, 3)),
        (facts(3, ["B04", "B03", "B02"], ["red", "green", "blue"]), Recipe(), (1, 2, 3)),
        (facts(3, ["B02", "b03", "B04"]), Recipe(bands=("B04", "B03", "B02")), (3, 2, 1)),
        (facts(4, ["red", "green", "blue", "nir"]), Recipe(bands=("nir", "red"), encoding="npy"), (4, 1)),
        (facts(4, ["red", "green", "blue", "QA"]), Recipe(cloud_band="qa", cloud_bits=(1,)), (1, 2, 3, 4)),
    ],
)
def test_bands_are_found(facts, recipe, expected):
    assert find_bands(recipe, facts) == Bands((0,) * len(expected), expected, palette=False)


def test_a_palette_supplies_red_green_and_blue():
    assert find_bands(Recipe(), facts(1, [], ["palette"])) == Bands((0, 0, 0), (1, 1, 1), palette=True)


@pytest.mark.parametrize(
    ("facts", "recipe"),
    [
        (facts(1, [], ["gray"]), Recipe()),
        (facts(1, [], ["palette"]), Recipe(bands=("a", "b"), encoding="npy", replicate_grey=True)),
        (facts(2, [], ["gray", "alpha"]), Recipe()),
        (facts(3, ["nir", "red", "green"], ["red", "green", "blue"]), Recipe()),
        (facts(4, ["Blue", "Green", "Red", "Red"], []), Recipe()),
        (facts(3, ["VV", "VH", "angle"], ["gray", "undefined", "undefined"]), Recipe()),
        (facts(3, ["Band 3", "Band 2", "Band 1"], ["gray", "undefined", "undefined"]), Recipe()),
        (facts(3, [], ["gray", "undefined", "alpha"]), Recipe()),
        (facts(4, [], ["gray", "undefined", "alpha", "undefined"]), Recipe()),
        (facts(3, [], ["hue", "saturation", "lightness"]), Recipe()),
        (facts(13, [], ["gray"] + ["undefined"] * 12), Recipe()),
        (facts(3, [], ["red", "green", "blue"]), Recipe(source_bands=(1, 2, 4))),
        (facts(3, [], ["red", "green", "blue"]), Recipe(bands=("red", "nir"), encoding="npy")),
        (facts(3, ["a", "a", "b"], []), Recipe(bands=("x",), source_bands=("a",))),
        (facts(3, [], ["red", "green", "blue"]), Recipe(cloud_band="scl", cloud_values=(3,))),
    ],
)
def test_missing_bands_are_a_rejection(facts, recipe):
    assert code(find_bands, recipe, facts) == "bands_missing"


def test_descriptions_that_are_not_utf8_do_not_count(tmp_path):
    path = tmp_path / "x.tif"
    write(path, land(3), names=["blue", "green", "rougeé"])
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe"))
    assert header(path).band_indexes == (1, 2, 3)  # by colour
    assert header(path, Recipe(source_bands=(3, 2, 1))).band_indexes == (3, 2, 1)
    assert code(header, path, Recipe(source_bands=("blue", 2, 1))) == "bands_missing"
    # By position alone it might be blue, green, red.
    unknown = BandFacts(count=4, descriptions=None, colours=["gray"] + ["undefined"] * 3)
    assert code(find_bands, Recipe(), unknown) == "bands_missing"


@given(st.integers(1, 20), st.lists(st.sampled_from(["red", "green", "blue", "gray", "undefined", "alpha"])))
def test_found_bands_exist(count, colours):
    colours = (colours + ["undefined"] * count)[:count]
    named = sorted(colours.count(name) for name in ("red", "green", "blue")) == [1, 1, 1]
    if not named and (count not in (3, 4) or set(colours) & {"red", "green", "blue"} or "alpha" in colours[:3]):
        assert code(find_bands, Recipe(), facts(count, [], colours)) == "bands_missing"
        return
    found = find_bands(Recipe(), facts(count, [], colours))
    assert [colours[index - 1] for index in found.indexes] == ["red", "green", "blue"] if named else True
    assert all(1 <= index <= count for index in found.indexes)


def test_unusable_files_have_their_codes(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "damaged").write_bytes(b"II*\0" + bytes(100))
    for name, expected in [
        ("empty", "empty_file"), ("text", "not_a_raster"), ("dangling", "missing"), ("damaged", "corrupt")
    ]:  # fmt: skip
        assert code(header, tmp_path / name) == expected


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_unreadable(tmp_path):
    path = tmp_path / "x.tif"
    write(path, land(3))
    path.chmod(0)
    assert code(header, path) == "unreadable"


def test_large_scenes_are_rejected_before_reading(tmp_path):
    path = write(tmp_path / "x.tif", land(3))
    assert code(header, path, Recipe(max_scene_gb=1e-6)) == "too_large"


def test_types_that_do_not_fit_are_a_rejection(tmp_path):
    path = write(tmp_path / "x.tif", land(3, "uint16"))
    assert code(header, path, Recipe(normalisation="none")) == "wrong_dtype"
    assert code(header, path, Recipe(normalisation="keep", dtype="float32")) == "wrong_dtype"
    assert header(path, Recipe(normalisation="keep", dtype="uint16")).dtype == "uint16"
    assert header(path).dtype == "uint16"
    with rasterio.open(tmp_path / "complex.tif", "w", width=64, height=64, count=3, dtype="complex_int16"):
        pass
    assert code(header, tmp_path / "complex.tif") == "wrong_dtype"


def test_a_palette_of_16_bits_is_a_rejection(tmp_path):
    path = write(tmp_path / "x.tif", land(1, "uint16"), colormap={1: (9, 8, 7, 255)})
    assert code(header, path) == "wrong_dtype"


def test_valid_pixels_by_nodata_alpha_mask_nan_and_zero(tmp_path):
    pixels = land(3)
    pixels[:, :10] = 77
    nodata = write(tmp_path / "nodata.tif", pixels, nodata=77)
    rgba = np.concatenate([land(3), np.full((1, 64, 64), 255, np.uint8)])
    rgba[3, :20] = 0
    alpha = write(tmp_path / "alpha.tif", rgba, colours=["red", "green", "blue", "alpha"])
    png = write(tmp_path / "alpha.png", rgba, driver="PNG")
    mask = np.full((64, 64), 255, np.uint8)
    mask[:25] = 0
    masked = write(tmp_path / "mask.tif", land(3), mask=mask)
    floats = land(3, "float32")
    floats[1, :30] = np.nan
    floats[2, 29] = np.inf
    nan = write(tmp_path / "nan.tif", floats)
    declared = write(tmp_path / "declared.tif", floats, nodata=np.nan)
    black = land(3)
    black[:, :40] = 0
    zero = write(tmp_path / "zero.tif", black)
    for path, rows in [(nodata, 10), (alpha, 20), (png, 20), (masked, 25), (nan, 30), (declared, 30), (zero, 40)]:
        strip = read(files_of(path), ALL, Recipe())
        assert not strip.valid_HW[:rows].any()
        assert strip.valid_HW[rows:].all()
        assert strip.cloudy_HW is None
    assert read(files_of(zero), ALL, Recipe(zero_is_nodata=False)).valid_HW is None
    assert header(declared).nodata is None
    assert header(nodata).nodata == 77


def test_a_pixel_with_zero_in_one_band_has_data(tmp_path):
    pixels = land(3)
    pixels[0, :10] = 0
    assert read(files_of(write(tmp_path / "x.tif", pixels)), ALL, Recipe()).valid_HW is None


@pytest.mark.parametrize("driver", ["GTiff", "PNG"])
def test_palettes_become_colours_and_transparent_entries_no_data(tmp_path, driver):
    indexes = np.arange(64 * 64, dtype=np.uint8).reshape(1, 64, 64) % 3
    colormap = {0: (200, 10, 20, 255), 1: (5, 6, 7, 255), 2: (0, 255, 0, 0 if driver == "PNG" else 255)}
    path = write(tmp_path / "x", indexes, driver=driver, colormap=colormap, nodata=None if driver == "PNG" else 2)
    assert header(path).palette
    assert header(path).band_indexes == (1, 1, 1)
    strip = read(files_of(path), ALL, Recipe())
    colours = np.array([colour[:3] for colour in colormap.values()], np.uint8)
    assert np.array_equal(strip.values_CHW, colours[indexes[0]].transpose(2, 0, 1))
    assert np.array_equal(strip.valid_HW, indexes[0] != 2)


@pytest.mark.parametrize(
    "profile",
    [
        {"interleave": "band"},
        {"interleave": "pixel", "blockysize": 1},
        {"interleave": "band", "tiled": True, "blockxsize": 16, "blockysize": 32},
        {"compress": "deflate", "predictor": 2, "blockysize": 7},
        {"compress": "lzw", "tiled": True, "blockxsize": 48, "blockysize": 16},
        {"compress": "zstd", "bigtiff": "yes", "endianness": "big"},
        {"driver": "COG", "blocksize": 128},
        {"driver": "JP2OpenJPEG", "quality": "100", "reversible": "yes", "blockxsize": 32, "blockysize": 32},
        {"driver": "PNG"},
    ],
)
@pytest.mark.parametrize("window", [(0, 0, 64, 64), (3, 5, 17, 40), (63, 63, 1, 1), (0, 31, 64, 2)])
def test_windows_hold_the_source_pixels_whatever_the_layout(tmp_path, profile, window):
    pixels = land(3)
    path = write(tmp_path / "x", pixels, **profile)
    x, y, width, height = window
    strip = read(files_of(path), Window(*window), Recipe())
    assert np.array_equal(strip.values_CHW, pixels[:, y : y + height, x : x + width])
    assert strip.valid_HW is None


def test_sixteen_bands(tmp_path):
    pixels = land(16, "uint16")
    path = write(tmp_path / "x.tif", pixels, names=[f"B{number:02}" for number in range(1, 17)])
    recipe = Recipe(bands=("a", "b"), source_bands=("b12", 3), normalisation="keep", dtype="uint16")
    assert header(path, recipe).num_bands == 16
    assert np.array_equal(read(files_of(path), ALL, recipe).values_CHW, pixels[[11, 2]])


def test_rotated_and_south_up_scenes_are_read_as_they_lie(tmp_path):
    for transform in (rasterio.Affine(10, 0, 0, 0, 10, 0), rasterio.Affine.rotation(40) @ rasterio.Affine.scale(3)):
        path = write(tmp_path / "x.tif", land(3), crs="EPSG:32633", transform=transform)
        assert header(path).transform == pytest.approx(tuple(transform)[:6])
        assert np.array_equal(read(files_of(path), ALL, Recipe()).values_CHW, land(3))


def test_the_cloud_band_by_values_and_bits(tmp_path):
    quality = np.zeros((1, 64, 64), np.uint16)
    quality[0, :10], quality[0, 10:20], quality[0, 20:30] = 3, 8, 16
    path = write(tmp_path / "x.tif", np.concatenate([land(3, "uint16"), quality]), names=["red", "green", "blue", "qa"])
    by_value = read(files_of(path), ALL, Recipe(cloud_band="qa", cloud_values=(3, 8)))
    assert np.array_equal(by_value.cloudy_HW, np.isin(quality[0], [3, 8]))
    by_bit = read(files_of(path), ALL, Recipe(cloud_band=4, cloud_bits=(1, 4)))
    assert np.array_equal(by_bit.cloudy_HW, np.isin(quality[0], [3, 16]))
    assert len(by_value.values_CHW) == 3
    assert by_value.valid_HW is None


def write_bands(folder, coarse_px=32, coarse_shift=0.0, crs="EPSG:32633"):
    """Write red and green at 10 m, blue and a cloud band at 20 m; return files as a listing orders them."""
    coarse = rasterio.Affine(20, 0, 5e5 + coarse_shift, 0, -20, 5e6)
    paths = [
        write(folder / "B02.tif", land(1, "uint16", side=coarse_px), crs=crs, transform=coarse, nodata=7),
        write(folder / "B03.tif", land(2, "uint16")[1:], **PLACED),
        write(folder / "B04.tif", land(1, "uint16"), **PLACED),
        write(folder / "SCL.tif", land(1, "uint8", side=coarse_px) % 12, crs=crs, transform=coarse),
    ]
    return files_of(*paths, bands=["B02", "B03", "B04", "SCL"])


def of_files(**values):
    return Recipe(source_bands=("B04", "B03", "B02"), cloud_band="SCL", cloud_values=(3, 8), **values)


@pytest.mark.parametrize("window", [(0, 0, 64, 64), (1, 1, 2, 2), (5, 8, 21, 55), (63, 0, 1, 64)])
def test_files_of_two_resolutions_make_one_scene(tmp_path, window):
    files = write_bands(tmp_path)
    blue, cloud = (np.kron(band, np.ones((2, 2), band.dtype)) for band in (
        land(1, "uint16", side=32)[0], land(1, "uint8", side=32)[0] % 12))  # fmt: skip
    x, y, width, height = window
    here = np.s_[y : y + height, x : x + width]
    strip = read(files, Window(*window), of_files())
    assert np.array_equal(strip.values_CHW, np.stack([land(1, "uint16")[0], land(2, "uint16")[1], blue])[:, *here])
    assert np.array_equal(strip.cloudy_HW, np.isin(cloud, [3, 8])[here])
    # Blue alone knows pixels without data; a pixel with data in any band is valid.
    assert strip.valid_HW is None


def test_the_header_of_several_files_is_that_of_the_finest(tmp_path):
    files = write_bands(tmp_path)
    with open_scene(files, of_files()) as scene:
        found = read_header(scene, files, of_files())
    assert (found.width, found.height, found.num_bands, found.gsd_m) == (64, 64, 4, 10)
    assert found.band_indexes == (1, 1, 1, 1)
    assert found.band_files == (2, 1, 0, 3)
    with open_scene(files, Recipe(bands=("a",), source_bands=("B02",))) as scene:
        found = read_header(scene, files, Recipe(bands=("a",), source_bands=("B02",)))
    assert (found.width, found.band_files, found.nodata) == (32, (0,), 7)


def test_only_the_files_that_are_needed_are_opened(tmp_path):
    files = write_bands(tmp_path)
    (tmp_path / "SCL.tif").unlink()
    recipe = Recipe(source_bands=("B04", "B03", "B04"))
    assert np.array_equal(read(files, ALL, recipe).values_CHW[2], land(1, "uint16")[0])


@pytest.mark.parametrize("broken", [{"coarse_px": 31}, {"coarse_shift": 20.0}, {"crs": "EPSG:32634"}])
def test_files_that_do_not_lie_on_one_grid_are_misaligned(tmp_path, broken):
    files = write_bands(tmp_path, **broken)
    assert code(read, files, ALL, of_files()) == "misaligned"


def test_files_wider_than_others_by_no_whole_number_are_misaligned(tmp_path):
    paths = [write(tmp_path / name, land(1, side=side), **PLACED) for name, side in [("a", 64), ("b", 48)]]
    assert code(read, files_of(*paths, bands="ab"), ALL, Recipe(bands=("a", "b"), encoding="npy")) == "misaligned"


def test_files_of_equal_size_and_unequal_pixels_are_misaligned(tmp_path):
    wider = rasterio.Affine(12, 0, 5e5, 0, -12, 5e6)
    paths = [
        write(tmp_path / "a", land(1), **PLACED),
        write(tmp_path / "b", land(1), crs="EPSG:32633", transform=wider),
    ]
    assert code(read, files_of(*paths, bands="ab"), ALL, Recipe(bands=("a", "b"), encoding="npy")) == "misaligned"


def test_a_small_shift_of_the_origin_is_no_misalignment(tmp_path):
    assert read(write_bands(tmp_path, coarse_shift=0.01), ALL, of_files()).values_CHW.shape == (3, 64, 64)


def test_a_scene_without_a_file_for_a_band_is_a_rejection(tmp_path):
    files = write_bands(tmp_path)
    assert code(read, files, ALL, Recipe(source_bands=("B04", "B03", "B99"))) == "bands_missing"
    assert code(read, files[:3], ALL, of_files()) == "bands_missing"


def test_files_of_different_types_are_a_rejection(tmp_path):
    files = write_bands(tmp_path)
    write(tmp_path / "B03.tif", land(1, "float32"), **PLACED)

    def judge():
        with open_scene(files, of_files()) as scene:
            read_header(scene, files, of_files())

    assert code(judge) == "wrong_dtype"


def test_a_scene_is_the_same_through_an_opener(tmp_path):
    path = tmp_path / "x.tif"
    write(path, land(3, side=256), tiled=True, blockxsize=64, blockysize=64, compress="deflate", **PLACED)
    data, fetched = path.read_bytes(), []

    def opener(name, mode="rb"):
        if name != "scene-0":
            raise FileNotFoundError(name)
        return io.BytesIO(data)

    files = [SceneFile(band="", path="scene-0", opener=opener, fetch=fetched.append)]
    with open_scene(files, Recipe()) as scene:
        assert read_header(scene, files, Recipe()) == header(path)
        strip = scene.read(Window(64, 0, 64, 64), Recipe())
    assert np.array_equal(strip.values_CHW, land(3, side=256)[:, :64, 64:128])
    assert len(fetched[0]) == 1


def test_what_an_opener_does_not_find_is_missing():
    def opener(name, mode="rb"):
        raise FileNotFoundError(name)

    files = [SceneFile(band="", path="scene-0", opener=opener)]
    assert code(read, files, ALL, Recipe()) == "missing"
