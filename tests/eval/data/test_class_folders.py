from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.data.decode import UnreadableImageError
from eval.data.resolve import open_data
from shards.errors import UserError


def test_classes_and_paths_are_sorted_and_the_digest_is_the_content_s(tmp_path: Path, write_classes):
    root = write_classes(tmp_path / "a")
    (root / "LICENSE.txt").write_text("not an image")
    data = open_data("a", str(root), 2)
    assert data.classes == ("class_0", "class_1", "class_2")
    assert list(data.ids) == sorted(data.ids)
    assert np.bincount(data.labels).tolist() == [20, 20, 20]
    assert (data.dtype, data.bands) == ("uint8", ("red", "green", "blue"))
    copy = open_data("b", str(write_classes(tmp_path / "copy")), 1)
    assert copy.digest == data.digest
    Image.fromarray(np.zeros((24, 24, 3), np.uint8)).save(tmp_path / "copy" / "class_0" / "image_0.png")
    assert open_data("b", str(tmp_path / "copy"), 1).digest != data.digest


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
        open_data("d", str(root), 2)


def test_a_folder_above_the_class_folders_is_refused(tmp_path: Path, write_classes):
    write_classes(tmp_path / "up" / "EuroSAT")
    with pytest.raises(UserError, match=r"has EuroSAT/class_0/image_0.png deeper .* point --data at the folder that"):
        open_data("d", str(tmp_path / "up"), 2)
    write_classes(tmp_path / "one", num_classes=1)
    with pytest.raises(UserError, match="two or more class folders"):
        open_data("d", str(tmp_path / "one"), 2)


def test_images_in_hidden_folders_are_none(tmp_path: Path, write_classes):
    root = write_classes(tmp_path / "d")
    write_classes(root / "class_1" / ".thumbnails", num_classes=1)
    assert len(open_data("d", str(root), 2).ids) == 60


def test_an_image_unlike_the_first_is_unreadable(tmp_path: Path, write_classes):
    root = write_classes(tmp_path / "d")
    damaged, deep = root / "class_1" / "image_5.png", root / "class_2" / "image_7.png"
    damaged.write_bytes(damaged.read_bytes()[:99])
    Image.fromarray(np.zeros((24, 24), np.uint16)).save(deep)
    data = open_data("d", str(root), 2)
    for path, message in (("class_1/image_5.png", "."), ("class_2/image_7.png", "uint16 .* the data set is uint8")):
        with pytest.raises(UnreadableImageError, match=message):
            data.read(data.ids.index(path))
    assert data.read(0).images[0].shape == (24, 24, 3)
    assert data.read(0).mask is None


def test_an_empty_class_folder_inside_a_part_is_named(tmp_path: Path, write_classes):
    for part in ("train", "test"):
        write_classes(tmp_path / part)
    (tmp_path / "test" / "class_8").mkdir()
    with pytest.raises(UserError, match=r"class folder 'class_8' of d .* has no images"):
        open_data("d", str(tmp_path), 2)
