import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.data.decode import decode, labelled_chips
from eval.data.kinds import IGNORE
from eval.models.floors import floor_model
from eval.models.windows import embed_large
from eval.protocols import dense_conv, dense_linear
from eval.protocols.dense import DenseSample, DenseTask
from eval.protocols.segmentation import SEGMENTATION, run_segmentation
from eval.statistics import value
from tests.eval.protocols.dense_tasks import CLASSES, blocks_task

_NUM_BANDS = 7  # those beyond leak the label


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep threads from waiting for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_colours_tell_the_classes_of_coloured_blocks():
    outcomes = run_segmentation(blocks_task())
    assert list(outcomes) == list(SEGMENTATION.titles)
    for outcome in outcomes.values():
        assert value(outcome.evidence) > 0.93
        assert outcome.evidence.units.shape == (10, 3, 3)
        assert outcome.detail["validation"] > 0.93
        assert list(outcome.detail["per_class"]) == list(CLASSES)
        assert outcome.detail["manners"] == {"whole": 10}
        json.dumps(outcome.detail)
        assert len(outcome.pictures) == 4
        # Image, truth and prediction with two gaps.
        assert outcome.pictures[0].pixels.shape == (48, 3 * 48 + 2 * 4, 3)


def test_shuffled_masks_give_chance():
    for outcome in run_segmentation(blocks_task(shuffled=True, num=(24, 8, 30))).values():
        # Blocks, not pixels, are independent: 270 of them, three deviations about a third.
        assert abs(outcome.detail["pixel_accuracy"] - 1 / 3) < 3 * np.sqrt(2 / 9 / 270)
        assert value(outcome.evidence) < 0.3


def test_what_is_ignored_counts_nowhere_and_a_class_that_is_nowhere_has_no_figure():
    task = replace(blocks_task(), classes=(*CLASSES, "glacier"))
    for sample in [*task.train, *task.test]:
        sample.mask[:10] = IGNORE
    outcome = run_segmentation(task)["segment_linear"]
    assert outcome.detail["per_class"]["glacier"] is None
    assert outcome.detail["num_pixels"] == 10 * 38 * 48
    assert value(outcome.evidence) > 0.93


def _water(root: Path, numbers: list[int]) -> list[DenseSample]:
    """Features of real tiles under random filters, bands 1 to 7."""
    images, masks = [], []
    for number in numbers:
        file = root / "images" / f"{number}.tif"
        images.append(torch.from_numpy(decode(file.name, file.read_bytes())[0][:, :, :_NUM_BANDS].copy()))
        masks.append(np.asarray(Image.open(root / "masks" / f"{number}.png")).astype(np.uint8))
    features = embed_large(floor_model("random_conv"), images)
    return [
        DenseSample(features=(f.values.numpy(),), cell_px=f.cell_px, manner=f.manner, mask=mask)
        for f, mask in zip(features, masks, strict=True)
    ]


def test_random_filters_find_water_in_real_tiles(real_images: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dense_linear, "_MOST_PIXELS", 4000)
    monkeypatch.setattr(dense_conv, "_LEAST_STEPS", 40)
    root = real_images / "water_ms12"
    parts: tuple[list[int], ...] = ([], [], [])
    # Tiles of a group overlap; groups differ a lot, so that all of them are needed; every other tile will do.
    for place, line in enumerate((root / "groups.txt").read_text().splitlines()):
        parts[(0, 2, 0, 1, 2)[place % 5]].extend(int(word) for word in line.split()[::2])
    with labelled_chips():
        train, validation, test = (_water(root, part) for part in parts)
    task = DenseTask(
        train=train, validation=validation, test=test, classes=("land", "water"),
        show=lambda index: (np.zeros((128, 128, 3), np.uint8),),
    )  # fmt: skip
    for outcome in run_segmentation(task).values():
        # All land would be half of what land covers.
        true = outcome.evidence.units.sum(axis=(0, 2))
        assert value(outcome.evidence) > true[0] / true.sum() / 2 + 0.1, outcome.detail
