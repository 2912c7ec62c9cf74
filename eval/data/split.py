"""A class-stratified split that depends on the seed and each image's relative path alone, not on any listing order."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.keyed import hash64

TRAIN, VALIDATION, TEST = 0, 1, 2
PARTS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which part each image belongs to."""

    parts: NDArray[np.int64]
    """TRAIN, VALIDATION or TEST for each image [N]."""
    table: bytes
    """The split file: a line "part<TAB>path" for each image, by path."""

    @property
    def digest(self) -> str:
        """Return the sha256 of the split file."""
        return hashlib.sha256(self.table).hexdigest()


def stratified_split(
    paths: Sequence[str], labels: NDArray[np.int64], *, seed: int, test_share: float, validation_share: float
) -> Split:
    """Split each class by the keyed hash of its images' paths.

    Every class keeps at least one image in train and in test; validation takes its share of what test leaves.

    Args:
        paths: relative paths, [N].
        labels: class of each image, [N]; each class has two images or more.
        seed: another seed gives another split.
        test_share: share of each class that is tested, 0…1.
        validation_share: share of the rest that chooses hyper-parameters, 0…1.
    """
    parts = np.full(len(paths), TRAIN)
    keys = np.array([hash64("split", seed, path) for path in paths], np.uint64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        members = members[np.argsort(keys[members], kind="stable")]
        num_test = min(max(1, round(test_share * len(members))), len(members) - 1)
        num_rest = len(members) - num_test
        num_validation = min(round(validation_share * num_rest), num_rest - 1)
        parts[members[:num_test]] = TEST
        parts[members[num_test : num_test + num_validation]] = VALIDATION
    lines = sorted((path, PARTS[part]) for path, part in zip(paths, parts, strict=True))
    return Split(parts=parts, table="".join(f"{part}\t{path}\n" for path, part in lines).encode())
