"""The protocols of scene classification: features and labels in, predictions out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.knn import knn_predict
from eval.linear import linear_predict
from eval.split import TEST, TRAIN, VALIDATION

Labelled = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One kind of feature of one data set, in its three parts: features [N, D] and classes [N] of each."""

    train: Labelled
    validation: Labelled
    test: Labelled
    standardise: bool
    """Whether k-NN standardises the features by the bank's mean and deviation."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a protocol predicts for the test images, [N_test]."""

    predictions: NDArray[np.int64]
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A protocol gives one row per name; all of its rows are computed together."""

    titles: Mapping[str, str]
    """Name of each row → how the report calls it."""
    run: Callable[[Task], dict[str, Outcome]]


def make_task(
    features: NDArray[np.float32], labels: NDArray[np.int64], parts: NDArray[np.int64], *, standardise: bool
) -> Task:
    """Cut features [N, D] and classes [N] into the parts of a split [N]."""
    train, validation, test = ((features[parts == part], labels[parts == part]) for part in (TRAIN, VALIDATION, TEST))
    return Task(train=train, validation=validation, test=test, standardise=standardise)


def _run_knn(task: Task) -> dict[str, Outcome]:
    bank, labels = (np.concatenate([a, b]) for a, b in zip(task.train, task.validation, strict=True))
    queries = task.test[0]
    if task.standardise:
        mean, std = bank.mean(axis=0), bank.std(axis=0)
        std[std == 0] = 1
        bank, queries = (bank - mean) / std, (queries - mean) / std
    votes = {"knn_5": (5, False), "knn_20": (20, False), "knn_20_weighted": (20, True)}
    predicted = knn_predict(bank, labels, queries, votes)
    return {name: Outcome(predictions=predictions) for name, predictions in predicted.items()}


def _run_linear(task: Task) -> dict[str, Outcome]:
    fit = linear_predict(task.train, task.validation, task.test[0])
    detail = {"c": fit.c, "validation_accuracy": fit.validation_accuracy}
    return {"linear": Outcome(predictions=fit.predictions, detail=detail)}


PROTOCOLS = (
    Protocol(
        titles={"knn_5": "k-NN, k = 5", "knn_20": "k-NN, k = 20", "knn_20_weighted": "k-NN, k = 20, weighted"},
        run=_run_knn,
    ),
    Protocol(titles={"linear": "linear probe"}, run=_run_linear),
)
TITLES = {name: title for protocol in PROTOCOLS for name, title in protocol.titles.items()}
