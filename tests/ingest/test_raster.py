"""Scenes of all kinds are opened, judged and placed; hostile ones are rejected with their code."""

import io
import math
import os
from datetime import UTC, datetime

import fsspec
import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from ingest import raster
from ingest.config import Recipe
from ingest.reasons import SceneRejectedError


def write(path, pixels, **profile):
    count, height, width = pixels.shape
    colours = profile.pop("colours", None)
    tags = profile.pop("tags", {})
    names = profile.pop("names", None)
    with rasterio.open(path, "w", width=width, height=height, count=count, dtype=pixels.dtype, **profile) as target:
        target.write(pixels)
        if colours:
            target.colorinterp = [ColorInterp[name] for name in colours]
        if names:
            target.descriptions = names
        target.update_tags(**tags)
    return str(path)


def land(count, dtype="uint8", side=64):
    return np.random.default_rng(0).integers(1, 200, (count, side, side)).astype(dtype)


def header(path, recipe=None):
    with raster.open_scene(path, raster.sniff(path)) as source:
        return raster.read_header(source, recipe or Recipe())


def code(function, *arguments):
    with pytest.raises(SceneRejectedError) as caught:
        function(*arguments)
    return caught.value.code


@pytest.mark.parametrize("driver", ["GTiff", "PNG", "JPEG", "JP2OpenJPEG"])
def test_content_picks_the_driver_not_the_name(tmp_path, driver):
    path = write(tmp_path / "scene", land(3), driver=driver)
    misnamed = tmp_path / "scene.wrong"
    (tmp_path / "scene").rename(misnamed)
    assert path
    assert raster.sniff(str(misnamed)) == driver
    assert header(str(misnamed)).num_bands == 3


