"""Figures of images are those of their pixels."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shards.images import decode_image
from shards.indexing.faults import Faults
from shards.indexing.measure import MAX_MEASURED, Image, measure, spread
from shards.schema import sha256_hex
from tests.shards.foreign_tars import image, npy


@given(st.integers(1, 3000))
def test_rows_are_spread_evenly(num_samples):
    rows = np.array(spread(num_samples))
    assert len(rows) == min(num_samples, MAX_MEASURED)
    assert (rows[0], rows[-1] < num_samples) == (0, True)
    steps = np.diff(rows)
    assert len(steps) == 0 or (steps.min() >= 1 and steps.max() - steps.min() <= 1)


def write(path, contents):
    """Write encoded images one behind the other; return where they lie."""
    path.write_bytes(b"".join(contents.values()))
    images, offset = [], 0
    for key, content in contents.items():
        digest = bytes.fromhex(sha256_hex(content))
        extension = "npy" if content.startswith(b"\x93NUMPY") else "png"
        images.append(
            Image(url=str(path), key=key, extension=extension, offset=offset, size=len(content), sha256=digest)
        )
        offset += len(content)
    return images


def test_figures(tmp_path):
    contents = {str(number): image(number, side=8 + number) for number in range(5)}
    faults = Faults()
    figures = measure(write(tmp_path / "x", contents), None, faults)
    pixels = np.concatenate([decode_image("png", content).reshape(-1, 3) for content in contents.values()])
    assert [band.mean for band in figures.bands] == np.round(pixels.mean(0), 6).tolist()
    assert (figures.dtype, figures.tile_px, faults.count) == ("uint8", 8, 0)


def test_a_file_that_changed_or_went_is_told(tmp_path):
    contents = {"a": image(0), "b": image(1)}
    images, faults = write(tmp_path / "x", contents), Faults()
    (tmp_path / "x").write_bytes(contents["b"] + contents["a"])
    assert measure(images, None, faults) is None
    (tmp_path / "x").unlink()
    assert measure(images, None, faults) is None
    assert [fault.partition(": ")[2] or fault for fault in faults.told] == [
        "image 'png' of sample 'a' is not what it was: the file changed while it was being indexed",
        "image 'png' of sample 'b' is not what it was: the file changed while it was being indexed",
        "check the path or bucket",
        "check the path or bucket",
    ]


def test_values_that_are_no_numbers_do_not_count(tmp_path):
    array = np.array([[[1, 10], [np.nan, 20]], [[3, np.inf], [5, 30]]], np.float32)
    figures = measure(write(tmp_path / "x", {"a": npy(array)}), ["low", "high"], Faults())
    assert [(band.name, band.mean) for band in figures.bands] == [("low", 3), ("high", 20)]
