"""What the rows say: paired comparisons, verdicts in words, confusion matrices. Pure functions of the rows.

A model has rows for several kinds of features; the one that stands for it was the best on the validation part. It is
never chosen by its test figure: the best of three test figures is higher than any of them deserves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.protocols import TITLES
from eval.results import Row
from eval.statistics import Difference, paired_difference
from shards.keyed import generator

HEADLINES = ("linear", "knn_20", "segment_linear", "change_difference_f1")
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
    chosen: bool
    """Whether the features are the model's chosen ones; the other's always are its."""
    difference: Difference

    def figures(self) -> dict[str, Any]:
        """Return the fields, JSON-able, flat."""
        fields = asdict(self)
        difference: dict[str, Any] = fields.pop("difference")
        return fields | difference


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Test images, or their pixels, by true class (rows) and predicted class (columns)."""

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


def chosen_rows(rows: Sequence[Row]) -> list[Row]:
    """Keep one row of each (data, protocol, model): the best on the validation part, the first of equals.

    Without a validation figure the first kind of features stands for the model.
    """
    best: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        key = (row.data, row.protocol, row.model)
        if key not in best or _validation(row) > _validation(best[key]):
            best[key] = row
    return list(best.values())


def _validation(row: Row) -> float:
    figure = row.detail.get("validation")
    return -1.0 if figure is None else float(figure)


def compare_all(rows: Sequence[Row], floors: set[str], runs: Mapping[str, str]) -> list[Comparison]:
    """Compare every model that is no floor with every floor, and with models listed before it.

    Of one run's exports each is compared with the one before it, and the last one alone with other models: the
    number of comparisons grows with the number of exports, not with its square.

    Args:
        rows: of any data sets, models and protocols, models in the order of the report.
        floors: names of the models that are floors.
        runs: name of each exported model → its run; exports of a run in the order of their steps.
    """
    models = list(dict.fromkeys(row.model for row in rows))
    chosen = {(row.data, row.protocol, row.model): row for row in chosen_rows(rows)}
    comparisons = []
    for row in rows:
        if row.model in floors:
            continue
        for name in _opponents(row.model, models, floors, runs):
            other = chosen.get((row.data, row.protocol, name))
            if other is not None and other.evidence.units.shape == row.evidence.units.shape:
                is_chosen = chosen[row.data, row.protocol, row.model] is row
                comparisons.append(_compare(row, other, name in floors, is_chosen))
    return comparisons


def _opponents(model: str, models: Sequence[str], floors: set[str], runs: Mapping[str, str]) -> list[str]:
    last_of = {runs[name]: name for name in models if name in runs}
    mine = [name for name in models if name in runs and runs[name] == runs.get(model)]
    before = models[: models.index(model)]
    opponents = [name for name in models if name in floors]
    for name in before:
        if name in mine:
            wanted = mine.index(name) == mine.index(model) - 1
        else:
            wanted = all(item not in runs or last_of[runs[item]] == item for item in (name, model))
        if wanted and name not in floors:
            opponents.append(name)
    return opponents


def _compare(row: Row, other: Row, other_is_floor: bool, chosen: bool) -> Comparison:
    draw = generator("paired", row.seed, row.data, row.protocol, row.model, row.features, other.model, other.features)
    return Comparison(
        data=row.data, protocol=row.protocol, model=row.model, features=row.features,
        other=other.model, other_features=other.features, other_is_floor=other_is_floor, chosen=chosen,
        difference=paired_difference(row.evidence, other.evidence, row.num_draws, draw),
    )  # fmt: skip


def sentences(comparisons: Sequence[Comparison]) -> list[str]:
    """Say the headline comparisons in words, each model by its chosen features."""
    told = [c for c in comparisons if c.chosen and c.protocol in HEADLINES]
    return [_sentence(c) for c in sorted(told, key=lambda c: (c.data, c.model, HEADLINES.index(c.protocol)))]


def _sentence(comparison: Comparison) -> str:
    d = comparison.difference
    features = comparison.features
    if comparison.other_features != features:
        features = f"{features} against {comparison.other_features}"
    return (
        f"On {comparison.data}, {comparison.model} {_VERBS[d.verdict]} {comparison.other}: "
        f"{100 * d.value:+.1f} points ({100 * d.low:+.1f} … {100 * d.high:+.1f}), "
        f"{TITLES[comparison.protocol]} on {features} features."
    )


def confusions(
    rows: Sequence[Row],
    truth: Mapping[str, NDArray[np.int64]],
    classes: Mapping[str, tuple[str, ...]],
    floors: set[str],
) -> list[Confusion]:
    """Return a confusion matrix for every (data set, model): of its first headline protocol's chosen features.

    Floors have one only if they are alone.

    Args:
        rows: of any data sets, models and protocols.
        truth: data set → classes of its test images, in the order of the rows' predictions.
        classes: data set → names of its classes.
        floors: names of the models that are floors.
    """
    shown: dict[tuple[str, str], Row] = {}
    for headline in HEADLINES:
        for row in chosen_rows([row for row in rows if row.protocol == headline]):
            shown.setdefault((row.data, row.model), row)
    kept = [row for row in shown.values() if row.model not in floors] or list(shown.values())
    return [
        Confusion(
            data=row.data, model=row.model, protocol=row.protocol, features=row.features, classes=classes[row.data],
            counts=_counts(row, truth, len(classes[row.data])),
        )
        for row in kept
    ]  # fmt: skip


def _counts(row: Row, truth: Mapping[str, NDArray[np.int64]], num_classes: int) -> NDArray[np.int64]:
    if row.predictions is not None:
        return confusion_counts(truth[row.data], row.predictions, num_classes)
    total: NDArray[np.int64] = row.evidence.units.sum(axis=0)
    return total


def confusion_counts(truth: NDArray[np.int64], predictions: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Count test images by (true class, predicted class), [K, K]."""
    counts: NDArray[np.int64] = np.bincount(truth * num_classes + predictions, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)
