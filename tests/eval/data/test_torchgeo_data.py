"""Against a stand-in that behaves as torchgeo 0.8's documented classes do: float tensors [C, H, W], no download."""

import sys
import types
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from eval.data.resolve import open_data
from eval.data.split import TEST, TRAIN, VALIDATION
from shards.errors import UserError

SIZES = {"train": 6, "val": 2, "test": 3}


class DatasetNotFoundError(FileNotFoundError):
    pass


class DependencyNotFoundError(Exception):
    pass


class NonGeoDataset:
    pass


class GeoDataset:
    pass


class _Base(NonGeoDataset):
    splits = ("train", "val", "test")

    def __init__(self, root: str = "data", split: str = "train", download: bool = True) -> None:
        assert split in self.splits
        assert not download, "nothing may be downloaded"
        if root == "/nowhere":
            raise DatasetNotFoundError("Dataset not found\nin `root=/nowhere`")
        self.split, self.root = split, root

    def __len__(self) -> int:
        return SIZES[self.split]

    def pixels(self, index: int, *shape: int) -> torch.Tensor:
        draw = np.random.default_rng([list(SIZES).index(self.split), index])
        return torch.from_numpy(draw.integers(0, 255, shape)).float()


class Scenes(_Base):
    classes = ("Forest", "River")

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"image": self.pixels(index, 3, 8, 9), "label": torch.tensor(index % 2)}


class Deep(Scenes):
    def __init__(self, root: str = "data", download: bool = True) -> None:
        super().__init__(root, "train", download)
        self.bands = ("B01", "B02", "B03", "B04")

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"image": self.pixels(index, 4, 8, 8) * 30, "label": torch.tensor(index % 2)}


class Radar(Scenes):
    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"image": self.pixels(index, 2, 8, 8) / 7 - 20, "label": torch.tensor(index % 2)}


class Covers(_Base):
    classes = ("background", "road", "water")

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        sample = {"image": self.pixels(index, 3, 8, 8)}
        return sample if self.split == "test" else sample | {"mask": self.pixels(index, 8, 8).long() % 3}


class Pairs(_Base):
    splits = {"train": {"url": "u"}, "test": {"url": "u"}}  # noqa: RUF012

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"image": self.pixels(index, 2, 3, 8, 8), "mask": self.pixels(index, 1, 8, 8).long() % 2}


class OldPairs(Pairs):
    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        first, second = super().__getitem__(index)["image"]
        return {"image1": first, "image2": second, "mask": super().__getitem__(index)["mask"][0]}


class Boxes(_Base):
    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"image": self.pixels(index, 3, 8, 8), "label": torch.zeros(4)}


class Needy(_Base):
    def __init__(self, root: str = "data", split: str = "train", download: bool = True) -> None:
        raise DependencyNotFoundError("h5py is not installed")


class Broken(Scenes):
    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index == 2:
            raise OSError("truncated\nfile")
        return super().__getitem__(index)


class Torn(Covers):
    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        sample = super().__getitem__(index)
        return sample | {"mask": sample["mask"][..., 1:]} if index == 3 else sample


class Gaps(Covers):
    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        sample = super().__getitem__(index)
        return {"image": sample["image"]} if index == 1 else sample | {"mask": self.pixels(index, 8, 8).long() % 3}


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    package, datasets = types.ModuleType("torchgeo"), types.ModuleType("torchgeo.datasets")
    for member in (
        DatasetNotFoundError, DependencyNotFoundError, NonGeoDataset, GeoDataset, Scenes, Deep, Radar, Covers, Pairs,
        OldPairs, Boxes, Needy, Broken, Torn, Gaps,
    ):  # fmt: skip
        setattr(datasets, member.__name__, member)
    monkeypatch.setitem(sys.modules, "torchgeo", package)
    monkeypatch.setitem(sys.modules, "torchgeo.datasets", datasets)


