"""Whether training collapses: figures that stay where nothing is learnt."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

ROWS = 5
"""Rows of metrics in succession that a figure must be bad for: single batches may be."""
_UNIFORM = 0.99
"""Share of ln K from which an entropy counts as that of a uniform distribution."""
_FEW_NATS = 0.1
_SAME_SPREAD = 0.02
_LEAST_RANK = 1.5
_REMEDY = (
    "start another run with a lower schedule.lr, or a longer warm-up (schedule.lr_warmup, "
    "schedule.teacher_temperature_warmup)"
)


def symptoms(row: Mapping[str, float], num_prototypes: int) -> dict[str, str]:
    """Return what is bad in a row of metrics: a name, and what it means with figures.

    Args:
        row: of metrics.
        num_prototypes: K; ln K is the entropy of saying nothing.
    """
    uniform = math.log(num_prototypes)
    cross_entropy = row["global_cls"] + row["local_cls"]
    found = {
        "teacher_uniform": (
            row["teacher_entropy"] > _UNIFORM * uniform,
            f"the teacher finds all {num_prototypes} prototypes alike (entropy {row['teacher_entropy']:.3f} of "
            f"ln K {uniform:.3f}): start another run with a lower "
            "schedule.teacher_temperature",
        ),
        "student_uniform": (
            cross_entropy > _UNIFORM * uniform,
            f"the student has learnt nothing of the teacher (cross-entropy {cross_entropy:.3f}, ln K {uniform:.3f}): "
            + _REMEDY,
        ),
        "teacher_constant": (
            row["teacher_diversity"] < _FEW_NATS,
            f"the teacher puts all images on one prototype (diversity {row['teacher_diversity']:.3f} nats): {_REMEDY}, "
            "or a higher schedule.teacher_temperature",
        ),
        "features_alike": (
            row["feature_spread"] < _SAME_SPREAD or row["feature_rank"] < _LEAST_RANK,
            f"all images get nearly the same features (spread {row['feature_spread']:.3f} of 1, effective rank "
            f"{row['feature_rank']:.1f}): {_REMEDY}, or a higher loss.koleo",
        ),
    }
    return {name: text for name, (bad, text) in found.items() if bad}


class Alarm:
    """Watch rows of metrics and tell each symptom once, when it has lasted."""

    def __init__(self, num_prototypes: int, first_step: int) -> None:
        """Watch from a step on.

        Args:
            num_prototypes: K.
            first_step: the end of the warm-up: before, it is normal that little is learnt.
        """
        self._num_prototypes = num_prototypes
        self._first_step = first_step
        self._lasting: Counter[str] = Counter()

    def recall(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Take in what an earlier start has told: what lasted then goes on lasting, and is not told again."""
        for row in rows[-ROWS - 1 :]:
            self.look(row)

    def look(self, row: Mapping[str, float]) -> tuple[int, list[str]]:
        """Return how many symptoms have lasted until this row, and the texts of those that begin to count with it."""
        found = symptoms(row, self._num_prototypes) if row["step"] >= self._first_step else {}
        self._lasting = Counter({name: self._lasting[name] + 1 for name in found})
        lasting = [name for name, count in self._lasting.items() if count >= ROWS]
        return len(lasting), [found[name] for name in lasting if self._lasting[name] == ROWS]
