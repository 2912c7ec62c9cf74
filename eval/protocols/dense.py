"""What gives every pixel a class: patch features with masks, the way from a grid of cells to pixels, and the counts.

A grid's values lie at the centres of its cells; pixels get them by bilinear interpolation, which is two small matrix
products, one for each axis. Samples are read when they are asked for, so that a data set need not fit in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.data.kinds import IGNORE

DenseMetric = Literal["miou", "iou"]
Predict = Callable[["DenseSample"], NDArray[np.uint8]]
"""Maps a sample to the class of each pixel [H, W]."""

_POINTS_PER_CELL = 4  # along each axis
_STRIP = 1 << 24  # logits that are interpolated at a time: 64 MiB


@dataclass(frozen=True, kw_only=True)
class DenseSample:
    """Patch features of one image, or of the two of a pair, with the class of each pixel."""

    features: tuple[NDArray[np.floating], ...]
    """[h, w, D] each, float16 or float32; the grid starts at the upper left corner and covers the image."""
    cell_px: tuple[float, float]
    """Height and width of a cell in pixels of the mask."""
    manner: str
    """How the image was shown to the model: whole, resized or windowed."""
    mask: NDArray[np.uint8]
    """[H, W], IGNORE where there is no class."""


class DenseSamples(Protocol):
    """Samples that are read when they are asked for; a list will do."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> DenseSample: ...


@dataclass(frozen=True, kw_only=True)
class DenseTask:
    """One model's patch features of one data set of masks or changes, in its three parts."""

    train: DenseSamples
    validation: DenseSamples
    test: DenseSamples
    classes: tuple[str, ...]
    show: Callable[[int], tuple[NDArray[np.uint8], ...]]
    """Return test image i, or the two of a pair, for the eye: [H, W, 3], as large as the mask."""
    seed: int = 0
    """Keys the heads' weights and the order of the batches; the same for all models."""
    device: str = "cpu"
    """Where heads are trained, as torch names it."""


@dataclass(frozen=True)
class Joined:
    """One sequence of samples after another."""

    first: DenseSamples
    second: DenseSamples

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, index: int, /) -> DenseSample:
        return self.first[index] if index < len(self.first) else self.second[index - len(self.first)]


@dataclass(frozen=True, kw_only=True)
class DenseFit:
    """A head's predictions for the test part and how it came by them."""

    counts: NDArray[np.int64]
    """Pixels of each test image by (true, predicted) class, [N, K, K]."""
    validation: NDArray[np.int64] | None
    """Alike of the validation part, which the fit has not seen; None where that part is empty."""
    detail: dict[str, Any]
    """What was chosen on the validation part, JSON-able."""
    predict: Predict


def confusions(samples: DenseSamples, predict: Predict, num_classes: int) -> NDArray[np.int64]:
    """Count each sample's pixels by (true, predicted) class at the mask's full resolution, [N, K, K]."""
    every = (samples[index] for index in range(len(samples)))
    return np.stack([confusion(sample.mask, predict(sample), num_classes) for sample in every])


def confusion(truth: NDArray[np.uint8], predicted: NDArray[np.uint8], num_classes: int) -> NDArray[np.int64]:
    """Count pixels by (true, predicted) class, [K, K]; pixels that are IGNORE in truth count nowhere."""
    assert truth.shape == predicted.shape
    seen = truth != IGNORE
    assert truth[seen].max(initial=0) < num_classes
    pairs = truth[seen].astype(np.int64) * num_classes + predicted[seen]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def interpolation(num_cells: int, cell_px: float, positions: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the matrix [P, num_cells] that interpolates linearly from cells to pixels of one axis.

    Values lie at the centres of cells and of pixels; outside the outer centres they go on unchanged, as in torch's
    `interpolate(mode="bilinear", align_corners=False)`.

    Args:
        num_cells: cells along the axis.
        cell_px: their length, pixels.
        positions: the pixels that are wanted [P], 0 ≤ position.
    """
    place = np.clip((positions + 0.5) / cell_px - 0.5, 0, num_cells - 1)
    weights: NDArray[np.float64] = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(num_cells)))
    return weights.astype(np.float32)


def lattice(length_px: int, cell_px: float) -> NDArray[np.int64]:
    """Return the pixels of one axis at which training looks: about 4 per cell, evenly spaced."""
    stride = max(1, round(cell_px / _POINTS_PER_CELL))
    return np.arange(min(stride // 2, length_px - 1), length_px, stride)


def at_pixels(
    logits: Tensor, cell_px: tuple[float, float], rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> Tensor:
    """Interpolate logits [B, K, h, w] to pixels at every pair of a row and a column, [B, K, R, C]."""
    down, across = (
        torch.from_numpy(interpolation(num_cells, cell, positions)).to(logits.device)
        for num_cells, cell, positions in zip(logits.shape[2:], cell_px, (rows, columns), strict=True)
    )
    return down @ logits.contiguous() @ across.T


def classes_of(logits: Tensor, sample: DenseSample) -> NDArray[np.uint8]:
    """Return the class of each pixel of a sample [H, W] from logits of its cells [K, h, w]."""
    height, width = sample.mask.shape
    num_rows = max(1, _STRIP // (len(logits) * width))
    columns = np.arange(width)
    strips = []
    for top in range(0, height, num_rows):
        rows = np.arange(top, min(top + num_rows, height))
        strips.append(at_pixels(logits[None], sample.cell_px, rows, columns)[0].argmax(dim=0).to(torch.uint8))
    predicted: NDArray[np.uint8] = torch.cat(strips).cpu().numpy()
    return predicted
