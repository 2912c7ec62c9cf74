import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score
from torch.nn import functional

from eval.data.kinds import IGNORE
from eval.protocols import dense
from eval.protocols.dense import Joined, at_pixels, classes_of, confusion, confusions, interpolation, lattice
from eval.statistics import Evidence, per_class_iou, value
from tests.eval.protocols.dense_tasks import blocks_task, pairs_task


@given(num_cells=st.integers(1, 20), cell_px=st.integers(1, 20))
def test_interpolation_is_torch_s_bilinear(num_cells, cell_px):
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, num_cells)).astype(np.float32))
    expected = functional.interpolate(values, scale_factor=cell_px, mode="linear", align_corners=False)[0, 0]
    matrix = interpolation(num_cells, cell_px, np.arange(num_cells * cell_px))
    np.testing.assert_allclose(matrix @ values[0, 0].numpy(), expected, atol=1e-5)


@given(num_cells=st.integers(1, 30), cell_px=st.floats(0.3, 40), length_px=st.integers(1, 600))
def test_every_pixel_is_a_weighted_mean_of_two_neighbouring_cells(num_cells, cell_px, length_px):
    matrix = interpolation(num_cells, cell_px, np.arange(length_px))
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)
    assert (matrix >= 0).all()
    assert ((matrix > 0).sum(axis=1) <= 2).all()
    assert (np.diff(matrix @ np.arange(num_cells)) >= -1e-4).all()


@given(length_px=st.integers(1, 600), cell_px=st.floats(0.3, 40))
def test_the_lattice_is_even_and_within_the_image(length_px, cell_px):
    points = lattice(length_px, cell_px)
    assert len(points)
    assert points[0] >= 0
    assert points[-1] < length_px
    assert len(set(np.diff(points))) <= 1


def test_both_axes_are_interpolated_like_an_image():
    logits = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    whole = functional.interpolate(logits, scale_factor=(8, 16), mode="bilinear", align_corners=False)
    rows, columns = np.array([0, 3, 39]), np.array([5, 63])
    found = at_pixels(logits, (8, 16), rows, columns)
    torch.testing.assert_close(found, whole[:, :, rows][:, :, :, columns])


def test_large_masks_are_predicted_strip_by_strip(monkeypatch: pytest.MonkeyPatch):
    sample = blocks_task().test[0]
    logits = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0))
    whole = classes_of(logits, sample)
    monkeypatch.setattr(dense, "_STRIP", 3 * 48 * 7)
    np.testing.assert_array_equal(classes_of(logits, sample), whole)


@given(seed=st.integers(0, 10**6), num_classes=st.integers(2, 6))
def test_counts_and_their_metrics_equal_scikit_learn_s(seed, num_classes):
    draw = np.random.default_rng(seed)
    truth, predicted = draw.integers(0, num_classes, (2, 9, 7)).astype(np.uint8)
    truth[draw.random(truth.shape) < 0.2] = IGNORE
    counts = confusion(truth, predicted, num_classes)
    seen = truth != IGNORE
    reference = confusion_matrix(truth[seen], predicted[seen], labels=np.arange(num_classes))
    np.testing.assert_array_equal(counts, reference)
    classes = np.union1d(truth[seen], predicted[seen])
    each = jaccard_score(truth[seen], predicted[seen], labels=classes, average=None)
    np.testing.assert_allclose(per_class_iou(counts[None])[classes], each)
    assert value(Evidence(metric="miou", units=counts[None])) == pytest.approx(each.mean())
    if num_classes == 2:
        f1 = f1_score(truth[seen], predicted[seen], zero_division=0)
        assert value(Evidence(metric="f1", units=counts[None])) == pytest.approx(f1)


def test_a_mask_with_a_class_too_many_is_our_mistake():
    with pytest.raises(AssertionError):
        confusion(np.full((2, 2), 3, np.uint8), np.zeros((2, 2), np.uint8), 3)


def test_counts_come_image_by_image_and_parts_join():
    task = pairs_task()
    joined = Joined(task.train, task.validation)
    assert len(joined) == 22
    assert joined[15] is task.train[15]
    assert joined[16] is task.validation[0]
    counts = confusions(joined, lambda sample: sample.mask, 2)
    assert counts.shape == (22, 2, 2)
    assert (counts.sum(axis=(1, 2)) == 48 * 48).all()
    assert counts[:, 0, 1].sum() == counts[:, 1, 0].sum() == 0
