from dataclasses import replace

import numpy as np
import pytest
import torch

from eval.data.kinds import IGNORE
from eval.protocols import dense_conv
from eval.protocols.dense_conv import RATES, conv_fit
from tests.eval.protocols.dense_tasks import blocks_task


def _enlarged(sample):
    """The same scene on a larger grid: images of a data set need not be of one size."""
    features = np.pad(sample.features[0], ((0, 1), (0, 0), (0, 0)), mode="edge")
    return replace(sample, features=(features,), mask=np.pad(sample.mask, ((0, 8), (0, 0)), mode="edge"))


def test_images_of_several_sizes_train_one_head():
    task = blocks_task()
    mixed = [sample if place % 2 else _enlarged(sample) for place, sample in enumerate(task.train)]
    fit = conv_fit(replace(task, train=mixed, validation=[]), "miou")
    assert fit.validation is None
    assert fit.detail == {"rate": RATES[0], "num_steps": 100}
    assert np.trace(fit.counts.sum(axis=0)) > 0.9 * fit.counts.sum()


def test_the_loss_of_a_batch_does_not_depend_on_how_it_is_grouped():
    task = blocks_task()
    batch = [task.train[0], _enlarged(task.train[1]), task.train[2]]
    batch[0].mask[:20] = IGNORE
    scaler = dense_conv._fit_scaler(task.train, "cpu")
    torch.manual_seed(0)
    head = dense_conv._head(3, 3)
    together = dense_conv._loss(head, batch, scaler)
    points = [int((s.mask[1::2, 1::2] != IGNORE).sum()) for s in batch]
    alone = sum(dense_conv._loss(head, [s], scaler) * n for s, n in zip(batch, points, strict=True)) / sum(points)
    torch.testing.assert_close(together, alone)


def test_a_batch_without_any_class_teaches_nothing():
    task = blocks_task()
    task.train[0].mask[:] = IGNORE
    loss = dense_conv._loss(dense_conv._head(3, 3), task.train[:1], dense_conv._fit_scaler(task.train, "cpu"))
    assert loss.item() == 0


def test_channels_are_scaled_as_numpy_does():
    task = blocks_task()
    for sample in task.train:
        sample.features[0][:, :, 1] = 7
    scaler = dense_conv._fit_scaler(task.train, "cpu")
    cells = np.concatenate([sample.features[0].reshape(-1, 3) for sample in task.train])
    np.testing.assert_allclose(scaler.mean, cells.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(scaler.std[[0, 2]], cells.std(axis=0)[[0, 2]], rtol=1e-5)
    assert float(scaler.std[1]) == 1
    assert scaler(task.train[:2]).shape == (2, 3, 6, 6)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_seed_alone_draws(seed):
    def fit(num_before):
        torch.manual_seed(num_before)
        return conv_fit(replace(blocks_task(), validation=[], seed=seed), "miou").counts

    np.testing.assert_array_equal(fit(1), fit(2))
