import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score

from eval.models.floors import floor_model
from eval.models.windows import embed_large
from eval.protocols import dense_linear
from eval.protocols.change import CHANGE, difference, precision_recall, run_change, side_by_side
from eval.protocols.dense import DenseSample, DenseTask
from eval.statistics import value
from tests.eval.protocols.dense_tasks import pairs_task


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep threads from waiting for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_pairs_are_put_together_cell_by_cell():
    before, after = np.random.default_rng(0).normal(size=(2, 2, 3, 4)).astype(np.float16)
    apart = difference(before, after)
    assert apart.dtype == np.float32
    np.testing.assert_array_equal(apart, np.abs(before.astype(np.float32) - after.astype(np.float32)))
    np.testing.assert_array_equal(side_by_side(before, after)[1, 2], np.concatenate([before[1, 2], after[1, 2]]))


def test_colours_tell_where_coloured_blocks_change():
    outcomes = run_change(pairs_task())
    assert list(outcomes) == list(CHANGE.titles)
    for name, outcome in outcomes.items():
        assert outcome.metric == name.rpartition("_")[2]
        assert value(outcome.evidence) > 0.88, name
        assert outcome.detail["validation"] > 0.88
        json.dumps(outcome.detail)
    pictures = outcomes["change_difference_f1"].pictures
    assert pictures[0].pixels.shape == (48, 4 * 48 + 3 * 4, 3)
    assert pictures[0].caption.startswith("before, after, truth, prediction: f1")


def test_shuffled_truth_gives_chance():
    outcomes = run_change(pairs_task(shuffled=True, num=(24, 8, 20)))
    for outcome in outcomes.values():
        counts = outcome.evidence.units.sum(axis=0)
        # Whatever is called changed is so about as often as anything.
        assert counts[1, 1] <= 1.3 * counts[1].sum() * counts[:, 1].sum() / counts.sum()


def test_precision_and_recall_are_those_of_f1():
    truth, predicted = np.random.default_rng(0).integers(0, 2, (2, 500))
    counts = np.bincount(2 * truth + predicted, minlength=4).reshape(1, 2, 2)
    found = precision_recall(counts)
    f1 = 2 * found["precision"] * found["recall"] / (found["precision"] + found["recall"])
    assert f1 == pytest.approx(f1_score(truth, predicted))
    assert precision_recall(np.array([[[3, 0], [0, 0]]])) == {"precision": None, "recall": None}


def _pair(folder: Path, name: str) -> tuple[DenseSample, tuple[np.ndarray, np.ndarray]]:
    images = tuple(np.array(Image.open(folder / side / name).convert("RGB")) for side in "AB")
    features = embed_large(floor_model("random_conv"), [torch.from_numpy(image) for image in images])
    mask = (np.asarray(Image.open(folder / "label" / name)) > 127).astype(np.uint8)
    first = features[0]
    sample = DenseSample(
        features=tuple(f.values.numpy() for f in features), cell_px=first.cell_px, manner=first.manner, mask=mask
    )
    return sample, images


def test_random_filters_go_through_on_real_pairs(real_images: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dense_linear, "_MOST_PIXELS", 4000)
    folder = real_images / "cd_pairs" / "dsifn_samples"
    names = sorted(file.name for file in (folder / "A").iterdir())
    samples, images = zip(*[_pair(folder, name) for name in names], strict=True)
    task = DenseTask(
        train=samples[:2], validation=samples[2:3], test=samples[3:], classes=("unchanged", "changed"),
        show=lambda index: images[3 + index],
    )  # fmt: skip
    outcomes = run_change(task)
    # Five pairs say nothing about the figure: only that it is one, of all pixels, and not by luck 0.
    for outcome in outcomes.values():
        assert outcome.detail["num_pixels"] == 2 * 256 * 256
        assert 0 < value(outcome.evidence) < 1
