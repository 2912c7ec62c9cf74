from pathlib import Path

import numpy as np
import pytest

from eval.data.decode import labelled_chips
from eval.data.resolve import open_data, parse_specs
from eval.data.split import PARTS, TEST, TRAIN, VALIDATION, split_of
from shards.errors import UserError


@pytest.mark.parametrize("spec", ["eurosat", "=path", "name=", "a b=path", "../x=path"])
def test_malformed_spec(spec):
    with pytest.raises(UserError, match="is not name=PATH"):
        parse_specs([spec])


def test_specs_keep_equals_signs_and_refuse_twins():
    assert parse_specs(["a=x=1", "b=y"]) == {"a": "x=1", "b": "y"}
    with pytest.raises(UserError, match="twice"):
        parse_specs(["a=x", "a=y"])


def _split_of(data, seed=0):
    return split_of(data, seed=seed, test_share=0.2, validation_share=0.2)


def test_a_split_that_evaluations_write_may_come_with_the_data(tmp_path: Path, write_classes):
    root = write_classes(tmp_path / "d")
    first = _split_of(open_data("d", str(root), 2))
    (root / "split.tsv").write_bytes(first.table)
    again = _split_of(open_data("d", str(root), 2), seed=5)
    assert (again.method, again.digest) == ("given", first.digest)


def test_split_files_may_choose_some_of_the_images(tmp_path: Path, write_classes):
    root = write_classes(tmp_path / "d")
    whole = open_data("d", str(root), 2)
    for part, numbers in (("train", range(10)), ("val", range(10, 12)), ("test", range(12, 15))):
        lines = [f"class_{label}/image_{number}.png" for label in range(3) for number in numbers]
        (root / f"{part}.txt").write_text("\n".join(lines))
    data = open_data("d", str(root), 2)
    assert (len(data.ids), data.num_unlisted, whole.num_unlisted) == (45, 15, 0)
    assert np.bincount(data.given_parts).tolist() == [30, 6, 9]
    assert data.digest != whole.digest, "features of other samples must not be taken for these"
    for index in (0, 20, 44):
        path = data.ids[index]
        expected = whole.read(whole.ids.index(path)).images[0]
        np.testing.assert_array_equal(data.read(index).images[0], expected)
        assert data.labels[index] == whole.labels[whole.ids.index(path)]


def test_groups_txt_of_class_folders(tmp_path: Path, write_classes):
    root = write_classes(tmp_path / "d")
    lines = [" ".join(f"class_{label}/image_{number}" for label in range(3)) for number in range(20)]
    (root / "groups.txt").write_text("\n".join(lines))
    split = _split_of(open_data("d", str(root), 2))
    assert split.method == "grouped"
    assert np.bincount(split.parts).tolist() == [39, 9, 12]
    (root / "groups.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"groups.txt is not UTF-8"):
        open_data("d", str(root), 2)


def test_bands_are_chosen_behind_the_path(tmp_path: Path, write_classes):
    root = write_classes(tmp_path / "d")
    data = open_data("d", f"{root}#bands=blue,1", 2)
    assert data.bands == ("blue", "red")
    assert data.url == f"{root}#bands=blue,1"
    whole = open_data("d", str(root), 2)
    np.testing.assert_array_equal(data.read(3).images[0], whole.read(3).images[0][:, :, [2, 0]])
    with pytest.raises(UserError, match="'nir' names none of the 3 bands"):
        open_data("d", f"{root}#bands=nir", 2)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "has no image in any folder, 0 other files: expected a folder for every class"),
        (["notes.txt", "data.csv"], "has no image in any folder, 2 other files"),
        (["deep/down/notes.txt"], "class folder 'deep' .* has no images"),
        (["1.png", "2.png"], "has no image in any folder"),
    ],
)
def test_what_was_found_and_what_is_expected(tmp_path: Path, files, message):
    for file in files:
        path = tmp_path / "d" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (tmp_path / "d").mkdir(exist_ok=True)
    with pytest.raises(UserError, match=message) as caught:
        open_data("d", str(tmp_path / "d"), 2)
    assert "\n" not in str(caught.value)
    assert "versions/*.json" in str(caught.value)


def test_a_file_is_no_folder(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file"):
        open_data("d", str(tmp_path / "file"), 2)


def test_class_folders_in_a_bucket(tmp_path: Path, write_classes, object_store: str):
    from shards import storage

    root, url = write_classes(tmp_path / "d", num_images=4), f"{object_store}/eval-data"
    for path in root.rglob("*.png"):
        storage.write_bytes(f"{url}/{path.relative_to(root)}", path.read_bytes())
    here, there = open_data("d", str(root), 2), open_data("d", url, 2)
    assert (there.ids, there.digest, there.classes) == (here.ids, here.digest, here.classes)
    np.testing.assert_array_equal(there.read(5).images[0], here.read(5).images[0])


def test_real_water_without_the_bands_that_leak(real_images: Path):
    data = open_data("water", f"{real_images}/water_ms12#bands=1:blue,2:green,3:red,4-7", 2)
    assert (data.kind, len(data.ids), data.dtype) == ("masks", 105, "int16")
    assert data.bands == ("blue", "green", "red", "band_4", "band_5", "band_6", "band_7")
    assert len(set(data.groups)) == 38
    parts = _split_of(data).parts
    groups = (real_images / "water_ms12" / "groups.txt").read_text().splitlines()
    part_of = {Path(path).stem: PARTS[part] for path, part in zip(data.ids, parts, strict=True)}
    assert all(len({part_of[name] for name in line.split()}) == 1 for line in groups)
    for part, share in ((TRAIN, 0.64), (VALIDATION, 0.16), (TEST, 0.2)):
        assert abs(data.mask_pixels[parts == part].sum(axis=0) / data.mask_pixels.sum(axis=0) - share).max() < 0.05
    with labelled_chips():
        sample = data.read(7)
    assert sample.images[0].shape == (128, 128, 7)
    assert sample.mask.shape == (128, 128)


@pytest.mark.parametrize(("folder", "num_pairs"), [("levir_samples", 5), ("dsifn_samples", 5), ("inlpg", 4)])
def test_real_pairs(real_images: Path, folder, num_pairs):
    data = open_data("pairs", f"{real_images}/cd_pairs/{folder}", 2)
    assert (data.kind, len(data.ids), data.classes) == ("changes", num_pairs, ("unchanged", "changed"))
    for index in range(num_pairs):
        sample = data.read(index)
        assert len(sample.images) == 2
        assert {image.shape for image in sample.images} == {(*sample.mask.shape, 3)}
        counts = np.bincount(sample.mask.ravel(), minlength=2)
        np.testing.assert_array_equal(counts, data.mask_pixels[index])
    assert {TRAIN, TEST} <= set(_split_of(data).parts.tolist())


def test_real_truth_of_jpeg_is_thresholded(real_images: Path):
    data = open_data("pairs", f"{real_images}/cd_pairs/inlpg", 2)
    share = data.mask_pixels[data.ids.index("beijing_B_1.jpg")] / 500**2
    assert share.sum() == 1
    assert 0.01 < share[1] < 0.2
