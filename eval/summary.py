"""What the rows say: paired comparisons, verdicts in words, confusion matrices. Pure functions of the rows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.protocols import TITLES
from eval.results import Row
from eval.statistics import Difference, paired_difference
from shards.keyed import generator

HEADLINES = ("linear", "knn_20")
_VERBS = {"better": "is better than", "worse": "is worse than", "no difference": "shows no difference from"}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One model against another on the same test images under one protocol."""

    data: str
    protocol: str
    model: str
    features: str
    other: str
    other_features: str
    other_is_floor: bool
    difference: Difference

    def figures(self) -> dict[str, Any]:
        """Return the fields, JSON-able, flat."""
        fields = asdict(self)
        difference: dict[str, Any] = fields.pop("difference")
        return fields | difference


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Test images by true class (rows) and predicted class (columns) under a model's best protocol."""

    data: str
    model: str
    protocol: str
    features: str
    classes: tuple[str, ...]
    counts: NDArray[np.int64]
    """[K, K]."""

    def figures(self) -> dict[str, Any]:
        """Return the fields, JSON-able."""
        return vars(self) | {"classes": list(self.classes), "counts": self.counts.tolist()}


def compare_all(rows: Sequence[Row], truth: dict[str, NDArray[np.int64]], floors: set[str]) -> list[Comparison]:
    """Compare every model that is no floor with every floor, and with each model listed before it.

    The other model's row is the one with the same features, or its only one.

    Args:
        rows: of any data sets, models and protocols.
        truth: data set → classes of its test images, in the order of the rows' predictions.
        floors: names of the models that are floors.
    """
    models = list(dict.fromkeys(row.model for row in rows))
    comparisons = []
    for row in rows:
        if row.model in floors:
            continue
        before = models[: models.index(row.model)]
        for other in (other for other in models if other in floors or other in before):
            match = _counterpart(
                row, [r for r in rows if (r.model, r.data, r.protocol) == (other, row.data, row.protocol)]
            )
            if match:
                comparisons.append(_compare(row, match, truth[row.data], other in floors))
    return comparisons


def _counterpart(row: Row, candidates: list[Row]) -> Row | None:
    same = [candidate for candidate in candidates if candidate.features == row.features]
    return same[0] if same else candidates[0] if len(candidates) == 1 else None


def _compare(row: Row, other: Row, truth: NDArray[np.int64], other_is_floor: bool) -> Comparison:
    scores = [(r.predictions == truth).astype(np.float64) for r in (row, other)]
    draw = generator("paired", row.seed, row.data, row.protocol, row.model, row.features, other.model, other.features)
    return Comparison(
        data=row.data, protocol=row.protocol, model=row.model, features=row.features,
        other=other.model, other_features=other.features, other_is_floor=other_is_floor,
        difference=paired_difference(scores[0], scores[1], row.num_draws, draw),
    )  # fmt: skip


def sentences(comparisons: Sequence[Comparison]) -> list[str]:
    """Say the headline comparisons in words: the linear probe and k-NN, on a model's first kind of features."""
    first: dict[str, str] = {}
    for comparison in comparisons:
        first.setdefault(comparison.model, comparison.features)
    return [
        _sentence(comparison)
        for comparison in sorted(comparisons, key=lambda c: (c.data, c.model, HEADLINES.index(c.protocol)
                                                             if c.protocol in HEADLINES else 9))
        if comparison.protocol in HEADLINES and comparison.features == first[comparison.model]
    ]  # fmt: skip


def _sentence(comparison: Comparison) -> str:
    d = comparison.difference
    return (
        f"On {comparison.data}, {comparison.model} {_VERBS[d.verdict]} {comparison.other}: "
        f"{100 * d.value:+.1f} points ({100 * d.low:+.1f} … {100 * d.high:+.1f}), "
        f"{TITLES[comparison.protocol]} on {comparison.features} features."
    )


def confusions(
    rows: Sequence[Row], truth: dict[str, NDArray[np.int64]], classes: dict[str, tuple[str, ...]], floors: set[str]
) -> list[Confusion]:
    """Return the confusion matrix of the best row of every (data set, model); floors have one only if alone."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row.data, row.model)
        if key not in best or row.value > best[key].value:
            best[key] = row
    shown = [row for row in best.values() if row.model not in floors] or list(best.values())
    return [
        Confusion(
            data=row.data, model=row.model, protocol=row.protocol, features=row.features, classes=classes[row.data],
            counts=confusion_counts(truth[row.data], row.predictions, len(classes[row.data])),
        )
        for row in shown
    ]  # fmt: skip


def confusion_counts(truth: NDArray[np.int64], predictions: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Count test images by (true class, predicted class), [K, K]."""
    counts: NDArray[np.int64] = np.bincount(truth * num_classes + predictions, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)
