"""Semantic segmentation on frozen patch features: a linear head and a small convolutional one.

The figure is the mean IoU over the classes, of the pixels of all test images together, at the masks' own resolution.
Cost: see `eval.protocols.dense_linear` and `eval.protocols.dense_conv`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.protocols.dense import DenseFit, DenseSamples, DenseTask
from eval.protocols.dense_conv import conv_fit
from eval.protocols.dense_linear import linear_fit
from eval.protocols.panels import panels
from eval.protocols.task import Outcome, Protocol
from eval.statistics import Evidence, per_class_iou, value


def run_segmentation(task: DenseTask) -> dict[str, Outcome]:
    """Fit both heads; the outcome of each has pictures of a few test images."""
    fits = {"segment_linear": linear_fit, "segment_conv": conv_fit}
    return {name: _outcome(task, fit(task, "miou")) for name, fit in fits.items()}


def _outcome(task: DenseTask, fit: DenseFit) -> Outcome:
    return Outcome(
        metric="miou",
        evidence=Evidence(metric="miou", units=fit.counts),
        detail=dense_detail(task, fit, "miou"),
        pictures=panels(task, task.test, fit, "miou"),
    )


def dense_detail(task: DenseTask, fit: DenseFit, metric: str) -> dict[str, Any]:
    """Return what else there is to tell of a fit, JSON-able; IoU of a class that is nowhere is None."""
    ious = per_class_iou(fit.counts)
    validation = None if fit.validation is None else value(Evidence(metric=metric, units=fit.validation))
    return {
        "validation": validation,
        "per_class": {
            name: float(iou) if np.isfinite(iou) else None for name, iou in zip(task.classes, ious, strict=True)
        },
        "pixel_accuracy": _accuracy(fit.counts),
        "num_pixels": int(fit.counts.sum()),
        "manners": _manners(task.test),
        **fit.detail,
    }


def _accuracy(counts: NDArray[np.int64]) -> float:
    total = counts.sum(axis=0)
    return float(np.trace(total) / max(1, total.sum()))


def _manners(samples: DenseSamples) -> dict[str, int]:
    """Count the images that were shown to the model whole, resized and in windows."""
    manners = [samples[index].manner for index in range(len(samples))]
    return {manner: manners.count(manner) for manner in sorted(set(manners))}


SEGMENTATION = Protocol[DenseTask](
    name="segmentation",
    kind="masks",
    titles={"segment_linear": "segmentation, linear", "segment_conv": "segmentation, small conv head"},
    run=run_segmentation,
)