def test_a_vrt_named_tif_opens_nothing(tmp_path):
    write(tmp_path / "real.tif", land(3), driver="GTiff")
    vrt = tmp_path / "scene.tif"
    vrt.write_text(
        '<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        "<SourceFilename>real.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    assert code(raster.sniff, str(vrt)) == "not_a_raster"
    # And even if it got past the first bytes: only the named driver is tried.
    assert code(lambda: raster.open_scene(str(vrt), "GTiff").__enter__()) == "corrupt"


def test_unusable_files_have_their_codes(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "damaged").write_bytes(b"II*\0" + bytes(100))
    assert code(raster.sniff, str(tmp_path / "empty")) == "empty_file"
    assert code(raster.sniff, str(tmp_path / "text")) == "not_a_raster"
    assert code(raster.sniff, str(tmp_path / "dangling")) == "missing"
    assert code(header, str(tmp_path / "damaged")) == "corrupt"


def test_a_truncated_scene_is_rejected_when_read(tmp_path):
    path = tmp_path / "x.tif"
    write(path, land(3, side=256), driver="COG", blocksize=128)  # a COG has its directory in front
    path.write_bytes(path.read_bytes()[:100_000])
    with raster.open_scene(str(path), "GTiff") as source:
        whole = Window(0, 0, 256, 256)
        assert code(lambda: raster.read_strip(source, (1, 2, 3), whole, zero_is_nodata=True)) == "corrupt"


def test_details_do_not_depend_on_the_place(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.tif").write_bytes(b"II*\0" + bytes(100))
    details = []
    for name in ("a", "b"):
        with pytest.raises(SceneRejectedError) as caught:
            header(str(tmp_path / name / "x.tif"))
        details.append(caught.value.detail)
    assert details[0] == details[1]
    assert str(tmp_path) not in details[0]


def test_large_scenes_are_rejected_before_reading(tmp_path):
    path = write(tmp_path / "x.tif", land(3), driver="GTiff")
    assert code(header, path, Recipe(max_scene_gb=1e-6)) == "too_large"


@pytest.mark.parametrize(
    ("count", "descriptions", "colours", "recipe", "expected"),
    [
        (3, [], ["red", "green", "blue"], Recipe(), (1, 2, 3)),
        (3, [], ["blue", "green", "red"], Recipe(), (3, 2, 1)),
        (4, ["Blue", "Green", "Red", "NIR"], ["gray", "undefined", "undefined", "undefined"], Recipe(), (3, 2, 1)),
        (4, [], ["gray", "undefined", "undefined", "undefined"], Recipe(), (1, 2, 3)),
        (13, [], ["gray"] + ["undefined"] * 12, Recipe(source_bands=(4, 3, 2)), (4, 3, 2)),
        (1, [], ["gray"], Recipe(replicate_grey=True), (1, 1, 1)),
        (4, ["red", "green", "blue", "nir"], [], Recipe(bands=("nir", "red"), encoding="npy"), (4, 1)),
    ],
)
def test_bands_are_found(count, descriptions, colours, recipe, expected):
    assert raster.find_bands(recipe, count, descriptions, colours) == expected


@pytest.mark.parametrize(
    ("count", "colours", "recipe"),
    [
        (1, ["gray"], Recipe()),
        (1, ["palette"], Recipe(replicate_grey=True)),
        (2, ["gray", "alpha"], Recipe()),
        (13, ["gray"] + ["undefined"] * 12, Recipe()),
        (3, ["red", "green", "blue"], Recipe(source_bands=(1, 2, 4))),
        (3, ["red", "green", "blue"], Recipe(bands=("red", "nir"), encoding="npy")),
    ],
)
def test_missing_bands_are_a_rejection(count, colours, recipe):
    assert code(raster.find_bands, recipe, count, [""] * count, colours) == "bands_missing"


def test_types_that_do_not_fit_are_a_rejection(tmp_path):
    path = write(tmp_path / "x.tif", land(3, "uint16"), driver="GTiff")
    assert code(header, path, Recipe(normalisation="none")) == "wrong_dtype"
    assert header(path, Recipe(normalisation="keep", dtype="uint16")).dtype == "uint16"
    assert header(path).dtype == "uint16"


def test_gsd_is_in_metres_whatever_the_crs(tmp_path):
    utm = write(
        tmp_path / "utm.tif",
        land(3),
        driver="GTiff",
        crs="EPSG:32633",
        transform=rasterio.Affine(0.5, 0, 4e5, 0, -0.5, 5e6),
    )
    degrees = write(
        tmp_path / "deg.tif",
        land(3),
        driver="GTiff",
        crs="EPSG:4326",
        transform=rasterio.Affine(1e-4, 0, 14, 0, -1e-4, 60.0032),
    )
    feet = write(
        tmp_path / "feet.tif",
        land(3),
        driver="GTiff",
        crs="EPSG:2263",
        transform=rasterio.Affine(1, 0, 9e5, 0, -1, 2e5),
    )
    rotated = write(
        tmp_path / "rot.tif",
        land(3),
        driver="GTiff",
        crs="EPSG:32633",
        transform=rasterio.Affine.rotation(30) @ rasterio.Affine.scale(2, -2),
    )
    nowhere = write(tmp_path / "png", land(3), driver="PNG")
    assert header(utm).gsd_m == pytest.approx(0.5)
    # A degree of longitude at 60° N is half a degree of latitude: the mean side is 11.12 m · sqrt(1/2).
    assert header(degrees).gsd_m == pytest.approx(11.12 * math.sqrt(0.5), rel=1e-3)
    assert header(feet).gsd_m == pytest.approx(0.3048, rel=1e-3)
    assert header(rotated).gsd_m == pytest.approx(2.0)
    assert header(nowhere).gsd_m is None
    assert header(nowhere).transform is None
    assert header(utm).crs == "EPSG:32633"


def test_valid_pixels_by_nodata_alpha_nan_and_zero(tmp_path):
    pixels = land(3)
    pixels[:, :10] = 77
    nodata = write(tmp_path / "nodata.tif", pixels, driver="GTiff", nodata=77)
    rgba = np.concatenate([land(3), np.full((1, 64, 64), 255, np.uint8)])
    rgba[3, :20] = 0
    alpha = write(tmp_path / "alpha.tif", rgba, driver="GTiff", colours=["red", "green", "blue", "alpha"])
    floats = land(3, "float32")
    floats[1, :30] = np.nan
    nan = write(tmp_path / "nan.tif", floats, driver="GTiff")
    black = land(3)
    black[:, :40] = 0
    zero = write(tmp_path / "zero.tif", black, driver="GTiff")
    for path, rows in [(nodata, 10), (alpha, 20), (nan, 30), (zero, 40)]:
        with raster.open_scene(path, "GTiff") as source:
            _, valid = raster.read_strip(source, (1, 2, 3), Window(0, 0, 64, 64), zero_is_nodata=True)
            assert not valid[:rows].any()
            assert valid[rows:].all()
    with raster.open_scene(zero, "GTiff") as source:
        assert raster.read_strip(source, (1, 2, 3), Window(0, 0, 64, 64), zero_is_nodata=False)[1].all()


def test_acquisition_time_comes_from_the_tag(tmp_path):
    path = write(tmp_path / "x.tif", land(3), driver="GTiff", tags={"TIFFTAG_DATETIME": "2023:07:15 10:30:00"})
    assert header(path).time == datetime(2023, 7, 15, 10, 30, tzinfo=UTC)
    assert raster.parse_time("yesterday") is None


def test_lonlat():
    lon, lat = raster.lonlat("EPSG:32633", np.array([500000.0]), np.array([0.0]))
    assert lon[0] == pytest.approx(15.0)
    assert lat[0] == pytest.approx(0.0, abs=1e-9)


def test_odd_but_legal_rasters_are_judged_not_crashed_on(tmp_path):
    complex_path = tmp_path / "complex.tif"
    with rasterio.open(complex_path, "w", driver="GTiff", width=64, height=64, count=3, dtype="complex_int16"):
        pass
    assert code(header, str(complex_path)) == "wrong_dtype"
    local = write(tmp_path / "local.tif", land(3), driver="GTiff", crs='LOCAL_CS["drone",UNIT["metre",1]]')
    found = header(local)
    assert np.isnan(raster.lonlat(found.crs, np.array([0.0]), np.array([0.0]))).all()
    nowhere = rasterio.Affine(float("nan"), 0, 0, 0, 1, 0)
    broken = write(tmp_path / "nan.tif", land(3), driver="GTiff", crs="EPSG:32633", transform=nowhere)
    assert header(broken).transform is None
    assert header(broken).gsd_m is None


def test_pipes_and_circular_links_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert code(raster.sniff, str(tmp_path / "pipe")) == "not_a_raster"
    assert code(raster.sniff, str(tmp_path)) == "not_a_raster"
    assert code(raster.sniff, str(tmp_path / "loop")) == "missing"


def test_a_broken_connection_is_no_corrupt_scene(tmp_path, monkeypatch):
    """Only content decides about a rejection: a fault of the world must come out as such, to be retried."""
    path = write(tmp_path / "x.tif", land(3, side=512), driver="GTiff")
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/x.tif", (tmp_path / "x.tif").read_bytes())
    with raster.open_scene("memory://x.tif", "GTiff") as source:
        assert raster.read_header(source, Recipe()) == header(path)

    class Broken(io.BytesIO):
        def read(self, size=-1):
            raise TimeoutError("503 slow down")

    monkeypatch.setattr(type(memory), "open", lambda *_, **__: Broken())
    with pytest.raises(TimeoutError, match="503"), raster.open_scene("memory://x.tif", "GTiff"):
        pass
