"""k nearest neighbours by cosine, without any tuning; equal to scikit-learn prediction for prediction.

Cost: one matrix product queries × bank and a partial sort of each row. Similarities are computed for as many queries
at a time as fit a fixed budget, so that memory is twice the bank and the queries (they are normalised) plus 0.2 GB.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.preprocessing import normalize

from eval.protocols.task import Outcome, Protocol, Task, accuracy, accuracy_outcome, standardised

Votes = Mapping[str, tuple[int, bool]]

TEMPERATURE = 0.07
VOTES: Votes = {"knn_5": (5, False), "knn_20": (20, False), "knn_20_weighted": (20, True)}
_MAX_SIMILARITIES = 1 << 25  # 128 MiB of float32


def knn_predict(
    bank: NDArray[np.float32], labels: NDArray[np.int64], queries: NDArray[np.float32], votes: Votes
) -> dict[str, NDArray[np.int64]]:
    """Predict the class of each query by several votes over the same distances.

    Args:
        bank: training features [N, D].
        labels: their classes [N], 0 ≤ label < number of classes.
        queries: features [Q, D].
        votes: name → (k, weighted); a weighted vote counts exp(cosine / 0.07). k above N takes all of N.

    Returns:
        name → classes [Q]. Equal votes go to the lower class. Neighbours are those of scikit-learn's
        KNeighborsClassifier(algorithm="brute", metric="cosine"), also where several are equally far.
    """
    num_classes = int(labels.max()) + 1
    parts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in votes}
    for similarities in similarity_rows(bank, queries):
        neighbours = nearest(similarities, *(k for k, _ in votes.values()))
        for (name, (_, weighted)), near in zip(votes.items(), neighbours, strict=True):
            distances = _distances(np.take_along_axis(similarities, near, axis=1))
            weights = np.exp((1 - distances) / TEMPERATURE) if weighted else np.ones_like(distances)
            parts[name].append(_vote(labels[near], weights, num_classes))
    return {name: np.concatenate([np.zeros(0, np.int64), *part]) for name, part in parts.items()}


def similarity_rows(bank: NDArray[np.float32], queries: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Yield the cosines of some queries with the whole bank [q, N], in order; the next turn overwrites them."""
    if len(queries) == 0:
        return
    bank_T, queries = np.ascontiguousarray(normalize(bank)).T, normalize(queries)
    num_rows = max(1, _MAX_SIMILARITIES // len(bank))
    room = np.empty((min(num_rows, len(queries)), len(bank)), np.result_type(bank, queries))
    for start in range(0, len(queries), num_rows):
        chunk = queries[start : start + num_rows]
        yield np.matmul(chunk, bank_T, out=room[: len(chunk)])


def nearest(similarities: NDArray[np.float32], *sizes: int) -> list[NDArray[np.int64]]:
    """Return the places of the k most similar of the bank for each query, the most similar first.

    Where several could be the last, numpy's argpartition of the distances decides, as in scikit-learn.

    Args:
        similarities: of queries to the bank, [q, N].
        sizes: one k or more, 1 ≤ k; a k above N takes all of N.

    Returns:
        Places in the bank [q, min(k, N)] for each k.
    """
    num_bank = similarities.shape[1]
    values, places = torch.topk(torch.from_numpy(similarities), min(max(sizes) + 1, num_bank), dim=1)
    distances, near = _distances(values.numpy()), places.numpy()
    return [_cut(similarities, distances, near, min(k, num_bank)) for k in sizes]


def _cut(
    similarities: NDArray[np.float32], distances: NDArray[np.float32], near: NDArray[np.int64], k: int
) -> NDArray[np.int64]:
    """Keep the first k; distances and near are sorted and go one further, if the bank does."""
    kept = near[:, :k].copy()
    if k == similarities.shape[1]:
        return kept
    # A tie at the end leaves a choice. That is rare: only such rows are partitioned by numpy, which is slow.
    for row in np.flatnonzero(distances[:, k - 1] == distances[:, k]):
        everything = _distances(similarities[row])
        chosen = np.argpartition(everything, k - 1)[:k]
        kept[row] = chosen[np.argsort(everything[chosen], kind="stable")]
    return kept


def _distances(similarities: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.clip(1 - similarities, 0, 2)


def _vote(classes: NDArray[np.int64], weights: NDArray[np.float32], num_classes: int) -> NDArray[np.int64]:
    """Return the class with the largest sum of weights in each row; classes and weights are [Q, k]."""
    rows = np.arange(len(classes))[:, None] * num_classes
    flat = np.bincount((rows + classes).ravel(), weights.ravel(), minlength=len(classes) * num_classes)
    winners: NDArray[np.int64] = flat.reshape(len(classes), num_classes).argmax(axis=1)
    return winners


def knn_of_task(task: Task, queries: NDArray[np.float32], votes: Votes) -> dict[str, NDArray[np.int64]]:
    """Predict queries [Q, D] with train and validation as the bank."""
    bank, labels = task.bank
    if task.standardise:
        bank, queries = standardised(bank, queries)
    return knn_predict(bank, labels, queries, votes)


def validation_accuracies(task: Task, votes: Votes) -> dict[str, float | None]:
    """Return the accuracy on the validation part with train as the bank; None without a validation part."""
    (bank, labels), (queries, truth) = task.train, task.validation
    if task.standardise:
        bank, queries = standardised(bank, queries)
    predicted = knn_predict(bank, labels, queries, votes)
    return {name: accuracy(predictions, truth) for name, predictions in predicted.items()}


def _run(task: Task) -> dict[str, Outcome]:
    features, truth = task.test
    predicted, validation = knn_of_task(task, features, VOTES), validation_accuracies(task, VOTES)
    return {
        name: accuracy_outcome(predictions, truth, validation[name], k=VOTES[name][0])
        for name, predictions in predicted.items()
    }


KNN: Protocol[Task] = Protocol(
    name="knn",
    kind="classes",
    titles={"knn_5": "k-NN, k = 5", "knn_20": "k-NN, k = 20", "knn_20_weighted": "k-NN, k = 20, weighted"},
    run=_run,
)
