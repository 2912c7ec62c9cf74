import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.data.layout import find_layout
from eval.data.split import TEST, TRAIN, VALIDATION
from shards.errors import UserError


def _found(*paths, folders=()):
    return find_layout("d", paths, list(folders))


@pytest.mark.parametrize(("first", "second", "mask"), [("A", "B", "label"), ("t1", "t2", "mask"), ("A", "B", "OUT")])
def test_pairs(first, second, mask):
    layout = _found(f"{first}/1.png", f"{second}/1.png", f"{mask}/1.png", "LICENSE", "preview.jpg")
    assert layout.kind == "changes"
    (entry,) = layout.entries
    assert (entry.key, entry.images, entry.mask) == ("1", (f"{first}/1.png", f"{second}/1.png"), f"{mask}/1.png")


def test_pairs_side_by_side():
    layout = _found("Italy_1.bmp", "Italy_2.bmp", "Italy_gt.bmp", "b_B_1.jpg", "b_B_2.jpg", "b_B_gt.jpg")
    assert [entry.key for entry in layout.entries] == ["Italy", "b_B"]
    assert layout.entries[1].images == ("b_B_1.jpg", "b_B_2.jpg")


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/a/1.tif", "masks/a/1.png"),
        ("img_dir/1.png", "ann_dir/1.png"),
        ("Images/1.jpg", "Label/1_mask.png"),
        ("x/images_png/1.png", "x/masks_png/1.png"),
    ],
)
def test_images_with_masks(image, mask):
    layout = _found(image, mask)
    assert layout.kind == "masks"
    assert [(entry.images, entry.mask, entry.part) for entry in layout.entries] == [((image,), mask, None)]


@pytest.mark.parametrize("template", ["{part}/{role}/1.png", "{role}/{part}/1.png"])
def test_parts_by_folder(template):
    paths = [template.format(part=part, role=role) for part in ("train", "Val", "test") for role in ("images", "masks")]
    entries = _found(*paths).entries
    assert {entry.part for entry in entries} == {TRAIN, VALIDATION, TEST}
    assert {entry.key for entry in entries} == {"1"}


def test_a_part_without_masks_is_left_out():
    layout = _found("train/images/1.png", "train/masks/1.png", "test/images/2.png", "test/images/3.png")
    assert [entry.images for entry in layout.entries] == [("train/images/1.png",)]


def test_class_folders_with_and_without_parts():
    plain = _found("sea/1.jpg", "wood/1.jpg", "wood/notes.txt", "wood/deep/2.txt", "cover.jpg", folders=["sea", "wood"])
    assert [(entry.label, entry.images) for entry in plain.entries] == [
        ("sea", ("sea/1.jpg",)),
        ("wood", ("wood/1.jpg",)),
    ]
    split = _found("train/sea/1.jpg", "test/sea/1.jpg", folders=["train/sea", "test/sea", "test/wood"])
    assert [(entry.label, entry.part) for entry in split.entries] == [("sea", TEST), ("sea", TRAIN)]
    assert split.empty_classes == ("wood",)


def test_letters_as_classes_are_no_pairs():
    layout = _found("a/1.png", "b/1.png", "c/1.png")
    assert layout.kind == "classes"


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["A/1.png", "B/1.png", "label/1.png", "images/1.png"], "images/ as well as A/ and B/"),
        (["A/1.png", "B/1.png"], "only a, b: expected"),
        (["images/1.png"], "only images: expected"),
        (
            ["images/1.png", "images/2.png", "images/3.png", "masks/1.png"],
            r"images/2.png has no mask .*\(2 such files\)",
        ),
        (["images/1.png", "masks/1.png", "masks/2.png"], "masks/2.png has no image"),
        (["A/1.png", "B/1.png", "label/1.png", "A/2.png", "label/2.png"], "A/2.png has no image B"),
        (["images/1.png", "images/1.tif", "masks/1.png"], "images/1.png and images/1.tif for one sample"),
        (
            ["sea/1.jpg", "wood/1.jpg", "wood/deep/2.jpg"],
            r"d has wood/deep/2.jpg deeper than in a class folder \(1 such",
        ),
        (["sea/p/1.jpg", "sea/q/1.jpg", "wood/r/1.jpg"], r"d has sea/p/1.jpg deeper than in a class folder \(3 such"),
        (["train/sea/1.jpg", "test/sea/old/1.jpg", "test/sea/2.jpg"], "d has test/sea/old/1.jpg deeper"),
        (["Images/sea/1.tif", "Images/wood/1.tif"], "or point --data at the folder that holds the class folders"),
    ],
)
def test_what_is_ambiguous_or_torn_is_named(paths, message):
    with pytest.raises(UserError, match=message) as caught:
        _found(*paths)
    assert "\n" not in str(caught.value)


@given(st.lists(st.integers(0, 99), min_size=1, unique=True), st.randoms())
def test_independent_of_the_listing_order(numbers, random):
    paths = [f"{role}/{number}.png" for number in numbers for role in ("A", "B", "label")]
    shuffled = random.sample(paths, len(paths))
    assert _found(*paths) == _found(*shuffled)
