from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eval.data.kinds import IGNORE
from eval.protocols import dense_linear
from eval.protocols.dense import interpolation
from eval.protocols.dense_linear import draw_pixels, features_at, linear_fit
from tests.eval.protocols.dense_tasks import blocks_task


@given(
    height=st.integers(1, 8), width=st.integers(1, 8), cell_px=st.tuples(st.floats(0.5, 20), st.floats(0.5, 20)),
    seed=st.integers(0, 10**6),
)  # fmt: skip
def test_features_of_pixels_are_those_of_the_interpolated_grid(height, width, cell_px, seed):
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(height, width, 3)).astype(np.float32)
    rows, columns = draw.integers(0, 100, (2, 12))
    down, across = interpolation(height, cell_px[0], rows), interpolation(width, cell_px[1], columns)
    expected = np.einsum("ph,pw,hwd->pd", down, across, features)
    np.testing.assert_allclose(features_at(features, cell_px, rows, columns), expected, atol=1e-4)


def test_pixels_are_drawn_evenly_from_images_and_never_where_there_is_no_class(monkeypatch):
    monkeypatch.setattr(dense_linear, "_MOST_PIXELS", 160)
    samples = blocks_task().train
    samples[3].mask[:] = IGNORE
    samples[5].mask[:] = IGNORE
    samples[5].mask[7, :4] = 2
    features, labels = draw_pixels(samples, "train", 0)
    assert len(features) == len(labels) == 14 * 10 + 4
    assert set(labels) <= {0, 1, 2}
    again = draw_pixels(samples, "train", 0)
    np.testing.assert_array_equal(again[0], features)
    assert not np.array_equal(draw_pixels(samples, "train", 1)[0], features)


def test_without_a_validation_part_c_is_one():
    task = replace(blocks_task(), validation=[])
    fit = linear_fit(task, "miou")
    assert fit.detail["c"] == 1
    assert fit.validation is None


def test_without_the_class_that_counts_in_the_validation_part_c_is_one():
    task = blocks_task()
    binary = [replace(sample, mask=(sample.mask == 2).astype(np.uint8)) for sample in [*task.train, *task.test]]
    train, test = binary[: len(task.train)], binary[len(task.train) :]
    nothing = [replace(sample, mask=np.zeros_like(sample.mask)) for sample in task.validation]
    fit = linear_fit(replace(task, train=train, validation=nothing, test=test, classes=("land", "water")), "iou")
    assert fit.detail["c"] == 1
    assert fit.counts[:, 1, 1].sum() > 0.5 * fit.counts[:, 1].sum()


def test_the_same_seed_gives_the_same_counts():
    first, second = (linear_fit(blocks_task(), "miou").counts for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_half_precision_features_will_do():
    task = blocks_task()
    halved = [replace(s, features=(s.features[0].astype(np.float16),)) for s in task.train]
    fit = linear_fit(replace(task, train=halved), "miou")
    assert np.trace(fit.counts.sum(axis=0)) > 0.95 * fit.counts.sum()
