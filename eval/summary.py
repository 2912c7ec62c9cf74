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
VERBS = {"better": "is better than", "worse": "is worse than", "no difference": "shows no difference from"}


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
        if key not in best or validation(row) > validation(best[key]):
            best[key] = row
    return list(best.values())


def validation(row: Row) -> float:
    """Return the figure on the validation part, -1 where there is none."""
    figure = row.detail.get("validation")
    return -1.0 if figure is None else float(figure)


def compare_all(
    rows: Sequence[Row], floors: set[str], runs: Mapping[str, str], baseline: str | None = None
) -> list[Comparison]:
    """Compare every model that is no floor with every floor, and with the baseline or else with models before it.

    Of one run's exports each is compared with the one before it, and the last one alone with other models: the
    number of comparisons grows with the number of exports, not with its square.

    Args:
        rows: of any data sets, models and protocols, models in the order of the report.
        floors: names of the models that are floors.
        runs: name of each exported model → its run; exports of a run in the order of their steps.
        baseline: name of the model that all others are compared with, in place of those before them.
    """
    models = list(dict.fromkeys(row.model for row in rows))
    opponents = {name: _opponents(name, models, floors, runs, baseline) for name in models if name not in floors}
    chosen = {(row.data, row.protocol, row.model): row for row in chosen_rows(rows)}
    comparisons = []
    for row in rows:
        for name in opponents.get(row.model, ()):
            other = chosen.get((row.data, row.protocol, name))
            if other is not None and other.evidence.units.shape == row.evidence.units.shape:
                is_chosen = chosen[row.data, row.protocol, row.model] is row
                comparisons.append(_compare(row, other, name in floors, is_chosen))
    return comparisons


def _opponents(
    model: str, models: Sequence[str], floors: set[str], runs: Mapping[str, str], baseline: str | None
) -> list[str]:
    last_of = {runs[name]: name for name in models if name in runs}
    newest = {name for name in models if name not in runs or last_of[runs[name]] == name}
    mine = [name for name in models if name in runs and runs[name] == runs.get(model)]
    before = mine[: mine.index(model)][-1:] if mine else []
    others = [name for name in models[: models.index(model)] if name in newest and name not in mine]
    if baseline is not None:
        others = [baseline] * (model != baseline)
    wanted = {*before, *(others if model in newest else [])}
    return [name for name in models if name in floors] + [n for n in models if n in wanted and n not in floors]


def _compare(row: Row, other: Row, other_is_floor: bool, chosen: bool) -> Comparison:
    draw = generator("paired", row.seed, row.data, row.protocol, row.model, row.features, other.model, other.features)
    return Comparison(
        data=row.data, protocol=row.protocol, model=row.model, features=row.features,
        other=other.model, other_features=other.features, other_is_floor=other_is_floor, chosen=chosen,
        difference=paired_difference(row.evidence, other.evidence, row.num_draws, draw),
    )  # fmt: skip


def sentences(comparisons: Sequence[Comparison]) -> list[str]:
    """Say the headline comparisons in words, each model by its chosen features: all floors at once, then the others."""
    told = [c for c in comparisons if c.chosen and c.protocol in HEADLINES]
    data, models = (list(dict.fromkeys(getattr(c, name) for c in told)) for name in ("data", "model"))
    told.sort(key=lambda c: (data.index(c.data), models.index(c.model), HEADLINES.index(c.protocol)))
    groups: dict[tuple[str, ...], list[Comparison]] = {}
    for c in told:
        groups.setdefault((c.data, c.model, c.protocol, "" if c.other_is_floor else c.other), []).append(c)
    return [_sentence(group) for group in groups.values()]


def _sentence(group: Sequence[Comparison]) -> str:
    """Say one comparison, or those of one model with several floors."""
    first = group[0]
    if len(group) == 1:
        said = f"{_against(first, ' points')}, "
        end = f" against {first.other_features}" if first.other_features != first.features else ""
    else:
        said, end = f"{_against_floors(group)}; ", ""
    return f"On {first.data}, {first.model} {said}{TITLES[first.protocol]} on {first.features}{end} features."


def _against(comparison: Comparison, unit: str = "") -> str:
    return f"{VERBS[comparison.difference.verdict]} {comparison.other}: {in_points(comparison.difference, unit)}"


def in_points(difference: Difference, unit: str = "") -> str:
    """Return a difference with its interval, in points."""
    d = difference
    return f"{100 * d.value:+.1f}{unit} ({100 * d.low:+.1f} … {100 * d.high:+.1f})"


def _against_floors(group: Sequence[Comparison]) -> str:
    """Say each verdict once: of all floors with the difference nearest to none, else floor by floor."""
    verdicts = [verdict for verdict in VERBS if any(c.difference.verdict == verdict for c in group)]
    if len(verdicts) == 1:
        nearest = min(group, key=lambda c: abs(c.difference.value))
        number = f"any of {len(group)}" if verdicts[0] == "no difference" else f"all {len(group)}"
        said = in_points(nearest.difference, " points")
        return f"{VERBS[verdicts[0]]} {number} floors, nearest {nearest.other}: {said}"
    parts = []
    for verdict in verdicts:
        first, *more = [c for c in group if c.difference.verdict == verdict]
        parts.append(", ".join([_against(first, " points"), *[f"{c.other}: {in_points(c.difference)}" for c in more]]))
    return ", and ".join(parts)


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