def test_all_splits_are_the_given_ones():
    data = open_data("d", "torchgeo:Scenes", 2)
    assert (data.kind, data.classes, data.dtype) == ("classes", ("Forest", "River"), "uint8")
    assert np.bincount(data.given_parts).tolist() == [6, 2, 3]
    assert data.ids[0] == "test/00000000"
    assert data.ids == tuple(sorted(data.ids))
    assert data.labels.tolist() == [0, 1, 0, 0, 1, 0, 1, 0, 1, 0, 1]
    image = data.read(data.ids.index("val/00000001")).images[0]
    expected = Scenes(split="val", download=False)[1]["image"].permute(1, 2, 0)
    np.testing.assert_array_equal(image, expected)
    assert image.dtype == np.uint8


def test_one_split_is_left_to_us():
    data = open_data("d", "torchgeo:Scenes:val#root=/data", 2)
    assert (data.given_parts, len(data.ids)) == (None, 2)
    assert data.digest != open_data("d", "torchgeo:Scenes:test", 2).digest


def test_types_hold_all_values_and_bands_have_names():
    deep, radar = open_data("d", "torchgeo:Deep#bands=4:red,2", 2), open_data("d", "torchgeo:Radar", 2)
    assert (deep.dtype, deep.bands, deep.given_parts) == ("uint16", ("red", "b02"), None)
    assert deep.read(0).images[0].shape == (8, 8, 2)
    assert (radar.dtype, radar.bands) == ("float32", ("band_1", "band_2"))
    assert radar.read(0).images[0].min() < 0


def test_masks_and_a_part_without_them():
    data = open_data("d", "torchgeo:Covers", 2)
    assert (data.kind, data.classes) == ("masks", Covers.classes)
    assert np.bincount(data.given_parts).tolist() == [6, 2]
    assert set(data.given_parts.tolist()) == {TRAIN, VALIDATION}
    assert data.ids[1] == "train/00000001"
    np.testing.assert_array_equal(data.read(1).mask, Covers(download=False)[1]["mask"])
    np.testing.assert_array_equal(data.mask_pixels[1], np.bincount(data.read(1).mask.ravel(), minlength=3))


@pytest.mark.parametrize("name", ["Pairs", "OldPairs"])
def test_pairs(name):
    data = open_data("d", f"torchgeo:{name}", 2)
    assert (data.kind, data.classes) == ("changes", ("unchanged", "changed"))
    assert set(data.given_parts.tolist()) == {TRAIN, TEST}
    sample = data.read(data.ids.index("train/00000004"))
    expected = Pairs(download=False)[4]
    for image, tensor in zip(sample.images, expected["image"], strict=True):
        np.testing.assert_array_equal(image, tensor.permute(1, 2, 0))
    np.testing.assert_array_equal(sample.mask, expected["mask"][0])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("torchgeo:Nothing", "has no dataset 'Nothing'"),
        ("torchgeo:GeoDataset", "has no dataset 'GeoDataset' of single images"),
        ("torchgeo:Scenes:val:x", "write torchgeo:NAME or torchgeo:NAME:SPLIT"),
        ("torchgeo:Deep:train", "Deep has no splits: write torchgeo:Deep"),
        ("torchgeo:Gaps", "samples without a label or mask among its 11"),
        ("torchgeo:Scenes:night", "refuses split 'night', it knows train, val, test"),
        ("torchgeo:Scenes#root=/nowhere", "cannot open it in /nowhere: Dataset not found in `root=/nowhere`"),
        ("torchgeo:Needy", "h5py is not installed"),
        ("torchgeo:Boxes", "no sample with one image or two and a label or mask"),
        ("torchgeo:Torn", r"train/00000003 has images and mask of \d+×\d+, \d+×\d+: mend it, one size is"),
        ("torchgeo:Broken", "sample test/00000002 cannot be read: truncated file"),
    ],
)
def test_what_cannot_be_used_is_one_line(word, message):
    with pytest.raises(UserError, match=message) as caught:
        open_data("d", word, 2)
    assert "\n" not in str(caught.value)


def test_without_torchgeo_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torchgeo.datasets", None)
    with pytest.raises(UserError, match=r"pip install '\.\[torchgeo\]'"):
        open_data("d", "torchgeo:EuroSAT", 2)
