"""Splits into train, validation and test: pure functions of the seed and the samples' names, not of any listing order.

- given: the split that came with the data. Without a validation part one is drawn from train; without a test part the
  validation part is tested.
- stratified: each class by the keyed hash of its samples' names.
- grouped: whole groups (places), dealt out one after the other, each to the part whose shares of the classes it mends
  most. Masks without groups are split like this too, each a group of its own: their classes are pixels.

Cost: 2 µs per sample; groups 10 µs each and for each of the orders that are tried.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eval.data.kinds import LabelledData
from shards.errors import UserError
from shards.keyed import hash64

TRAIN, VALIDATION, TEST = 0, 1, 2
PARTS = ("train", "validation", "test")
Method = Literal["given", "stratified", "grouped"]
_NUM_ORDERS = 32
_MANY_GROUPS = 2000  # so many fill the parts evenly in any order


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which part each image belongs to."""

    parts: NDArray[np.int64]
    """TRAIN, VALIDATION or TEST for each image [N]."""
    table: bytes
    """The split file: a line "part<TAB>path" for each image, by path; with "<TAB>place" after it where there are
    places."""
    method: Method
    """How it was made."""
    places: tuple[str, ...] | None = None
    """Place of each image [N], called by its least path, where no place is in test and in another part: what is tested
    are then new places. None elsewhere, and where each image is a place of its own."""

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
    return _split(paths, parts, "stratified")


def _split(paths: Sequence[str], parts: NDArray[np.int64], method: Method) -> Split:
    lines = sorted((path, PARTS[part]) for path, part in zip(paths, parts, strict=True))
    return Split(parts=parts, table="".join(f"{part}\t{path}\n" for path, part in lines).encode(), method=method)


def split_of(
    data: LabelledData, *, seed: int, test_share: float, validation_share: float, method: Method | None = None
) -> Split:
    """Return the given split of a data set, else a grouped one where it has groups, else one by its classes.

    Args:
        data: to be split.
        seed: another seed gives another split; of a given one it draws the validation part, if that has to be drawn.
        test_share: share of the data that is tested, 0…1.
        validation_share: share of the rest that chooses hyper-parameters, 0…1.
        method: takes this one instead.

    Raises:
        UserError: the data have no such split, or a class would be tested that is not trained.
    """
    chosen = method or ("given" if data.given_parts is not None else "grouped" if data.groups else "stratified")
    if chosen == "grouped" and data.groups is None:
        raise UserError(f"{data.name} has no groups to split by: add groups.txt, or split it by its classes")
    if chosen == "given":
        split = _given_split(data, seed, validation_share)
    elif chosen == "stratified" and data.labels is not None:
        split = stratified_split(
            data.ids, data.labels, seed=seed, test_share=test_share, validation_share=validation_share
        )
    else:
        groups = data.groups if chosen == "grouped" and data.groups else data.ids
        split = grouped_split(
            data.ids, groups, _weights(data), seed=seed, test_share=test_share, validation_share=validation_share
        )
        split = replace(split, method=chosen)
    _check_classes(data, split)
    return split if data.groups is None else _with_places(split, data.ids, data.groups)


def _with_places(split: Split, paths: Sequence[str], groups: Sequence[str]) -> Split:
    """Tell the places of a split that keeps those of its test part to it."""
    names, group_N = _named_by_first_member(paths, groups)
    is_test = split.parts == TEST
    if len(names) == len(paths) or np.intersect1d(group_N[is_test], group_N[~is_test]).size:
        return split
    places = tuple(names[group] for group in group_N)
    lines = sorted((path, PARTS[part], place) for path, part, place in zip(paths, split.parts, places, strict=True))
    table = "".join(f"{part}\t{path}\t{place}\n" for path, part, place in lines).encode()
    return replace(split, table=table, places=places)


def _weights(data: LabelledData) -> NDArray[np.integer]:
    """Return how much of each class each sample has [N, K]: a byte each for whole images."""
    if data.labels is not None:
        return np.eye(len(data.classes), dtype=np.uint8)[data.labels]
    assert data.mask_pixels is not None
    return data.mask_pixels


def grouped_split(
    paths: Sequence[str],
    groups: Sequence[str],
    weights: NDArray[np.integer],
    *,
    seed: int,
    test_share: float,
    validation_share: float,
) -> Split:
    """Split by whole groups, so that the parts come near their shares of the samples and of every class.

    The groups are dealt out in a keyed order, each to the part where it lowers the squared distance from the wanted
    shares most. Of several orders the one with the fewest classes missing from train or test is taken, of those the
    nearest. Train and test are never empty.

    Args:
        paths: relative paths, [N].
        groups: group of each, [N].
        weights: how much of each class each has [N, K]; sums of whole numbers are exact in any order.
        seed: another seed gives other orders.
        test_share: share of the data that is tested, 0…1.
        validation_share: share of the rest that chooses hyper-parameters, 0…1.

    Raises:
        UserError: there are fewer than two groups.
    """
    names, group_N = _named_by_first_member(paths, groups)
    if len(names) < 2:
        raise UserError(f"all {len(paths)} samples lie in one group: a split by groups needs two or more")
    shares_GK = _shares(weights, group_N, len(names))
    targets_P = np.array([1 - test_share, 0, test_share]) + (1 - test_share) * validation_share * np.array([-1, 1, 0])
    num_orders = _NUM_ORDERS if len(names) <= _MANY_GROUPS else 1
    dealt = [_deal(names, shares_GK, targets_P, hash64("groups", seed, number)) for number in range(num_orders)]
    best_G = min(dealt, key=lambda parts_G: _faults(parts_G, shares_GK, targets_P))
    return _split(paths, best_G[group_N], "grouped")


