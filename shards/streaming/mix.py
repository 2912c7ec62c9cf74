"""Which dataset a sample comes from: a pure function of its number and the weights.

Datasets take turns as evenly as whole numbers allow, by nested splits: the first gets n·w₁ / w of the first n samples,
rounded, the second the same way its share of what is left, and so on. So counts follow the weights without drift (up
to three datasets: within one sample at any time; more: within half a sample per split), each dataset is read in its
own order, and any place is found without a history.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Count = TypeVar("Count", int, Ints)

_MAX_TOTAL = 10**6
_MAX_SAMPLES = 4 * 10**12  # twice this times a weight fits in 64 bits


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Weights from one sample of the stream on.

    A stream has one mixture; where weights change, the next one begins, and goes on where each dataset was.
    """

    weights: tuple[int, ...]
    """Of each dataset; 0: paused."""
    start: int = 0
    """Samples of the stream before the first of this mixture."""
    taken: tuple[int, ...] = ()
    """Of them, from each dataset; empty: none."""

    def __post_init__(self) -> None:
        if min(self.weights, default=-1) < 0 or not 0 < sum(self.weights) <= _MAX_TOTAL:
            raise ValueError(f"weights {self.weights} are not whole numbers ≥ 0 with a sum of 1 to {_MAX_TOTAL}")
        if not self.taken:
            object.__setattr__(self, "taken", (0,) * len(self.weights))
        assert sum(self.taken) == self.start

    def split(self, numbers: Ints) -> tuple[Ints, Ints]:
        """Return (dataset, position in its own stream) of samples of the stream, int64 arrays [I].

        Args:
            numbers: int64 [I], all ≥ start.
        """
        left = np.asarray(numbers, np.int64) - self.start
        if not ((left >= 0) & (left < _MAX_SAMPLES)).all():
            raise ValueError(f"sample numbers outside {self.start} to {self.start + _MAX_SAMPLES}")
        datasets, positions = np.empty_like(left), np.empty_like(left)
        here = np.arange(len(left))
        for dataset, weight, total in self._splits():
            before, after = _share(left, weight, total), _share(left + 1, weight, total)
            mine = after > before
            datasets[here[mine]] = dataset
            positions[here[mine]] = before[mine] + self.taken[dataset]
            left, here = (left - before)[~mine], here[~mine]
        return datasets, positions

    def numbers(self, dataset: int, positions: Ints) -> Ints:
        """Return the numbers in the stream of a dataset's samples, int64 [I]: `split` undone.

        Args:
            dataset: one whose weight is above 0.
            positions: in its own stream, int64 [I], none of them taken before this mixture.
        """
        splits = self._splits()
        (level,) = [level for level, (each, _, _) in enumerate(splits) if each == dataset]
        _, weight, total = splits[level]
        # The inverse of _share, then for each split before that of what _share leaves to the others.
        found = -((2 * (positions - self.taken[dataset]) + 1) * total // (-2 * weight)) - 1
        for _, weight, total in reversed(splits[:level]):
            found = (2 * found + 1) * total // (2 * (total - weight))
        return np.asarray(found + self.start, np.int64)

    def counts(self, number: int) -> tuple[int, ...]:
        """Return how many of the stream's first `number` samples come from each dataset; number ≥ start."""
        left, counts = number - self.start, list(self.taken)
        for dataset, weight, total in self._splits():
            share = _share(left, weight, total)
            counts[dataset] += share
            left -= share
        return tuple(counts)

    def change(self, number: int, weights: Sequence[int]) -> "Mixture":
        """Return the mixture that goes on from a sample with other weights, and perhaps further datasets at the end."""
        taken = [*self.counts(number), *[0] * (len(weights) - len(self.weights))]
        return Mixture(weights=tuple(weights), start=number, taken=tuple(taken))

    def _splits(self) -> list[tuple[int, int, int]]:
        """Return (dataset, weight, weight of it and all later ones); the last with weight takes what is left."""
        totals = np.cumsum(self.weights[::-1])[::-1].tolist()
        return [(i, w, t) for i, (w, t) in enumerate(zip(self.weights, totals, strict=True)) if w]


def _share(count: Count, weight: int, total: int) -> Count:
    """Return how many of so many samples a split gives to the dataset of that weight."""
    return (2 * count * weight + total) // (2 * total)


def whole_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """Return weights as the smallest whole numbers in the same proportion.

    Raises:
        ValueError: a weight is negative or not finite, all are 0, or the numbers would not stay below a million.
    """
    if not weights or not all(0 <= weight < float("inf") for weight in weights) or not any(weights):
        raise ValueError(f"weights {list(weights)} are not numbers ≥ 0, one of them above 0")
    parts = [Fraction(str(weight)) for weight in weights]
    common = math.lcm(*[part.denominator for part in parts])
    numbers = [int(part * common) for part in parts]
    divisor = math.gcd(*numbers)
    result = tuple(number // divisor for number in numbers)
    if sum(result) > _MAX_TOTAL:
        raise ValueError(f"weights {list(weights)} are too fine: their ratio in whole numbers is {result}; round them")
    return result


def proportional_weights(counts: Sequence[int]) -> tuple[int, ...]:
    """Return weights by which all datasets end their epochs together: in proportion to their samples.

    Exact where the counts, divided by their greatest common divisor, sum to at most a million. Else they are scaled
    and rounded down, but none to 0: shares are off by a few millionths.

    Args:
        counts: samples of each dataset, all above 0.
    """
    divisor, total = math.gcd(*counts), sum(counts)
    if total // divisor <= _MAX_TOTAL:
        return tuple(count // divisor for count in counts)
    return tuple(max(1, count * (_MAX_TOTAL - len(counts)) // total) for count in counts)
