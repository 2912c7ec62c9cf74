"""A small convolutional head on frozen patch features: two 3×3 convolutions, each cell sees 5×5 cells.

Its logits are interpolated to pixels, where the cross-entropy is taken. Training looks at a lattice of about 4 × 4
pixels per cell (labels as they are there, never blended), prediction at every pixel. AdamW with a cosine schedule;
the rate is chosen on the validation part and the head fitted again on train + validation. Every draw is keyed.

Cost: 20 epochs, but 100 to 1,000 steps of 8 images; three fits. A step over 16 × 16 cells of 256 features takes
30 ms of one core. A batch is in memory at a time; features come as they are read.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from eval.data.kinds import IGNORE
from eval.protocols.dense import (
    DenseFit,
    DenseMetric,
    DenseSample,
    DenseSamples,
    DenseTask,
    Joined,
    Predict,
    at_pixels,
    classes_of,
    confusions,
    lattice,
)
from eval.statistics import Evidence, value
from shards.keyed import generator, hash64

RATES = (1e-3, 5e-3)
_HIDDEN = 64
_BATCH, _EPOCHS, _LEAST_STEPS, _MOST_STEPS = 8, 20, 100, 1000


def conv_fit(task: DenseTask, metric: DenseMetric) -> DenseFit:
    """Choose the rate by the metric on the validation part, fit on train + validation, predict the test part.

    Without a validation part the lower rate is taken. Samples have one grid of features each.
    """
    num_classes = len(task.classes)
    rate, validation = RATES[0], None
    if len(task.validation):
        found = [(r, confusions(task.validation, _fit(task, task.train, r)[0], num_classes)) for r in RATES]
        rate, validation = max(found, key=lambda item: value(Evidence(metric=metric, units=item[1])))
    predict, num_steps = _fit(task, Joined(task.train, task.validation), rate)
    counts = confusions(task.test, predict, num_classes)
    detail = {"rate": rate, "num_steps": num_steps}
    return DenseFit(counts=counts, validation=validation, detail=detail, predict=predict)


@dataclass(frozen=True)
class _Scaler:
    """Features to mean 0 and deviation 1 in each channel over the cells of the training part."""

    mean: Tensor
    std: Tensor

    def __call__(self, samples: list[DenseSample]) -> Tensor:
        """Return the features of samples with grids of one shape, float32 [B, D, h, w]."""
        features = np.stack([sample.features[0] for sample in samples]).astype(np.float32)
        scaled = (torch.from_numpy(features).to(self.mean.device) - self.mean) / self.std
        return scaled.permute(0, 3, 1, 2)


def _fit_scaler(samples: DenseSamples, device: str) -> _Scaler:
    num_cells, total, squares = 0, np.zeros(1), np.zeros(1)
    shift = samples[0].features[0].astype(np.float64).mean(axis=(0, 1))
    for index in range(len(samples)):
        cells = samples[index].features[0].reshape(-1, len(shift)) - shift
        num_cells += len(cells)
        total, squares = total + cells.sum(axis=0), squares + np.square(cells).sum(axis=0)
    std = np.sqrt(np.maximum(0, squares / num_cells - np.square(total / num_cells)))
    std[std <= 1e-6 * np.abs(shift)] = 1
    std[std == 0] = 1
    as_tensor = [torch.from_numpy(values.astype(np.float32)).to(device) for values in (shift + total / num_cells, std)]
    return _Scaler(*as_tensor)


def _fit(task: DenseTask, samples: DenseSamples, rate: float) -> tuple[Predict, int]:
    """Train a head; return what predicts with it, and the number of steps."""
    scaler = _fit_scaler(samples, task.device)
    with torch.random.fork_rng(devices=[]), torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        torch.manual_seed(hash64("conv head", task.seed) >> 1)
        head = _head(len(scaler.mean), len(task.classes)).to(task.device)
        num_steps = _train(head, samples, scaler, rate, task.seed)

    def predict(sample: DenseSample) -> NDArray[np.uint8]:
        with torch.inference_mode():
            return classes_of(head(scaler([sample]))[0], sample)

    return predict, num_steps


def _head(width: int, num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(width, _HIDDEN, 3, padding=1), nn.ReLU(), nn.Conv2d(_HIDDEN, num_classes, 3, padding=1)
    )


def _train(head: nn.Module, samples: DenseSamples, scaler: _Scaler, rate: float, seed: int) -> int:
    batch_size = min(_BATCH, len(samples))
    num_steps = min(max(_EPOCHS * len(samples) // batch_size, _LEAST_STEPS), _MOST_STEPS)
    optimiser = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.01)
    places = itertools.chain.from_iterable(
        generator("conv batches", seed, epoch).permutation(len(samples)).tolist() for epoch in itertools.count()
    )
    for step in range(num_steps):
        optimiser.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        optimiser.zero_grad()
        _loss(head, [samples[place] for place in itertools.islice(places, batch_size)], scaler).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return num_steps


def _loss(head: nn.Module, batch: list[DenseSample], scaler: _Scaler) -> Tensor:
    """Return the mean cross-entropy over the lattice pixels of a batch that have a class."""
    total, num_pixels = scaler.mean.new_zeros(()), 0
    for _, group in itertools.groupby(sorted(batch, key=_geometry), key=_geometry):
        alike = list(group)
        first = alike[0]
        rows, columns = (lattice(length, cell) for length, cell in zip(first.mask.shape, first.cell_px, strict=True))
        masks = np.stack([sample.mask[np.ix_(rows, columns)] for sample in alike])
        logits = at_pixels(head(scaler(alike)), first.cell_px, rows, columns)
        targets = torch.from_numpy(masks.astype(np.int64)).to(logits.device)
        total = total + functional.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
        num_pixels += int((masks != IGNORE).sum())
    return total / max(1, num_pixels)


def _geometry(sample: DenseSample) -> tuple[int | float, ...]:
    return (*sample.features[0].shape, *sample.mask.shape, *sample.cell_px)
