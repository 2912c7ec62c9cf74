from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from eval.data.decode import UnreadableImageError, labelled_chips
from eval.data.kinds import IGNORE
from eval.data.resolve import open_data
from eval.data.split import TEST, TRAIN
from shards.errors import UserError


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _masks(root: Path, num: int = 6, top: int = 2) -> Path:
    draw = np.random.default_rng(0)
    for number in range(num):
        _write(root / "images" / f"{number}.png", draw.integers(0, 255, (8, 9, 3)).astype(np.uint8))
        _write(root / "masks" / f"{number}.png", draw.integers(0, top + 1, (8, 9)).astype(np.uint8))
    return root


def test_images_with_masks(tmp_path: Path):
    data = open_data("d", str(_masks(tmp_path)), 2)
    assert (data.kind, data.classes, data.labels) == ("masks", ("class_0", "class_1", "class_2"), None)
    assert data.ids == tuple(f"images/{number}.png" for number in range(6))
    for index, path in enumerate(data.ids):
        sample = data.read(index)
        truth = np.asarray(Image.open(tmp_path / path.replace("images", "masks")))
        np.testing.assert_array_equal(sample.mask, truth)
        np.testing.assert_array_equal(sample.images[0], np.asarray(Image.open(tmp_path / path)))
        np.testing.assert_array_equal(data.mask_pixels[index], np.bincount(truth.ravel(), minlength=3))


def test_names_and_ignored_values_come_from_classes_txt(tmp_path: Path):
    plain = open_data("d", str(_masks(tmp_path)), 2)
    (tmp_path / "classes.txt").write_text("ignore\nwater\nroad\n")
    data = open_data("d", str(tmp_path), 2)
    assert data.classes == ("water", "road")
    first, named = plain.read(0).mask, data.read(0).mask
    np.testing.assert_array_equal(named, np.where(first == 0, IGNORE, first - 1))
    assert data.digest != plain.digest


def test_the_digest_covers_masks(tmp_path: Path):
    before = open_data("d", str(_masks(tmp_path)), 2).digest
    assert before == open_data("e", str(_masks(tmp_path / "copy")), 1).digest
    mask = np.asarray(Image.open(tmp_path / "masks" / "3.png")).copy()
    mask[0, 0] = (mask[0, 0] + 1) % 3
    _write(tmp_path / "masks" / "3.png", mask)
    assert open_data("d", str(tmp_path), 2).digest != before


def test_a_mask_of_another_size_is_an_error_at_once(tmp_path: Path):
    _masks(tmp_path, num=200)
    _write(tmp_path / "masks" / "4.png", np.ones((9, 9), np.uint8))
    message = r"images/4.png is 9×8, masks/4.png is 9×9 \(1 such samples\): images and masks must have one size; mend"
    with pytest.raises(UserError, match=message) as caught:
        open_data("d", str(tmp_path), 2)
    assert "\n" not in str(caught.value)


def test_a_size_that_changed_after_opening_is_unreadable(tmp_path: Path):
    data = open_data("d", str(_masks(tmp_path)), 2)
    _write(tmp_path / "masks" / "4.png", np.ones((9, 9), np.uint8))
    with pytest.raises(UnreadableImageError, match=r"images/4.png is 9×8, masks/4.png is 9×9"):
        data.read(4)
    assert data.read(3).mask.shape == (8, 9)


def test_a_damaged_mask_is_left_to_whoever_reads(tmp_path: Path):
    _masks(tmp_path)
    (tmp_path / "masks" / "2.png").write_bytes(b"no image")
    data = open_data("d", str(tmp_path), 2)
    assert data.mask_pixels[2].tolist() == [0, 0, 0]
    with pytest.raises(UnreadableImageError, match=r"mask masks/2.png"):
        data.read(2)


def test_masks_of_colours_are_an_error_at_once(tmp_path: Path):
    _masks(tmp_path)
    _write(tmp_path / "masks" / "2.png", np.random.default_rng(0).integers(0, 2, (8, 9, 3)).astype(np.uint8))
    with pytest.raises(UserError, match=r"mask masks/2.png holds colours"):
        open_data("d", str(tmp_path), 2)


def _pairs(root: Path, sizes) -> Path:
    draw = np.random.default_rng(0)
    for number, size in enumerate(sizes):
        for folder in ("A", "B"):
            _write(root / folder / f"{number}.png", draw.integers(0, 255, (*size[folder], 3)).astype(np.uint8))
        _write(root / "label" / f"{number}.png", draw.integers(0, 2, size["label"]).astype(np.uint8) * 255)
    return root


def test_pairs_with_truth(tmp_path: Path):
    sizes = [dict.fromkeys(("A", "B", "label"), (8, 8 + number)) for number in range(4)]
    data = open_data("d", str(_pairs(tmp_path, sizes)), 2)
    assert (data.kind, data.classes) == ("changes", ("unchanged", "changed"))
    sample = data.read(1)
    for image, folder in zip(sample.images, ("A", "B"), strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.open(tmp_path / folder / "1.png")))
    np.testing.assert_array_equal(sample.mask, np.asarray(Image.open(tmp_path / "label" / "1.png")) // 255)


def test_a_pair_of_two_sizes_is_an_error(tmp_path: Path):
    sizes = [{"A": (8, 8), "B": (8, 8), "label": (8, 8)}, {"A": (8, 8), "B": (6, 8), "label": (8, 8)}]
    with pytest.raises(UserError, match=r"A/1.png is 8×8, B/1.png is 8×6, label/1.png is 8×8"):
        open_data("d", str(_pairs(tmp_path, sizes)), 2)


def test_geotiffs_have_sizes_too(tmp_path: Path):
    for number in range(3):
        _deep(tmp_path / "images" / f"{number}.tif", np.zeros((6, 7, 2), np.int16))
        _deep(tmp_path / "masks" / f"{number}.tif", np.eye(6, 7 + number // 2, dtype=np.uint8)[..., None])
    with pytest.raises(UserError, match=r"images/2.tif is 7×6, masks/2.tif is 8×6"):
        open_data("d", str(tmp_path), 2)


def _deep(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = {"height": pixels.shape[0], "width": pixels.shape[1], "count": pixels.shape[2]}
    with labelled_chips(), rasterio.open(path, "w", driver="GTiff", dtype=pixels.dtype, **size) as image:
        image.write(np.moveaxis(pixels, 2, 0))


def test_many_bands_of_16_bits_and_parts_by_folder(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(-100, 9000, (4, 6, 7, 5)).astype(np.int16)
    for number, image in enumerate(pixels):
        part = "train" if number else "test"
        _deep(tmp_path / part / "images" / f"{number}.tif", image)
        _write(tmp_path / part / "masks" / f"{number}.png", np.eye(6, 7, dtype=np.uint8))
    data = open_data("d", f"{tmp_path}#bands=5,1:blue", 2)
    assert (data.dtype, data.bands) == ("int16", ("band_5", "blue"))
    assert data.given_parts.tolist() == [TEST, TRAIN, TRAIN, TRAIN]
    with labelled_chips():
        np.testing.assert_array_equal(data.read(0).images[0], pixels[0][:, :, [4, 0]])
