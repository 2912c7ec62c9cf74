"""A linear head on frozen patch features: logistic regression of pixels, as exact as the linear probe of scenes.

Interpolating logits and interpolating features are the same thing for a linear head. So pixels drawn from the
training images get their features by bilinear interpolation, and the probe's own solver (L-BFGS, C swept on the
validation part, refit on train + validation) does the rest; nothing depends on a learning rate or an order.

Cost: 20,000 pixels of a part at most, or as many as have 2²⁵ features (128 MiB; the solver holds three times that),
an equal number of each image. The sweep and both fits take a few seconds for 256 features on one core.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.data.kinds import IGNORE
from eval.protocols.dense import (
    DenseFit,
    DenseMetric,
    DenseSample,
    DenseSamples,
    DenseTask,
    Predict,
    classes_of,
    confusion,
    confusions,
)
from eval.protocols.linear import SWEEP_TOLERANCE, LogisticRegression, threads_for
from eval.statistics import Evidence, value
from shards.keyed import generator

# Pixels of an image are alike: larger values than these only take longer.
C_SWEEP = (1e-6, 1e-4, 1e-2, 1.0)
_MOST_PIXELS, _MOST_VALUES = 20_000, 1 << 25
_TOLERANCE = 1e-5  # which pixels were drawn matters more than what is left of the gradient

Pixels = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Features [P, D] and classes [P]."""


def linear_fit(task: DenseTask, metric: DenseMetric) -> DenseFit:
    """Choose C by the metric on pixels of the validation part, fit on train + validation, predict the test part.

    Without a validation part C is 1. Samples have one grid of features each.
    """
    num_classes = len(task.classes)
    train = draw_pixels(task.train, "train", task.seed)
    assert len(train[1]), "no pixel of the training part has a class"
    c, predict_validation, bank = 1.0, None, train
    with threads_for(train[0].size * num_classes):
        if len(task.validation):
            drawn = draw_pixels(task.validation, "validation", task.seed)
            c, predict_validation = _choose_c(train, drawn, num_classes, metric)
            bank = (np.concatenate([train[0], drawn[0]]), np.concatenate([train[1], drawn[1]]))
        problem = LogisticRegression(torch.from_numpy(bank[0]), torch.from_numpy(bank[1]), num_classes)
        predict = _predictor(problem, problem.fit(c, problem.zeros(), _TOLERANCE))
    return DenseFit(
        counts=confusions(task.test, predict, num_classes),
        validation=predict_validation and confusions(task.validation, predict_validation, num_classes),
        detail={"c": c, "num_pixels_train": len(bank[1])},
        predict=predict,
    )


def draw_pixels(samples: DenseSamples, part: str, seed: int) -> Pixels:
    """Draw pixels that have a class, the same number of each image, with their interpolated features."""
    features, labels = [], []
    for index in range(len(samples)):
        sample = samples[index]
        most = min(_MOST_PIXELS, _MOST_VALUES // sample.features[0].shape[2])
        places = np.flatnonzero(sample.mask.ravel() != IGNORE)
        draw = generator("dense pixels", seed, part, index)
        places = draw.choice(places, min(len(places), max(1, most // len(samples))), replace=False, shuffle=False)
        rows, columns = np.unravel_index(np.sort(places), sample.mask.shape)
        features.append(features_at(sample.features[0], sample.cell_px, rows, columns))
        labels.append(sample.mask[rows, columns].astype(np.int64))
    return np.concatenate(features), np.concatenate(labels)


def features_at(
    features: NDArray[np.floating],
    cell_px: tuple[float, float],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Interpolate features [h, w, D] bilinearly to the pixels (rows[i], columns[i]), [P, D]."""
    upper, lower, down = _neighbours(features.shape[0], cell_px[0], rows)
    left, right, across = _neighbours(features.shape[1], cell_px[1], columns)
    above = features[upper, left] * (1 - across) + features[upper, right] * across
    below = features[lower, left] * (1 - across) + features[lower, right] * across
    return (above * (1 - down) + below * down).astype(np.float32)


def _neighbours(
    num_cells: int, cell_px: float, positions: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the cells before and after each pixel [P] of one axis and the latter's weight [P, 1]."""
    place = np.clip((positions + 0.5) / cell_px - 0.5, 0, num_cells - 1)
    before = place.astype(np.int64)
    return before, np.minimum(before + 1, num_cells - 1), (place - before)[:, None]


def _choose_c(train: Pixels, validation: Pixels, num_classes: int, metric: DenseMetric) -> tuple[float, Predict]:
    """Return the best C of the sweep, the smallest of equals, and what predicts with the fit on train alone.

    Where no C finds anything, as in a validation part without the class that counts, nothing is chosen: C is 1.
    """
    problem = LogisticRegression(torch.from_numpy(train[0]), torch.from_numpy(train[1]), num_classes)
    x, labels = torch.from_numpy(validation[0]), validation[1].astype(np.uint8)
    weights = problem.zeros()
    best_c, best_figure, best_weights = C_SWEEP[0], -1.0, weights
    for c in C_SWEEP:
        weights = problem.fit(c, weights, SWEEP_TOLERANCE)
        predicted = problem.predict(weights, x).numpy().astype(np.uint8)
        figure = value(Evidence(metric=metric, units=confusion(labels, predicted, num_classes)[None]))
        # While all are 0 the last one stands, which is 1.
        if figure > best_figure or best_figure <= 0:
            best_c, best_figure, best_weights = c, figure, weights
    return best_c, _predictor(problem, best_weights)


def _predictor(problem: LogisticRegression, weights: Tensor) -> Predict:
    standardise = problem.standardise
    matrix = (problem.rotation @ weights[:-1]) / standardise.std[:, None]
    bias = weights[-1] - standardise.mean @ matrix

    def predict(sample: DenseSample) -> NDArray[np.uint8]:
        cells = torch.from_numpy(np.asarray(sample.features[0], np.float32))
        return classes_of((cells @ matrix + bias).permute(2, 0, 1), sample)

    return predict
