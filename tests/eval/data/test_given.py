import numpy as np
import pytest

from eval.data.given import read_groups, read_parts, read_places, split_files
from eval.data.layout import find_layout
from eval.data.split import TEST, TRAIN, VALIDATION
from shards.errors import UserError

ENTRIES = find_layout("d", [f"{role}/{number}.png" for role in ("images", "masks") for number in range(4)], []).entries


def _parts(**texts):
    parts = split_files([f"{name}.{'tsv' if name == 'split' else 'txt'}" for name in texts])
    return read_parts("d", ENTRIES, dict(zip(parts, texts.values(), strict=True)), parts)


def test_split_files_lie_beside_the_folders():
    paths = [
        "train.txt",
        "list/val.txt",
        "split.tsv",
        "images/test.txt",
        "readme.txt",
        "a/b/train.txt",
        "list/test.png",
    ]
    assert split_files(paths) == {"train.txt": TRAIN, "list/val.txt": VALIDATION, "split.tsv": None}


@pytest.mark.parametrize("call", ["{}", "{}.png", "images/{}.png", "./images/{}", "masks/{}.png"])
def test_samples_may_be_called_in_several_ways(call):
    found = _parts(train="".join(f"{call.format(number)}\n" for number in (0, 2)), test=f"\n{call.format(3)}\n")
    np.testing.assert_array_equal(found, [TRAIN, -1, TRAIN, TEST])


def test_the_table_as_evaluations_write_it():
    found = _parts(split="test\timages/0.png\ntrain\timages/1.png\nvalidation\timages/2.png\ntrain\timages/3.png\n")
    np.testing.assert_array_equal(found, [TEST, TRAIN, VALIDATION, TRAIN])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"train": "0\n7\n8\n", "test": "1"}, r"train.txt names 7, which is not there \(2 such lines\)"),
        ({"train": "0\n1", "test": "1"}, "1 is in train and in test"),
        ({"split": "training\timages/0.png"}, "'training' is no line"),
        ({"split": "train images/0.png"}, "is no line"),
    ],
)
def test_split_files_that_do_not_fit_are_named(texts, message):
    with pytest.raises(UserError, match=message):
        _parts(**texts)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({"test": "0\n1", "val": "2"}, [TEST, TEST, VALIDATION, TRAIN]),
        ({"test": "3"}, [TRAIN, TRAIN, TRAIN, TEST]),
        ({"val": "3"}, [TRAIN, TRAIN, TRAIN, VALIDATION]),
        ({"train": "0\n1"}, [TRAIN, TRAIN, TEST, TEST]),
        ({"split": "test\timages/0.png\n"}, [TEST, TRAIN, TRAIN, TRAIN]),
    ],
)
def test_what_no_split_file_names_is_the_part_that_they_lack(texts, expected):
    np.testing.assert_array_equal(_parts(**texts), expected)


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        ({"train": "0\n1\n2\n3"}, "train"),
        ({"test": "0\n1", "val": "2\n3"}, "validation, test"),
        ({"test": ""}, "no sample"),
    ],
)
def test_split_files_that_leave_nothing_for_the_other_parts_are_refused(texts, named):
    with pytest.raises(UserError, match=f"its split files name {named} and leave nothing for the rest"):
        _parts(**texts)


def test_no_split_without_files_and_folders():
    assert _parts() is None


def _entries(*paths):
    return find_layout("d", paths, []).entries


def test_folders_give_the_parts_and_files_win():
    entries = _entries("train/sea/1.png", "train/wood/2.png", "test/sea/3.png", "test/wood/4.png")
    np.testing.assert_array_equal(read_parts("d", entries, {}, {}), [TEST, TEST, TRAIN, TRAIN])
    texts, parts = {"train.txt": "3\n4", "val.txt": "1"}, {"train.txt": TRAIN, "val.txt": VALIDATION}
    np.testing.assert_array_equal(read_parts("d", entries, texts, parts), [TRAIN, TRAIN, VALIDATION, -1])


def test_folders_give_the_parts_that_files_lack():
    entries = _entries("train/sea/1.png", "train/wood/2.png", "train/wood/5.png", "test/sea/3.png", "test/wood/4.png")
    assert [entry.images[0] for entry in entries][:2] == ["test/sea/3.png", "test/wood/4.png"]
    np.testing.assert_array_equal(
        read_parts("d", entries, {"train.txt": "1\n2"}, {"train.txt": TRAIN}), [TEST, TEST, TRAIN, TRAIN, -1]
    )
    np.testing.assert_array_equal(
        read_parts("d", entries, {"val.txt": "1"}, {"val.txt": VALIDATION}), [TEST, TEST, VALIDATION, TRAIN, TRAIN]
    )


def test_a_sample_outside_the_parts_folders_is_named():
    with pytest.raises(UserError, match=r"train/sea/1.png lies in a part's folder, wood/2.png in none"):
        read_parts("d", _entries("train/sea/1.png", "wood/2.png"), {}, {})


def test_a_name_of_two_samples_needs_its_path():
    entries = _entries("sea/1.png", "wood/1.png", "wood/2.png")
    with pytest.raises(UserError, match="two samples called 1: write their paths"):
        read_parts("d", entries, {"train.txt": "1"}, {"train.txt": TRAIN})
    found = read_parts("d", entries, {"train.txt": "sea/1", "test.txt": "2"}, {"train.txt": TRAIN, "test.txt": TEST})
    np.testing.assert_array_equal(found, [TRAIN, -1, TEST])


def test_places_come_back_from_the_table():
    table = "test\timages/0.png\tx y\ntrain\timages/1.png\tz\ntest\timages/2.png\tx y\n"
    assert _parts(split=table).tolist() == [TEST, TRAIN, TEST, -1]
    assert read_places("d", ENTRIES, table) == ("x y", "z", "x y", ENTRIES[3].key)
    assert read_places("d", ENTRIES, table + "train\timages/3.png\n") is None
    assert read_places("d", ENTRIES, "") is None


def test_groups_are_lines():
    groups = read_groups("d", ENTRIES, "3 0 77\n\n1\n2.png\n")
    assert groups[0] == groups[3]
    assert len(set(groups)) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [("0 1\n1 2 3", "1 is in two groups"), ("0 1", r"images/2.png is in no group \(2 such\)")],
)
def test_groups_that_do_not_fit_are_named(text, message):
    with pytest.raises(UserError, match=message):
        read_groups("d", ENTRIES, text)
