"""k nearest neighbours by cosine, without any tuning; equal to scikit-learn prediction for prediction.

Cost: one matrix product queries × bank and a partial sort of each row. Distances are computed for as many queries
at a time as fit a fixed budget: 10,000 queries against 100,000 × 384 features need about 0.5 GB.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import normalize

TEMPERATURE = 0.07
_MAX_DISTANCES = 1 << 25  # 128 MiB of float32


def knn_predict(
    bank: NDArray[np.float32],
    labels: NDArray[np.int64],
    queries: NDArray[np.float32],
    votes: dict[str, tuple[int, bool]],
) -> dict[str, NDArray[np.int64]]:
    """Predict the class of each query by several votes over the same distances.

    Args:
        bank: training features [N, D].
        labels: their classes [N], 0 ≤ label < number of classes.
        queries: features [Q, D].
        votes: name → (k, weighted); a weighted vote counts exp(cosine / 0.07). k above N takes all of N.

    Returns:
        name → classes [Q]. Equal votes go to the lower class; equal distances are decided by numpy's argpartition on
        the distances that scikit-learn computes, as in its KNeighborsClassifier(algorithm="brute", metric="cosine").
    """
    num_classes = int(labels.max()) + 1
    bank, queries = normalize(bank), normalize(queries)
    parts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in votes}
    for chunk in _chunks(queries, len(bank)):
        distances = np.clip(1 - chunk @ bank.T, 0, 2)
        for name, (k, weighted) in votes.items():
            nearest = _nearest(distances, min(k, len(bank)))
            similarity = 1 - np.take_along_axis(distances, nearest, axis=1)
            weights = np.exp(similarity / TEMPERATURE) if weighted else np.ones_like(similarity)
            parts[name].append(_vote(labels[nearest], weights, num_classes))
    return {name: np.concatenate(part) for name, part in parts.items()}


def _chunks(queries: NDArray[np.float32], bank_size: int) -> Iterator[NDArray[np.float32]]:
    rows = max(1, _MAX_DISTANCES // bank_size)
    for start in range(0, len(queries), rows):
        yield queries[start : start + rows]


def _nearest(distances: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    return np.argpartition(distances, k - 1, axis=1)[:, :k]


def _vote(classes: NDArray[np.int64], weights: NDArray[np.float32], num_classes: int) -> NDArray[np.int64]:
    """Return the class with the largest sum of weights in each row; classes and weights are [Q, k]."""
    rows = np.arange(len(classes))[:, None] * num_classes
    flat = np.bincount((rows + classes).ravel(), weights.ravel(), minlength=len(classes) * num_classes)
    winners: NDArray[np.int64] = flat.reshape(len(classes), num_classes).argmax(axis=1)
    return winners
