"""k-NN over scales: test images at 12.5, 25, 50 and 100 % of their size, neighbours in train at full size.

It asks whether features survive another ground sample distance (Reed et al. 2023, Scale-MAE; reported as the mean
over the four scales by SatDINO). Test images are scaled down, then to the model's input like all others; the caller
brings the features of each scale as variants. Cost: one more pass of the test part through the model for each scale
below 100 %, and a k-NN each.
"""

from types import MappingProxyType

import numpy as np

from eval.protocols.knn import knn_of_task, validation_accuracies
from eval.protocols.task import Outcome, Protocol, Task, accuracy_outcome
from eval.statistics import Evidence

SCALES = MappingProxyType({"12": 0.125, "25": 0.25, "50": 0.5, "100": 1.0})
_VOTES = {"knn_20": (20, False)}


def variant_name(scale: str) -> str:
    """Return the name of the variant of a scale of `SCALES`, as in scale_25."""
    return f"scale_{scale}"


def scaled_px(side_px: int, share: float) -> int:
    """Return the side of an image after scaling, at least one pixel."""
    return max(1, round(side_px * share))


def _run(task: Task) -> dict[str, Outcome]:
    truth = task.test[1]
    validation = validation_accuracies(task, _VOTES)["knn_20"]
    outcomes = {}
    for scale, share in SCALES.items():
        features = task.test[0] if share == 1 else task.variants[variant_name(scale)]
        predictions = knn_of_task(task, features, _VOTES)["knn_20"]
        outcomes[f"knn_20_at_{scale}"] = accuracy_outcome(predictions, truth, validation, scale=share)
    # Images are what is resampled, scales are not: an image's score is its mean over the scales.
    scores = np.mean([outcome.evidence.units for outcome in outcomes.values()], axis=0)
    mean = Outcome(
        metric="accuracy",
        evidence=Evidence(metric="accuracy", units=scores),
        detail={"validation": validation, "scales": list(SCALES.values())},
    )
    return outcomes | {"knn_20_over_scales": mean}


MULTI_SCALE: Protocol[Task] = Protocol(
    name="multi_scale",
    kind="classes",
    titles={f"knn_20_at_{scale}": f"k-NN, k = 20, test images at {100 * share:g} %" for scale, share in SCALES.items()}
    | {"knn_20_over_scales": "k-NN, k = 20, mean over 12.5, 25, 50, 100 %"},
    run=_run,
    variants={variant_name(scale): share for scale, share in SCALES.items() if share < 1},
)
