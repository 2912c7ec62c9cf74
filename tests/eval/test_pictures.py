from pathlib import Path

import numpy as np
import pytest
import torch

from eval.data.kinds import LabelledData, Sample
from eval.data.resolve import open_data
from eval.models.exports import read_export
from eval.models.floors import floor_model
from eval.models.model import export_model
from eval.pictures import Pictures, for_the_eye, gallery_picture, pictures_of_patches
from eval.protocols.task import Picture


def test_patches_are_seen_beside_the_image(tmp_path: Path, write_classes, write_export):
    data = open_data("d", str(write_classes(tmp_path / "d")), 2)
    model = export_model(read_export(str(write_export(tmp_path / "e"))), torch.device("cpu"))
    pictures = pictures_of_patches(model, data, [0, 40])
    assert [picture.caption for picture in pictures] == [data.ids[0], data.ids[40]]
    height, width, _ = pictures[0].pixels.shape
    assert width > 2 * height
    assert pictures_of_patches(floor_model("image_stats"), data, [1])[0].pixels.dtype == np.uint8


def test_a_gallery_has_a_line_for_each_query(tmp_path: Path, write_classes):
    data = open_data("d", str(write_classes(tmp_path / "d")), 2)
    picture = gallery_picture(data, [[0, 5, 30], [41, 42, 2]])
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.shape[1] > picture.pixels.shape[0]


def test_pairs_are_shown_as_two(tmp_path: Path, write_pairs):
    data = open_data("d", str(write_pairs(tmp_path / "d")), 2)
    before, after = for_the_eye(data, 0)
    assert before.shape == after.shape == (32, 32, 3)
    assert after.max() > before.max()


@pytest.mark.filterwarnings("error:All-NaN:RuntimeWarning", "error:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_missing_hides_nothing_else(value):
    image = np.broadcast_to(np.linspace(-20, 0, 30, dtype=np.float32)[:, None, None], (30, 30, 3)).copy()
    image[:, :20] = value
    data = LabelledData(
        name="d", url="d", kind="classes", classes=("dry", "wet"), ids=("a",), bands=("red", "green", "blue"),
        dtype="float32", digest="", read=lambda place: Sample(images=(image,)),
    )  # fmt: skip
    (shown,) = for_the_eye(data, 0)
    assert np.ptp(shown[:, 20:]) > 200


def test_pictures_are_found_again_by_their_key(tmp_path: Path):
    pictures = Pictures(str(tmp_path))
    assert pictures.get("knn", 1) is None
    pictures.put([Picture(caption="c", pixels=np.zeros((2, 3, 3), np.uint8))], "d", "m", "knn", 1)
    (found,) = pictures.get("knn", 1) or []
    assert {name: found[name] for name in ("data", "model", "protocol", "caption")} == {
        "data": "d", "model": "m", "protocol": "knn", "caption": "c",
    }  # fmt: skip
    assert pictures.get("knn", 2) is None
