"""Few-shot classification: n labelled images of each class, several draws of them.

The labels come from the train part; the test images are all of the test part. The classifiers have nothing to tune,
as there are no images left to tune on: the nearest neighbour (k = 1, the one k that n = 1 allows), and the linear
probe at scikit-learn's default C = 1. The nearest neighbour's features are standardised, where the task asks for
it, by all of the train part, which takes no labels; the probe standardises by its few images.

Cost: 40 fits on at most 20 images of each class. For 10 classes and 256 features that is 9 s of one core, where the
linear probe's sweep over 2,000 images takes 15 s.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from eval.data.split import TRAIN
from eval.protocols.knn import knn_predict
from eval.protocols.linear import linear_predict
from eval.protocols.task import Labelled, Outcome, Protocol, Task, standardised
from eval.statistics import Evidence
from shards.keyed import hash64, mix64

SIZES = (1, 5, 10, 20)
NUM_DRAWS = 5

_Classify = Callable[[Labelled, NDArray[np.float32]], NDArray[np.int64]]


def draw_support(
    labels: NDArray[np.int64], places: NDArray[np.int64], num_per_class: int, key: int
) -> NDArray[np.int64]:
    """Choose n images of each class by the keyed hash of their places in the data set.

    The choice of a larger n has that of a smaller one within it, and does not depend on the order of the images.

    Args:
        labels: classes of the images [N]; each class has n or more.
        places: their places in the data set [N], distinct.
        num_per_class: n.
        key: another key gives another draw.

    Returns:
        Ascending numbers of the chosen images, [n × classes].
    """
    hashes = mix64(places.astype(np.uint64), key)
    by_class = np.lexsort((hashes, labels))
    sorted_labels = labels[by_class]
    starts = np.searchsorted(sorted_labels, sorted_labels)
    chosen = by_class[np.arange(len(labels)) - starts < num_per_class]
    return np.sort(chosen)


def _run(task: Task) -> dict[str, Outcome]:
    train, *rest = (task.train[0], task.validation[0], task.test[0])
    scaled = tuple(standardised(train, *rest)) if task.standardise else (train, *rest)
    kinds: dict[str, tuple[tuple[NDArray[np.float32], ...], _Classify]] = {
        "knn": (scaled, _nearest_neighbour),
        "linear": ((train, *rest), _linear_probe),
    }
    return {
        f"few_shot_{kind}_{size}": _outcome(task, features, size, classify)
        for kind, (features, classify) in kinds.items()
        for size in fitting_sizes(task)
    }


def fitting_sizes(task: Task) -> list[int]:
    """Return the sizes for which every class has enough images in the train part."""
    classes = np.unique(np.concatenate([task.train[1], task.validation[1], task.test[1]]))
    smallest = int((task.train[1][:, None] == classes).sum(axis=0).min(initial=len(task.train[1])))
    return [size for size in SIZES if size <= smallest]


def _nearest_neighbour(support: Labelled, queries: NDArray[np.float32]) -> NDArray[np.int64]:
    return knn_predict(*support, queries, {"1": (1, False)})["1"]


def _linear_probe(support: Labelled, queries: NDArray[np.float32]) -> NDArray[np.int64]:
    nothing = (support[0][:0], support[1][:0])
    return linear_predict(support, nothing, queries).predictions


def _outcome(task: Task, features: tuple[NDArray[np.float32], ...], size: int, classify: _Classify) -> Outcome:
    """Score the test images by each draw, [R, N_test], and the validation images alongside."""
    train, validation, test = features
    queries = np.concatenate([validation, test])
    truth = np.concatenate([task.validation[1], task.test[1]])
    draws = []
    for number in range(NUM_DRAWS):
        key = hash64("few_shot", task.seed, number)
        support = draw_support(task.train[1], task.places[TRAIN], size, key)
        draws.append(classify((train[support], task.train[1][support]), queries) == truth)
    right, on_validation = np.array(draws)[:, len(validation) :], np.array(draws)[:, : len(validation)]
    return Outcome(
        metric="accuracy",
        evidence=Evidence(metric="accuracy", units=right.astype(np.float64)),
        detail={
            "validation": float(on_validation.mean()) if len(validation) else None,
            "num_per_class": size,
            "draws": right.mean(axis=1).tolist(),
        },
    )


_TITLES = {"knn": "nearest neighbour", "linear": "linear probe"}
FEW_SHOT: Protocol[Task] = Protocol(
    name="few_shot",
    kind="classes",
    titles={
        f"few_shot_{kind}_{size}": f"few-shot, {size} per class, {title}"
        for kind, title in _TITLES.items()
        for size in SIZES
    },
    run=_run,
)
