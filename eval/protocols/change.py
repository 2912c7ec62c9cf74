"""Change detection on frozen patch features of two images a and b: linear on |f(a) − f(b)| and on [f(a), f(b)].

The figures are F1 and IoU of the changed class, of the pixels of all test pairs together, at the masks' own
resolution; C is chosen by IoU, which ranks as F1 does. Cost: see `eval.protocols.dense_linear`, twice.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eval.protocols.dense import DenseFit, DenseSample, DenseSamples, DenseTask
from eval.protocols.dense_linear import linear_fit
from eval.protocols.panels import panels
from eval.protocols.segmentation import dense_detail
from eval.protocols.task import Outcome, Protocol
from eval.statistics import Evidence

Combine = Callable[[NDArray[np.floating], NDArray[np.floating]], NDArray[np.floating]]

_METRICS: tuple[Literal["f1", "iou"], ...] = ("f1", "iou")


def difference(before: NDArray[np.floating], after: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return |before − after| [h, w, D]."""
    apart: NDArray[np.floating] = np.abs(before.astype(np.float32) - after.astype(np.float32))
    return apart


def side_by_side(before: NDArray[np.floating], after: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return [before, after] [h, w, 2 D]."""
    return np.concatenate([before, after], axis=2)


_COMBINE: dict[str, Combine] = {"change_difference": difference, "change_concat": side_by_side}


@dataclass(frozen=True)
class _Combined:
    """Pairs as samples with one grid of features each, made when they are asked for."""

    pairs: DenseSamples
    combine: Combine

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int, /) -> DenseSample:
        pair = self.pairs[index]
        before, after = pair.features
        return replace(pair, features=(self.combine(before, after),))


def run_change(task: DenseTask) -> dict[str, Outcome]:
    """Fit a linear head to both ways of putting a pair together; each gives a row for F1 and one for IoU."""
    outcomes: dict[str, Outcome] = {}
    for name, combine in _COMBINE.items():
        train, validation, test = (_Combined(part, combine) for part in (task.train, task.validation, task.test))
        combined = replace(task, train=train, validation=validation, test=test)
        fit = linear_fit(combined, "iou")
        outcomes |= {f"{name}_{metric}": _outcome(combined, fit, metric) for metric in _METRICS}
    return outcomes


def _outcome(task: DenseTask, fit: DenseFit, metric: Literal["f1", "iou"]) -> Outcome:
    # The pictures of the two figures would be the same.
    return Outcome(
        metric=metric,
        evidence=Evidence(metric=metric, units=fit.counts),
        detail=dense_detail(task, fit, metric) | precision_recall(fit.counts),
        pictures=panels(task, task.test, fit, metric) if metric == "f1" else [],
    )


def precision_recall(counts: NDArray[np.int64]) -> dict[str, float | None]:
    """Return precision and recall of class 1 of counts [N, 2, 2]; None where they are undefined."""
    total = counts.sum(axis=0)
    right, predicted, true = int(total[1, 1]), int(total[:, 1].sum()), int(total[1].sum())
    return {"precision": right / predicted if predicted else None, "recall": right / true if true else None}


CHANGE = Protocol[DenseTask](
    name="change",
    kind="changes",
    titles={
        "change_difference_f1": "change, linear on |a − b|: F1",
        "change_difference_iou": "change, linear on |a − b|: IoU",
        "change_concat_f1": "change, linear on [a, b]: F1",
        "change_concat_iou": "change, linear on [a, b]: IoU",
    },
    run=run_change,
)
