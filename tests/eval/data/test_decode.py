from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from eval.data.decode import UnreadableImageError, decode, reason


def _tiff(path: Path, pixels: np.ndarray, **profile) -> bytes:
    return _image(path, pixels, "GTiff", **profile)


def _image(path: Path, pixels: np.ndarray, driver: str, **profile) -> bytes:
    height, width, count = pixels.shape
    size = {"width": width, "height": height, "count": count}
    with rasterio.open(path, "w", driver=driver, dtype=pixels.dtype, **size, **profile) as image:
        image.write(np.moveaxis(pixels, 2, 0))
    return path.read_bytes()


def test_pillow_modes_become_red_green_blue(tmp_path: Path):
    grey = np.arange(36, dtype=np.uint8).reshape(6, 6)
    colour = np.dstack([grey, grey + 1, grey + 2])
    for name, image, expected in [
        ("grey.png", Image.fromarray(grey), np.dstack([grey] * 3)),
        ("alpha.png", Image.fromarray(np.dstack([colour, grey])), colour),
        ("palette.png", Image.fromarray(colour).quantize(colors=64), colour),
    ]:
        image.save(tmp_path / name)
        pixels, bands = decode(name, (tmp_path / name).read_bytes())
        np.testing.assert_array_equal(pixels, expected)
        assert bands == ("red", "green", "blue")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("num_bands", [1, 2, 3, 4], ids=["grey", "grey and alpha", "RGB", "RGB and alpha"])
def test_a_png_of_16_bits_keeps_them(tmp_path: Path, num_bands):
    """Pillow gives their upper halves alone, but for grey."""
    pixels = np.random.default_rng(0).integers(0, 65_536, (8, 9, num_bands)).astype(np.uint16)
    data = _image(tmp_path / "a.png", pixels, "PNG")
    read, bands = decode("a.png", data)
    np.testing.assert_array_equal(read, pixels[:, :, :3] if num_bands > 2 else np.repeat(pixels[:, :, :1], 3, axis=2))
    assert (read.dtype, bands) == (np.uint16, ("red", "green", "blue"))
    for damaged in (data[:30], data[: len(data) // 2], data[:-20]):
        with pytest.raises(UnreadableImageError):
            decode("a.png", damaged)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_palette_gives_its_colours_in_any_format(tmp_path: Path):
    indexes = np.arange(36, dtype=np.uint8).reshape(6, 6) % 5
    palette = np.array([[9, 8, 7], [200, 0, 0], [0, 180, 0], [0, 0, 160], [255, 255, 255]], np.uint8)
    picture = Image.fromarray(indexes, "P")
    picture.putpalette(palette.tobytes())
    for name in ("a.png", "a.tif", "a.bmp"):
        picture.save(tmp_path / name)
        pixels, bands = decode(name, (tmp_path / name).read_bytes())
        np.testing.assert_array_equal(pixels, palette[indexes], err_msg=name)
        assert (pixels.dtype, bands) == (np.uint8, ("red", "green", "blue"))
    wide = tmp_path / "wide.tif"
    _tiff(wide, indexes[:, :, None].astype(np.uint16) + 300, photometric="palette")
    with rasterio.open(wide, "r+") as image:
        image.write_colormap(1, {300 + index: (*colour, 255) for index, colour in enumerate(palette.tolist())})
    np.testing.assert_array_equal(decode("wide.tif", wide.read_bytes())[0], palette[indexes])


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_floats_without_data_are_nan(tmp_path: Path):
    pixels = np.random.default_rng(0).random((8, 9, 2)).astype(np.float32)
    pixels[2:4, :, 0], pixels[5, 5, 1] = -3.4e38, np.nan
    expected = np.where(pixels < -1e38, np.nan, pixels)
    np.testing.assert_array_equal(decode("a.tif", _tiff(tmp_path / "a.tif", pixels, nodata=-3.4e38))[0], expected)
    np.testing.assert_array_equal(decode("b.tif", _tiff(tmp_path / "b.tif", pixels))[0], pixels)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(("dtype", "nodata"), [("int16", -9999), ("uint16", 65_535), ("uint8", 255)])
def test_integers_without_data_are_0_as_in_shards(tmp_path: Path, dtype, nodata):
    """The nodata value in one band alone may be a measurement."""
    pixels = np.arange(1, 37).reshape(4, 3, 3).astype(dtype)
    pixels[0], pixels[1, :, 0] = nodata, nodata
    expected = pixels.copy()
    expected[0] = 0
    np.testing.assert_array_equal(decode("a.tif", _tiff(tmp_path / "a.tif", pixels, nodata=nodata))[0], expected)
    np.testing.assert_array_equal(decode("b.tif", _tiff(tmp_path / "b.tif", pixels))[0], pixels)
    grey, _ = decode("c.tif", _tiff(tmp_path / "c.tif", pixels[:, :, :1], nodata=nodata))
    np.testing.assert_array_equal(grey, np.where(pixels[:, :, [0] * 3] == nodata, 0, pixels[:, :, [0] * 3]))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("dtype", ["complex64", "complex_int16"])
def test_complex_numbers_are_refused(tmp_path: Path, dtype):
    """No type of torch's images holds them."""
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", dtype=dtype, width=9, height=8, count=2) as image:
        image.write(np.full((2, 8, 9), 3 + 4j, np.complex64))
    with pytest.raises(UnreadableImageError, match="write its amplitude"):
        decode("a.tif", (tmp_path / "a.tif").read_bytes())


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_geotiff_bands_have_names(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 4000, (8, 9, 4)).astype(np.uint16)
    read, bands = decode("a.tif", _tiff(tmp_path / "a.tif", pixels, photometric="minisblack"))
    np.testing.assert_array_equal(read, pixels)
    assert bands == ("red", "green", "blue", "band_4")
    path = tmp_path / "b.tif"
    _tiff(path, pixels)
    with rasterio.open(path, "r+") as image:
        image.descriptions = ("Red", "Green", "Blue", "NIR")
    assert decode("b.tif", path.read_bytes())[1] == ("red", "green", "blue", "nir")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_damaged_bytes_are_one_error(tmp_path: Path, name):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for damaged in (b"", b"nonsense", whole[: len(whole) // 3]):
        with pytest.raises(UnreadableImageError):
            decode(name, damaged)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tif", "a.jp2"])
def test_the_reason_of_a_damaged_image_is_the_same_every_time(tmp_path: Path, name):
    """Pillow tells where its file lies in memory, GDAL by which random name."""
    for damaged in (b"", b"nonsense", b"\x89PNG\r\n\x1a\n" + bytes(40), b"II*\0" + bytes(40)):
        reasons = set()
        kept = []
        for _ in range(3):
            with pytest.raises(UnreadableImageError) as caught:
                decode(name, bytes(damaged))
            reasons.add(str(caught.value))
            kept.append(caught)  # its file stays alive, so that the next one lies elsewhere
        (told,) = reasons
        assert told
        assert "0x" not in told
        assert "/vsimem" not in told


def test_a_reason_keeps_what_is_no_address():
    text = "cannot identify <_io.BytesIO object at 0x7f0a1b2c3d4e>\n of '/vsimem/0a1b-2c/0a1b-2c.' at 12 px"
    assert reason(ValueError(text)) == "cannot identify <_io.BytesIO object> of 'file' at 12 px"
    assert len(reason(ValueError(1000 * "x"))) == 400