def _named_by_first_member(paths: Sequence[str], groups: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Return the least path of each group, sorted, and the place in it of each sample's group [N]."""
    first: dict[str, str] = {}
    for path, group in zip(paths, groups, strict=True):
        first[group] = min(path, first.get(group, path))
    names = sorted(first.values())
    place = {name: number for number, name in enumerate(names)}
    return names, np.array([place[first[group]] for group in groups], np.int64)


def _shares(weights: NDArray[np.integer], group_N: NDArray[np.int64], num_groups: int) -> NDArray[np.float64]:
    """Return each group's share of the samples and of every class that occurs [G, 1 + K]."""
    columns = [np.ones(len(group_N)), *weights.T]
    totals = [np.bincount(group_N, column, num_groups) for column in columns]
    return np.stack([total / total.sum() for total in totals if total.sum() > 0], axis=1)


def _deal(
    names: Sequence[str], shares_GK: NDArray[np.float64], targets_P: NDArray[np.float64], key: int
) -> NDArray[np.int64]:
    """Return the part of each group [G], dealt out in the order of a key."""
    order = np.argsort(np.array([hash64(key, name) for name in names], np.uint64), kind="stable")
    parts_G = np.full(len(names), TRAIN)
    wanting_PK = np.repeat(targets_P[:, None], shares_GK.shape[1], axis=1)
    for group in order:
        part = int(np.argmax(wanting_PK @ shares_GK[group]))
        parts_G[group] = part
        wanting_PK[part] -= shares_GK[group]
    sizes_G = shares_GK[:, 0]
    for part in (TRAIN, TEST):
        if not (parts_G == part).any():
            spare = parts_G == VALIDATION if (parts_G == VALIDATION).any() else parts_G >= 0
            parts_G[np.flatnonzero(spare)[np.argmin(sizes_G[spare])]] = part
    return parts_G


def _faults(
    parts_G: NDArray[np.int64], shares_GK: NDArray[np.float64], targets_P: NDArray[np.float64]
) -> tuple[int, int, float]:
    """Return (classes without train, classes without test, squared distance from the wanted shares)."""
    filled_PK = np.stack([shares_GK[parts_G == part].sum(axis=0) for part in range(len(PARTS))])
    without_train, without_test = (int((filled_PK[part] == 0).sum()) for part in (TRAIN, TEST))
    return without_train, without_test, float(((filled_PK - targets_P[:, None]) ** 2).sum())


def _given_split(data: LabelledData, seed: int, validation_share: float) -> Split:
    if data.given_parts is None:
        raise UserError(f"{data.name} comes without a split: add train.txt, val.txt, test.txt, or let it be computed")
    parts = data.given_parts.copy()
    if not (parts == TEST).any():
        parts[parts == VALIDATION] = TEST
    if not (parts == VALIDATION).any():
        parts[_validation_drawn(data, parts, seed, validation_share)] = VALIDATION
    return _split(data.ids, parts, "given")


def _validation_drawn(data: LabelledData, parts: NDArray[np.int64], seed: int, share: float) -> list[int]:
    """Return a share of the training samples: of each class, or whole groups; one sample or group always stays."""
    train = np.flatnonzero(parts == TRAIN)
    strata = np.zeros(len(parts), np.int64) if data.groups or data.labels is None else data.labels
    units = np.array(data.groups or data.ids, dtype=object)
    drawn: list[int] = []
    for stratum in np.unique(strata[train]):
        members = train[strata[train] == stratum]
        order = sorted(set(units[members]), key=lambda unit: hash64("validation", seed, unit))
        chosen = set(order[: min(max(1, round(share * len(order))), len(order) - 1)])
        drawn += [int(place) for place in members if units[place] in chosen]
    return drawn


def _check_classes(data: LabelledData, split: Split) -> None:
    """Raise if a class is tested that is not trained, or none is; of whole images, also if one is not tested."""
    tested, trained = (_amounts(data, split.parts == part) > 0 for part in (TEST, TRAIN))
    told = f"in the {split.method} split of {data.name}"
    if data.kind != "classes" and not tested.any():
        raise UserError(f"no test image has a pixel of a class {told}: {_REMEDIES[split.method]}")
    for number, label in enumerate(data.classes):
        if tested[number] and not trained[number]:
            raise UserError(f"class {label!r} is in test, but not in train {told}: {_REMEDIES[split.method]}")
        if data.kind == "classes" and not tested[number]:
            raise UserError(f"class {label!r} has no test image {told}: {_REMEDIES[split.method]}")


def _amounts(data: LabelledData, chosen: NDArray[np.bool_]) -> NDArray[np.integer]:
    """Return how much of each class the chosen samples have [K]."""
    if data.labels is not None:
        return np.bincount(data.labels[chosen], minlength=len(data.classes))
    amounts: NDArray[np.int64] = _weights(data)[chosen].sum(axis=0, dtype=np.int64)
    return amounts


_REMEDIES: dict[Method, str] = {
    "given": "mend the split files or folders, or let the split be computed",
    "stratified": "add samples of it, or leave the class out",
    "grouped": "it lies in too few places; take another seed, or split by classes",
}
