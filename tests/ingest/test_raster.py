"""Files of all kinds are opened by their content, read by windows and placed; hostile ones are rejected."""

import math
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.windows import Window

from ingest import raster
from ingest.reasons import SceneRejectedError
from tests.ingest.rasters import PLACED, code, header, land, write

ALL = Window(0, 0, 64, 64)


@pytest.mark.parametrize("driver", ["GTiff", "PNG", "JPEG", "JP2OpenJPEG"])
def test_content_picks_the_driver_not_the_name(tmp_path, driver):
    write(tmp_path / "scene", land(3), driver=driver)
    misnamed = (tmp_path / "scene").rename(tmp_path / "scene.wrong")
    assert raster.driver_of(misnamed.read_bytes()[: raster.HEAD_BYTES]) == driver
    assert header(misnamed).num_bands == 3
    assert header(misnamed).driver == driver


@pytest.mark.parametrize("head", [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"])
def test_both_byte_orders_and_bigtiff_are_geotiff(head):
    assert raster.driver_of(head + bytes(12)) == "GTiff"


def test_a_vrt_named_tif_opens_nothing(tmp_path):
    write(tmp_path / "real.tif", land(3))
    vrt = tmp_path / "scene.tif"
    vrt.write_text(
        '<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        "<SourceFilename>real.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    assert code(raster.driver_of, vrt.read_bytes()) == "not_a_raster"
    # And even if it got past the first bytes: only the named driver is tried.
    assert code(lambda: raster.open_raster(str(vrt), "GTiff").__enter__()) == "corrupt"


def test_unusable_bytes_have_their_codes():
    assert code(raster.driver_of, b"") == "empty_file"
    assert code(raster.driver_of, b"hello") == "not_a_raster"
    assert code(raster.driver_of, b"II") == "not_a_raster"


def test_a_truncated_file_is_rejected_when_read(tmp_path):
    path = tmp_path / "x.tif"
    write(path, land(3, side=256), driver="COG", blocksize=128)  # a COG has its directory in front
    path.write_bytes(path.read_bytes()[:100_000])
    with raster.open_raster(str(path), "GTiff") as source:
        assert code(raster.read_window, source, (1, 2, 3), Window(0, 0, 256, 256)) == "corrupt"


def test_details_do_not_depend_on_the_place(tmp_path):
    details = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.tif").write_bytes(b"II*\0" + bytes(100))
        with pytest.raises(SceneRejectedError) as caught:
            header(tmp_path / name / "x.tif")
        details.append(caught.value.detail)
    assert details[0] == details[1]
    assert str(tmp_path) not in details[0]


def test_one_line_takes_the_innermost_message_without_paths():
    outer = ValueError("outer")
    outer.__cause__ = OSError("cannot\nopen s3://bucket/a/b.tif: no")
    assert raster.one_line(outer) == "cannot open b.tif: no"
    assert raster.one_line(KeyError()) == "KeyError"
    assert len(raster.one_line(ValueError("x" * 1000))) == 200


def test_what_gdal_says_of_memory_is_not_held_against_the_content():
    with pytest.raises(MemoryError), raster._rejecting():
        raise rasterio.errors.RasterioIOError("Cannot allocate memory for 99 bytes")
    assert code(lambda: raising(rasterio.errors.RasterioIOError("no such tile"))) == "corrupt"


def raising(error):
    with raster._rejecting():
        raise error


def test_valid_pixels_by_nodata_alpha_and_mask(tmp_path):
    pixels = land(3)
    pixels[:, :10] = 77
    nodata = write(tmp_path / "nodata.tif", pixels, nodata=77)
    rgba = np.concatenate([land(3), np.full((1, 64, 64), 255, np.uint8)])
    rgba[3, :20] = 0
    alpha = write(tmp_path / "alpha.tif", rgba, colours=["red", "green", "blue", "alpha"])
    mask = np.full((64, 64), 255, np.uint8)
    mask[:30] = 0
    masked = write(tmp_path / "mask.tif", land(3), mask=mask)
    assert not (tmp_path / "mask.tif.msk").exists()
    for path, rows in [(nodata, 10), (alpha, 20), (masked, 30)]:
        with raster.open_raster(path, "GTiff") as source:
            values, valid = raster.read_window(source, (1, 2, 3), ALL)
        assert values.shape == (3, 64, 64)
        assert not valid[:rows].any()
        assert valid[rows:].all()


def test_data_in_any_band_is_data(tmp_path):
    pixels = land(3)
    pixels[0, :10] = 77
    pixels[:, 10:20] = 77
    with raster.open_raster(write(tmp_path / "x.tif", pixels, nodata=77), "GTiff") as source:
        valid = raster.read_window(source, (1, 2, 3), ALL)[1]
    assert valid[:10].all()
    assert not valid[10:20].any()


def test_no_mask_is_made_where_all_is_valid(tmp_path):
    with raster.open_raster(write(tmp_path / "x.tif", land(3)), "GTiff") as source:
        values, valid = raster.read_window(source, (3, 1), ALL)
    assert valid is None
    assert np.array_equal(values, land(3)[[2, 0]])


def test_palettes(tmp_path):
    colormap = {1: (9, 8, 7, 255), 2: (1, 2, 3, 0)}
    path = write(tmp_path / "x.tif", land(1), colormap=colormap)
    with raster.open_raster(path, "GTiff") as source:
        table = raster.palette_of(source)
    assert table.shape == (256, 4)
    assert table[1].tolist() == [9, 8, 7, 255]
    with raster.open_raster(write(tmp_path / "grey.tif", land(1)), "GTiff") as source:
        assert code(raster.palette_of, source) == "corrupt"


@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_block_ranges_are_those_of_the_blocks_in_the_window(tmp_path, interleave):
    pixels = land(3, side=128)
    path = tmp_path / "x.tif"
    write(path, pixels, tiled=True, blockxsize=32, blockysize=32, interleave=interleave)
    data = path.read_bytes()
    with raster.open_raster(str(path), "GTiff") as source:
        one = raster.block_ranges(source, (2,), Window(32, 64, 32, 32))
        four = raster.block_ranges(source, (2, 2, 1), Window(31, 63, 2, 2))
        everything = raster.block_ranges(source, (1, 2, 3), Window(0, 0, 128, 128))
    expected = pixels[:, 64:96, 32:64]
    (offset, size), block = one[0], expected[1] if interleave == "band" else expected.transpose(1, 2, 0)
    assert len(one) == 1
    assert data[offset : offset + size] == block.tobytes()
    assert len(four) == (8 if interleave == "band" else 4)
    assert four == sorted(set(four))
    assert sum(size for _, size in everything) == pixels.nbytes


def test_blocks_that_are_not_stored_have_no_range(tmp_path):
    pixels = np.zeros((1, 64, 64), np.uint8)
    pixels[:, :32, :32] = 5
    path = write(tmp_path / "x.tif", pixels, tiled=True, blockxsize=32, blockysize=32, sparse_ok=True)
    with raster.open_raster(path, "GTiff") as source:
        assert len(raster.block_ranges(source, (1,), ALL)) == 1
        assert np.array_equal(raster.read_window(source, (1,), ALL)[0], pixels)


def test_gsd_is_in_metres_whatever_the_crs(tmp_path):
    metres, degrees = rasterio.Affine(0.5, 0, 4e5, 0, -0.5, 5e6), rasterio.Affine(1e-4, 0, 14, 0, -1e-4, 60.0032)
    feet, turned = rasterio.Affine(1, 0, 9e5, 0, -1, 2e5), rasterio.Affine.rotation(30) @ rasterio.Affine.scale(2, -2)
    utm = header(write(tmp_path / "utm.tif", land(3), crs="EPSG:32633", transform=metres))
    assert utm.gsd_m == pytest.approx(0.5)
    assert utm.crs == "EPSG:32633"
    assert utm.transform == tuple(metres)[:6]
    # A degree of longitude at 60° N is half a degree of latitude: the mean side is 11.12 m · sqrt(1/2).
    lonlat = header(write(tmp_path / "degrees.tif", land(3), crs="EPSG:4326", transform=degrees))
    assert lonlat.gsd_m == pytest.approx(11.12 * math.sqrt(0.5), rel=1e-3)
    survey = header(write(tmp_path / "feet.tif", land(3), crs="EPSG:2263", transform=feet))
    assert survey.gsd_m == pytest.approx(0.3048, rel=1e-3)
    rotated = header(write(tmp_path / "rot.tif", land(3), crs="EPSG:32633", transform=turned))
    assert rotated.gsd_m == pytest.approx(2.0)
    assert rotated.transform == pytest.approx(tuple(turned)[:6])
    unplaced = header(write(tmp_path / "crs.tif", land(3), crs="EPSG:32633"))
    assert (unplaced.gsd_m, unplaced.transform, unplaced.crs) == (None, None, None)
    nowhere = header(write(tmp_path / "png", land(3), driver="PNG"))
    assert (nowhere.gsd_m, nowhere.transform, nowhere.crs) == (None, None, None)


def test_odd_georeferences_are_judged_not_crashed_on(tmp_path):
    local = header(write(tmp_path / "local.tif", land(3), crs='LOCAL_CS["drone",UNIT["metre",1]]'))
    assert np.isnan(raster.lonlat(local.crs, np.array([0.0]), np.array([0.0]))).all()
    nowhere = rasterio.Affine(float("nan"), 0, 0, 0, 1, 0)
    broken = header(write(tmp_path / "nan.tif", land(3), crs="EPSG:32633", transform=nowhere))
    assert broken.transform is None
    assert broken.gsd_m is None


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326", None])
@pytest.mark.parametrize(
    "transform",
    [
        (10, 10, 5e5, 10, 10, 5e6),
        (0, 0, 5e5, 0, 0, 5e6),
        (1e-300, 0, 5e5, 0, -1e-300, 5e6),
        (1e-120, 0, 5e5, 0, -1e-120, 5e6),
        (1e200, 0, 5e5, 0, -1e200, 5e6),
        (1e307, 0, 1e308, 0, -1e307, 1e308),
        (10, 0, math.inf, 0, -10, 5e6),
    ],
)
def test_a_georeference_that_places_nothing_is_none(tmp_path, crs, transform):
    found = header(write(tmp_path / "x.tif", land(3), crs=crs, transform=rasterio.Affine(*transform)))
    if crs or transform[0] not in (1e-120,):  # without a CRS nobody asks for the GSD
        assert (found.crs, found.transform, found.gsd_m) == (None, None, None)


@settings(deadline=None, max_examples=300)
@given(st.tuples(*[st.floats()] * 6), st.sampled_from(["EPSG:32633", "EPSG:4326"]))
def test_what_is_placed_has_finite_figures(transform, crs):
    source = SimpleNamespace(transform=rasterio.Affine(*transform), crs=CRS.from_string(crs), width=64, height=48)
    name, found, gsd_m = raster.place_of(source)
    if name is None:
        assert (found, gsd_m) == (None, None)
    else:
        assert 0 < 1e6 / gsd_m < math.inf
        assert all(math.isfinite(value * 1e6) for value in [gsd_m, *found])


def test_text_that_is_not_utf8_is_judged_not_crashed_on(tmp_path):
    path = tmp_path / "x.tif"
    crs = 'LOCAL_CS["dronedrone",UNIT["metre",1]]'
    write(path, land(3), crs=crs, transform=PLACED["transform"], tags={"TIFFTAG_DATETIME": "2023:07:15 10:30:00"})
    data = path.read_bytes()
    path.write_bytes(data.replace(b"2023:07:15", b"2023:\xff7:15"))
    assert header(path).time is None
    path.write_bytes(data.replace(b"dronedrone", b"drone\xff\xferon"))
    assert code(header, path) == "corrupt"


def test_a_transform_without_crs_is_kept(tmp_path):
    moved = rasterio.Affine(2, 0, 7, 0, -2, 9)
    assert header(write(tmp_path / "x.tif", land(3), transform=moved)).transform == tuple(moved)[:6]
    assert header(write(tmp_path / "y.tif", land(3))).transform is None


def test_acquisition_time_comes_from_the_tag(tmp_path):
    path = write(tmp_path / "x.tif", land(3), tags={"TIFFTAG_DATETIME": "2023:07:15 10:30:00"})
    assert header(path).time == datetime(2023, 7, 15, 10, 30, tzinfo=UTC)
    assert raster.parse_time("2023-07-15T10:30:00.123Z") == datetime(2023, 7, 15, 10, 30, tzinfo=UTC)
    assert raster.parse_time("yesterday") is None
    assert raster.parse_time("0001:01:01 00:00:00") is None  # no date, as some programs write it


def test_lonlat():
    lon, lat = raster.lonlat("EPSG:32633", np.array([500000.0]), np.array([0.0]))
    assert lon[0] == pytest.approx(15.0)
    assert lat[0] == pytest.approx(0.0, abs=1e-9)
    assert np.isnan(raster.lonlat("EPSG:9999999", np.array([1.0]), np.array([2.0]))).all()
