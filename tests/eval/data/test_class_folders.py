from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from eval.data import open_class_folders, parse_specs
from eval.decode import UnreadableImageError, decode
from shards.errors import UserError


def test_classes_and_paths_are_sorted_and_the_digest_is_the_content_s(tmp_path: Path, write_classes):
    root = write_classes(tmp_path / "a")
    (root / "LICENSE.txt").write_text("not an image")
    data = open_class_folders("a", str(root), 2)
    assert data.classes == ("class_0", "class_1", "class_2")
    assert list(data.paths) == sorted(data.paths)
    assert np.bincount(data.labels).tolist() == [20, 20, 20]
    assert (data.dtype, data.bands) == ("uint8", ("red", "green", "blue"))
    copy = open_class_folders("b", str(write_classes(tmp_path / "copy")), 1)
    assert copy.digest == data.digest
    Image.fromarray(np.zeros((24, 24, 3), np.uint8)).save(tmp_path / "copy" / "class_0" / "image_0.png")
    assert open_class_folders("b", str(tmp_path / "copy"), 1).digest != data.digest


@pytest.mark.parametrize("spec", ["eurosat", "=path", "name=", "a b=path", "../x=path"])
def test_malformed_spec(spec):
    with pytest.raises(UserError, match="is not name=PATH"):
        parse_specs([spec])


def test_specs_keep_equals_signs_and_refuse_twins():
    assert parse_specs(["a=x=1", "b=y"]) == {"a": "x=1", "b": "y"}
    with pytest.raises(UserError, match="twice"):
        parse_specs(["a=x", "a=y"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "class_9").mkdir(), "class folder 'class_9' of d .* has no images"),
        (lambda root: [p.unlink() for p in sorted((root / "class_1").iterdir())[1:]], "class 'class_1' .* one image"),
        (lambda root: [p.write_bytes(b"no image") for p in root.glob("*/*")], "none of the 60 images"),
        (lambda root: root.rename(root.parent / "elsewhere"), "does not exist"),
    ],
)
def test_unusable_folders_are_named(tmp_path: Path, write_classes, change, message):
    root = write_classes(tmp_path / "d")
    change(root)
    with pytest.raises(UserError, match=message):
        open_class_folders("d", str(root), 2)


def test_a_folder_above_the_class_folders_is_refused(tmp_path: Path, write_classes):
    write_classes(tmp_path / "up" / "EuroSAT")
    with pytest.raises(UserError, match=r"'EuroSAT' .* has no images"):
        open_class_folders("d", str(tmp_path / "up"), 2)
    write_classes(tmp_path / "one", num_classes=1)
    with pytest.raises(UserError, match="two or more class folders"):
        open_class_folders("d", str(tmp_path / "one"), 2)


def _tiff(path: Path, pixels: np.ndarray, **profile) -> bytes:
    height, width, count = pixels.shape
    size = {"width": width, "height": height, "count": count}
    with rasterio.open(path, "w", driver="GTiff", dtype=pixels.dtype, **size, **profile) as image:
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
