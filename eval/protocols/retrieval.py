"""Retrieval: test images ask for images of their class among train and validation, ranked by cosine.

Query and archive are apart, as in the hashing literature of remote sensing (queries from the test part, the rest is
the archive), so that no image finds itself. Mean average precision is over the whole ranking, precision over the first
ten. Nothing is trained.

Cost: one product queries × archive and a sort of each row: for 10,000 queries in 100,000 × 384 features some 30 s of
one core.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval.data.split import TEST
from eval.protocols.knn import nearest, similarity_rows
from eval.protocols.task import Labelled, Outcome, Protocol, Task, standardised
from eval.statistics import Evidence
from shards.keyed import hash64, mix64

NUM_FIRST = 10
_GALLERY_QUERIES, _GALLERY_NEIGHBOURS = 6, 8


class Ranking(NamedTuple):
    """What retrieval gives for each query."""

    average_precision: NDArray[np.float64]
    """[Q]."""
    precision: NDArray[np.float64]
    """Share of the first ten that are of the query's class, [Q]."""
    first: NDArray[np.int64]
    """Places in the archive of the first ten, the most similar first, [Q, 10] or all of a smaller archive."""


def average_precision(similarities: NDArray[np.float32], relevant: NDArray[np.bool_]) -> float:
    """Return the mean, over the relevant, of the precision among all that are ranked as high or higher.

    Equal to scikit-learn's average_precision_score, also in ties: what is equally similar counts together.

    Args:
        similarities: of the archive to one query, [N].
        relevant: which of the archive are right, [N]; with none of them the result is 0.
    """
    everything, right = np.sort(similarities), np.sort(similarities[relevant])
    if len(right) == 0:
        return 0.0
    num_as_high = len(everything) - np.searchsorted(everything, right)
    num_right_as_high = len(right) - np.searchsorted(right, right)
    return float((num_right_as_high / num_as_high).mean())


def retrieve(archive: Labelled, queries: Labelled) -> Ranking:
    """Rank the archive for each query.

    Args:
        archive: features [N, D] and classes [N].
        queries: features [Q, D] and classes [Q].
    """
    (bank, labels), (features, truth) = archive, queries
    precisions, firsts, start = [], [np.zeros((0, min(NUM_FIRST, len(labels))), np.int64)], 0
    for similarities in similarity_rows(bank, features):
        firsts += nearest(similarities, NUM_FIRST)
        classes = truth[start : start + len(similarities)]
        precisions += [average_precision(row, labels == own) for row, own in zip(similarities, classes, strict=True)]
        start += len(similarities)
    first = np.concatenate(firsts)
    return Ranking(np.array(precisions), (labels[first] == truth[:, None]).mean(axis=1), first)


def _run(task: Task) -> dict[str, Outcome]:
    ranking = _rank(task.bank, task.test, task.standardise)
    on_validation = _rank(task.train, task.validation, task.standardise)
    figures = {
        "retrieval_map": ("average_precision", ranking.average_precision, on_validation.average_precision),
        "retrieval_precision_10": ("precision_at_10", ranking.precision, on_validation.precision),
    }
    outcomes = {
        name: Outcome(
            metric=metric,
            evidence=Evidence(metric=metric, units=scores),
            detail={"validation": float(validation.mean()) if len(validation) else None},
        )
        for name, (metric, scores, validation) in figures.items()
    }
    outcomes["retrieval_map"].detail["gallery"] = gallery(task, ranking.first)
    return outcomes


def _rank(archive: Labelled, queries: Labelled, standardise: bool) -> Ranking:
    if not standardise:
        return retrieve(archive, queries)
    bank, features = standardised(archive[0], queries[0])
    return retrieve((bank, archive[1]), (features, queries[1]))


def gallery(task: Task, first: NDArray[np.int64]) -> list[list[int]]:
    """Choose a few queries of different classes, the same for all models.

    Args:
        task: whose places are shown.
        first: places in the bank of the nearest to each test image, [N_test, ≤ 10].

    Returns:
        For each query its place in the data set, then those of its nearest, the most similar first.
    """
    places, labels = task.places[TEST], task.test[1]
    order = np.argsort(mix64(places.astype(np.uint64), hash64("gallery", task.seed)))
    _, one_of_each = np.unique(labels[order], return_index=True)
    chosen = order[np.sort(one_of_each)[:_GALLERY_QUERIES]]
    return [[int(places[query]), *task.bank_places[first[query, :_GALLERY_NEIGHBOURS]].tolist()] for query in chosen]


RETRIEVAL: Protocol[Task] = Protocol(
    name="retrieval",
    kind="classes",
    titles={"retrieval_map": "retrieval, mean average precision", "retrieval_precision_10": "retrieval, precision@10"},
    run=_run,
)
