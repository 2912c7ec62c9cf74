"""What GDAL left behind after a failed read never comes out as pixels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rasterio.windows import Window

from ingest.raster import block_ranges
from ingest.reader import open_reader
from ingest.reasons import SceneRejectedError
from tests.ingest.rasters import code, copy_cut_short, land, smooth, write

BANDS = (1, 2, 3)


def rows(top, bottom, side=256):
    return Window(0, top, side, bottom - top)


def sound_and_damaged(folder, driver, **profile):
    """Return the pixels of a file and the path of its first 80 percent."""
    path = write(folder / "whole", land(3, side=256), driver=driver, **profile)
    with open_reader(path, driver.replace("COG", "GTiff")) as reader:
        pixels, _ = reader.read(BANDS, rows(0, 256))
    return pixels, str(copy_cut_short(path, folder / "cut", 0.8))


@pytest.mark.parametrize(
    ("driver", "profile"),
    [
        ("JPEG", {}),
        ("GTiff", {"blockysize": 16, "compress": "deflate"}),
        ("COG", {"blocksize": 128, "compress": "jpeg"}),
        ("COG", {"blocksize": 128}),
    ],
)
def test_after_a_failed_read_only_right_pixels_come(tmp_path, driver, profile):
    pixels, path = sound_and_damaged(tmp_path, driver, **profile)
    right = 0
    with open_reader(path, driver.replace("COG", "GTiff")) as reader:
        for _ in range(2):
            for top in (0, 192, 64, 128, 240, 0, 128):
                found = pixels_or_code(reader, rows(top, top + 16))
                right += not isinstance(found, str)
                assert isinstance(found, str) or np.array_equal(found, pixels[:, top : top + 16])
    assert right >= 4


def test_beyond_a_failed_row_nothing_is_decoded_again(tmp_path, monkeypatch):
    _, path = sound_and_damaged(tmp_path, "JPEG")
    with open_reader(path, "JPEG") as reader:
        first = rejection(reader, rows(0, 250))
        monkeypatch.setattr("ingest.raster.read_window", lambda *_: pytest.fail("decoded again"))
        assert rejection(reader, rows(240, 256)) == first
        assert rejection(reader, rows(249, 250)) == first


def pixels_or_code(reader, window):
    try:
        return reader.read(BANDS, window)[0]
    except SceneRejectedError as rejected:
        return rejected.code


def rejection(reader, window):
    with pytest.raises(SceneRejectedError) as caught:
        reader.read(BANDS, window)
    return caught.value.code, caught.value.detail


def test_opening_again_leaves_no_file_open(tmp_path):
    _, path = sound_and_damaged(tmp_path, "COG", blocksize=128)
    with open_reader(path, "GTiff") as reader:
        for _ in range(50):
            assert code(reader.read, BANDS, rows(0, 256)) == "corrupt"
        held = [link for link in Path("/proc/self/fd").iterdir() if link.exists() and str(link.resolve()) == path]
    assert len(held) == 1


def test_a_damaged_png_gives_nothing(tmp_path):
    path = tmp_path / "x.png"
    texts = PngInfo()
    texts.add_text("Title", "a text")
    Image.fromarray(land(3, side=64).transpose(1, 2, 0)).save(path, pnginfo=texts)
    data = path.read_bytes()
    text, pixels = data.index(b"tEXt"), data.index(b"IDAT")
    for at in (pixels + 20, pixels + 3000, len(data) - 20):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with open_reader(str(path), "PNG") as reader:
            assert code(reader.read, BANDS, rows(0, 1, side=64)) == "corrupt"
    for share in (0.5, 0.99):
        path.write_bytes(data[: int(len(data) * share)])
        with open_reader(str(path), "PNG") as reader:
            assert code(reader.read, BANDS, rows(0, 1, side=64)) == "corrupt"
    path.write_bytes(data[: text + 6] + b"#" + data[text + 7 :])
    with open_reader(str(path), "PNG") as reader:
        assert np.array_equal(reader.read(BANDS, rows(0, 64, side=64))[0], land(3, side=64))


def test_damaged_jpeg_inside_a_tiff_costs_its_own_block(tmp_path):
    path = tmp_path / "x.tif"
    write(path, smooth(3, 256), driver="COG", blocksize=128, compress="jpeg", overviews="none")
    with open_reader(str(path), "GTiff") as reader:
        whole, _ = reader.read(BANDS, rows(0, 256))
        offset, size = block_ranges(reader.source, BANDS, Window(0, 0, 1, 1))[0]
    data = bytearray(path.read_bytes())
    data[offset + size // 2 : offset + size] = bytes(size - size // 2)
    path.write_bytes(data)
    with open_reader(str(path), "GTiff") as reader:
        for _ in range(2):
            told = rejection(reader, rows(0, 256))
            assert told == ("corrupt", "libjpeg: Premature end of JPEG file")
            assert np.array_equal(reader.read(BANDS, rows(128, 256))[0], whole[:, 128:])
            assert np.array_equal(reader.read(BANDS, Window(128, 0, 128, 128))[0], whole[:, :128, 128:])


@pytest.mark.parametrize("options", [{"progressive": True}, {"progressive": False}])
def test_jpegs_cut_short_give_no_grey(tmp_path, options):
    Image.fromarray(smooth(3, 256).transpose(1, 2, 0)).save(tmp_path / "whole.jpg", "JPEG", **options)
    with open_reader(str(tmp_path / "whole.jpg"), "JPEG") as reader:
        whole, _ = reader.read(BANDS, rows(0, 256))
    for share in (0.3, 0.6, 0.9, 0.99):
        path = copy_cut_short(tmp_path / "whole.jpg", tmp_path / "cut.jpg", share)
        with open_reader(str(path), "JPEG") as reader:
            assert code(reader.read, BANDS, rows(0, 256)) == "corrupt"
            for top in (0, 64, 128, 192):
                found = pixels_or_code(reader, rows(top, top + 64))
                assert isinstance(found, str) or np.array_equal(found, whole[:, top : top + 64])
