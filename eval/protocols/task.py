"""The contract of the protocols: a task goes in, an outcome for each row of the results comes out.

Everything here is arrays; files, images and models stay with the caller.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from eval.data.kinds import Kind
from eval.data.split import TEST, TRAIN, VALIDATION
from eval.statistics import Evidence

Labelled = tuple[NDArray[np.float32], NDArray[np.int64]]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One kind of feature of one data set of scenes, in its three parts: features [N, D] and classes [N] of each."""

    train: Labelled
    validation: Labelled
    test: Labelled
    standardise: bool
    """Whether k-NN and retrieval standardise the features by the training part's mean and deviation."""
    variants: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Features [N_test, D] of the test images after a change, by the names that `Protocol.variants` gives."""
    places: Mapping[int, NDArray[np.int64]] = field(default_factory=dict)
    """Part (TRAIN, VALIDATION, TEST) → places of its images in the data set [N], for pictures and keyed draws."""
    seed: int = 0
    """Keys what a protocol draws; the same for all models, so that their draws are the same."""

    @property
    def bank(self) -> Labelled:
        """Train and validation together, in this order."""
        (features, labels), (more_features, more_labels) = self.train, self.validation
        return np.concatenate([features, more_features]), np.concatenate([labels, more_labels])

    @property
    def bank_places(self) -> NDArray[np.int64]:
        """Places in the data set of the bank's images."""
        return np.concatenate([self.places[TRAIN], self.places[VALIDATION]])


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image for the report."""

    caption: str
    pixels: NDArray[np.uint8]
    """[H, W, 3]."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One figure, with what the statistics need to say how sure it is."""

    metric: str
    evidence: Evidence
    predictions: NDArray[np.int64] | None = None
    """Class of each test image [N_test]; None where there is not one class for each."""
    detail: dict[str, Any] = field(default_factory=dict)
    """What else there is to tell, JSON-able. `validation` is the metric on the validation part, by which the report
    chooses among a model's kinds of features; None without a validation part."""
    pictures: list[Picture] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Protocol(Generic[T]):
    """A protocol gives one row per name; all of its rows are computed together."""

    name: str
    """As the command line calls it."""
    kind: Kind
    titles: Mapping[str, str]
    """Name of each row → how the report calls it. A protocol may leave out rows that the data are too few for."""
    run: Callable[[T], dict[str, Outcome]]
    variants: Mapping[str, float] = field(default_factory=dict)
    """Name → share of their size that test images are scaled to; the task must bring the features of each."""


def make_task(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    parts: NDArray[np.int64],
    *,
    standardise: bool,
    variants: Mapping[str, NDArray[np.float32]] | None = None,
    places: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> Task:
    """Cut features [N, D] and classes [N] into the parts of a split [N].

    Args:
        features: of all images.
        labels: classes of all images.
        parts: TRAIN, VALIDATION or TEST of each image.
        standardise: see `Task`.
        variants: name → features [N, D] of all images or [N_test, D] of the test images after a change.
        places: places of the N images in the data set; 0…N − 1 without.
        seed: see `Task`.
    """
    places = np.arange(len(labels)) if places is None else places
    train, validation, test = ((features[parts == part], labels[parts == part]) for part in (TRAIN, VALIDATION, TEST))
    return Task(
        train=train,
        validation=validation,
        test=test,
        standardise=standardise,
        variants={name: _of_test(values, parts) for name, values in (variants or {}).items()},
        places={part: places[parts == part] for part in (TRAIN, VALIDATION, TEST)},
        seed=seed,
    )


def _of_test(values: NDArray[np.float32], parts: NDArray[np.int64]) -> NDArray[np.float32]:
    of_test = parts == TEST
    assert len(values) in (len(parts), of_test.sum())
    chosen: NDArray[np.float32] = values[of_test] if len(values) == len(parts) else values
    return chosen


def accuracy(predictions: NDArray[np.int64], labels: NDArray[np.int64]) -> float | None:
    """Return the share of right predictions [N], 0…1; None if there are none."""
    return float((predictions == labels).mean()) if len(labels) else None


def accuracy_outcome(
    predictions: NDArray[np.int64], labels: NDArray[np.int64], validation: float | None, **detail: Any
) -> Outcome:
    """Return the outcome of predictions for test images of known classes, [N_test] each."""
    return Outcome(
        metric="accuracy",
        evidence=Evidence(metric="accuracy", units=(predictions == labels).astype(np.float64)),
        predictions=predictions,
        detail={"validation": validation, **detail},
    )


def standardised(bank: NDArray[np.float32], *others: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    """Scale features to the bank's mean 0 and deviation 1; what is constant in the bank is only shifted."""
    mean, std = bank.mean(axis=0), bank.std(axis=0)
    scale: NDArray[np.float32] = np.where(std == 0, np.ones_like(std), std)
    return tuple((values - mean) / scale for values in (bank, *others))
