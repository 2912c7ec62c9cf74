"""What people see of a dataset."""

import numpy as np
import pytest

from shards.dataset import open_dataset
from shards.errors import UserError
from shards.preview import contact_sheet, displayable


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_any_type_becomes_a_picture(tmp_path, write_dataset, dtype):
    encoding = "png" if dtype == "uint8" else "npy"
    url = write_dataset(str(tmp_path / "data"), dtype=dtype, encoding=encoding, num_samples=6)
    sheet = np.asarray(contact_sheet(open_dataset(url), num_tiles=6, tile_px=40))
    assert sheet.shape == (2 * 44 + 4, 3 * 44 + 4, 3)
    assert sheet[4:44, 4:44].std() > 5


def test_bands_are_found_by_name():
    tile = np.zeros((2, 2, 4), np.uint8)
    tile[..., 2], tile[..., 1], tile[..., 0] = 10, 20, 30
    shown = displayable(tile, ["blue", "green", "red", "nir"])
    assert shown[0, 0].tolist() == [10, 20, 30]
    assert displayable(tile, ["vv", "vh", "a", "b"])[0, 0].tolist() == [30, 30, 30]


def test_an_image_of_other_bands_than_its_dataset_shows_its_first():
    assert displayable(np.full((1, 1, 1), 7, np.uint8), ["red", "green", "blue"]).tolist() == [[[7, 7, 7]]]


def test_an_image_that_does_not_decode_is_told_by_name(tmp_path, write_dataset, monkeypatch):
    def refuse(*_):
        raise ValueError("cannot decode .png image: broken")

    monkeypatch.setattr("shards.preview.decode_image", refuse)
    told = r"^sample \d+ \(byte .*\.tar\), key sample-\d+: cannot decode .png image: broken; `python -m shards select`"
    with pytest.raises(UserError, match=told):
        contact_sheet(open_dataset(write_dataset(str(tmp_path / "data"))))
