import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eval.data.kinds import LabelledData, Sample
from eval.data.split import TEST, TRAIN, VALIDATION, grouped_split, split_of, stratified_split
from shards.errors import UserError


def _images(counts):
    paths = [f"class_{label}/{number}.png" for label, count in enumerate(counts) for number in range(count)]
    return paths, np.repeat(np.arange(len(counts)), counts)


def _split(paths, labels, seed=0):
    return stratified_split(paths, labels, seed=seed, test_share=0.2, validation_share=0.2)


@given(st.lists(st.integers(2, 30), min_size=2, max_size=6), st.integers(0, 100), st.randoms())
def test_independent_of_the_listing_order(counts, seed, random):
    paths, labels = _images(counts)
    order = list(range(len(paths)))
    random.shuffle(order)
    straight = _split(paths, labels, seed)
    shuffled = _split([paths[i] for i in order], labels[order], seed)
    assert shuffled.table == straight.table
    np.testing.assert_array_equal(shuffled.parts, straight.parts[order])


@given(st.lists(st.integers(2, 60), min_size=2, max_size=6), st.integers(0, 100))
def test_every_class_is_trained_and_tested_in_proportion(counts, seed):
    paths, labels = _images(counts)
    parts = _split(paths, labels, seed).parts
    for label, count in enumerate(counts):
        mine = parts[labels == label]
        assert (mine == TRAIN).any()
        assert abs((mine == TEST).sum() - 0.2 * count) <= 1
        assert abs((mine == VALIDATION).sum() - 0.16 * count) <= 1


def test_seed_decides_and_the_digest_is_the_file_s():
    paths, labels = _images([50, 50])
    first = _split(paths, labels)
    assert first.digest == hashlib.sha256(first.table).hexdigest()
    assert first.digest != _split(paths, labels, seed=1).digest
    assert first.table.decode().splitlines()[0].split("\t")[1] == min(paths)


@st.composite
def _grouped(draw):
    num_groups = draw(st.integers(2, 12))
    groups = draw(st.lists(st.integers(0, num_groups - 1), min_size=num_groups, max_size=60))
    groups = [*range(num_groups), *groups]
    weights = draw(hnp.arrays(np.int64, (len(groups), 3), elements=st.integers(0, 1000)))
    return [f"{number}.png" for number in range(len(groups))], [f"g{group}" for group in groups], weights


def _by_groups(paths, groups, weights, seed=0, test_share=0.2):
    return grouped_split(paths, groups, weights, seed=seed, test_share=test_share, validation_share=0.2)


@given(_grouped(), st.integers(0, 9), st.sampled_from([0.05, 0.2, 0.5, 0.9]), st.randoms())
def test_groups_are_never_torn_in_any_listing_order(samples, seed, test_share, random):
    paths, groups, weights = samples
    split = _by_groups(paths, groups, weights, seed, test_share)
    for group in set(groups):
        assert len({part for part, its in zip(split.parts, groups, strict=True) if its == group}) == 1
    assert {TRAIN, TEST} <= set(split.parts.tolist()) <= {TRAIN, VALIDATION, TEST}
    order = list(range(len(paths)))
    random.shuffle(order)
    renamed = {group: f"h{number}" for number, group in enumerate(random.sample(sorted(set(groups)), len(set(groups))))}
    again = _by_groups([paths[i] for i in order], [renamed[groups[i]] for i in order], weights[order], seed, test_share)
    assert again.table == split.table


def test_parts_come_near_their_shares_of_every_class():
    draw = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), draw.integers(1, 20, 60))
    weights = np.eye(5, dtype=np.int64)[draw.integers(0, 5, 60)][groups] * 900 + draw.integers(0, 100, (len(groups), 5))
    parts = _by_groups([f"{n}" for n in range(len(groups))], groups.astype(str), weights).parts
    for part, share in ((TRAIN, 0.64), (VALIDATION, 0.16), (TEST, 0.2)):
        shares = weights[parts == part].sum(axis=0) / weights.sum(axis=0)
        assert abs(shares - share).max() < 0.08
    assert (_by_groups([f"{n}" for n in range(len(groups))], groups.astype(str), weights, 1).parts != parts).any()


def test_one_group_cannot_be_split():
    with pytest.raises(UserError, match="all 3 samples lie in one group"):
        _by_groups(["a", "b", "c"], ["g", "g", "g"], np.ones((3, 1), np.int64))


def _data(**changes):
    labels = np.repeat([0, 1], 10)
    fields = {
        "name": "d", "url": "u", "kind": "classes", "classes": ("sea", "wood"), "bands": ("red",), "dtype": "uint8",
        "ids": tuple(f"{number:02d}" for number in range(20)), "digest": "0" * 64, "labels": labels,
        "read": lambda _: Sample(images=()),
    }  # fmt: skip
    return LabelledData(**(fields | changes))


def _split_of(data, **changes):
    return split_of(data, **({"seed": 0, "test_share": 0.2, "validation_share": 0.2} | changes))


def test_what_came_with_the_data_is_taken_first():
    groups = tuple(str(number // 2) for number in range(20))
    given_parts = np.tile([TRAIN, TRAIN, TRAIN, VALIDATION, TEST], 4)
    assert _split_of(_data()).method == "stratified"
    assert _split_of(_data(groups=groups)).method == "grouped"
    split = _split_of(_data(groups=groups, given_parts=given_parts))
    assert split.method == "given"
    np.testing.assert_array_equal(split.parts, given_parts)
    assert split.table.startswith(b"train\t00\ntrain\t01\n")
    assert _split_of(_data(groups=groups, given_parts=given_parts), method="stratified").method == "stratified"
    with pytest.raises(UserError, match="no groups"):
        _split_of(_data(), method="grouped")
    with pytest.raises(UserError, match="comes without a split"):
        _split_of(_data(), method="given")


def test_a_given_split_without_validation_gets_one_out_of_train():
    given_parts = np.array([TRAIN] * 5 + [TEST] * 5 + [TRAIN] * 5 + [TEST] * 5)
    parts = _split_of(_data(given_parts=given_parts)).parts
    np.testing.assert_array_equal(parts == TEST, given_parts == TEST)
    assert (parts[:5] == VALIDATION).sum() == (parts[10:15] == VALIDATION).sum() == 1
    groups = tuple("abcde"[number % 5] for number in range(20))
    parts = _split_of(_data(given_parts=given_parts, groups=groups)).parts
    drawn = {groups[place] for place in np.flatnonzero(parts == VALIDATION)}
    assert len(drawn) == 1
    assert not drawn & {groups[place] for place in np.flatnonzero(parts == TRAIN)}


def test_a_given_split_without_test_tests_its_validation():
    given_parts = np.tile([TRAIN, TRAIN, TRAIN, VALIDATION], 5)
    parts = _split_of(_data(given_parts=given_parts)).parts
    np.testing.assert_array_equal(parts == TEST, given_parts == VALIDATION)
    assert (parts == VALIDATION).any()


def test_a_class_that_is_tested_and_not_trained_is_named():
    with pytest.raises(UserError, match="class 'wood' is in test, but not in train in the given split of d"):
        _split_of(_data(given_parts=np.array([TRAIN] * 8 + [TEST] * 12)))
    with pytest.raises(UserError, match="class 'wood' has no test image"):
        _split_of(_data(given_parts=np.array([TEST] * 2 + [TRAIN] * 18)))
    with pytest.raises(UserError, match="too few places"):
        _split_of(_data(groups=("a",) * 10 + ("b",) * 10))


def test_test_masks_without_a_class_are_refused():
    pixels = np.array([[9, 4]] * 14 + [[0, 0]] * 6)
    data = _data(kind="masks", labels=None, mask_pixels=pixels, given_parts=np.array([TRAIN] * 14 + [TEST] * 6))
    with pytest.raises(UserError, match="no test image has a pixel of a class in the given split of d: mend the split"):
        _split_of(data)


def test_places_are_told_where_the_split_keeps_them_whole():
    groups = tuple("pq" * 3 + "r" * 4 + "st" * 3 + "u" * 4)
    split = _split_of(_data(groups=groups), test_share=0.4)
    assert split.places == tuple(f"{groups.index(group):02d}" for group in groups)
    assert {line.count("\t") for line in split.table.decode().splitlines()} == {2}
    assert _split_of(_data(groups=groups), method="stratified").places is None
    assert _split_of(_data(groups=tuple(map(str, range(20)))), method="grouped").places is None
    assert _split_of(_data()).places is None
    given_parts = np.array([TRAIN] * 6 + [TEST] * 4 + [VALIDATION] * 4 + [TRAIN] * 2 + [TEST] * 4)
    groups = tuple("p" * 6 + "r" * 4 + "p" * 4 + "p" * 2 + "u" * 4)
    assert _split_of(_data(groups=groups, given_parts=given_parts)).places is not None, "others may share a place"


def test_masks_are_split_by_their_pixels():
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 5000, (200, 2)) * (draw.random((200, 2)) < [1, 0.2])
    ids = tuple(f"{number:03d}" for number in range(200))
    data = _data(kind="masks", labels=None, mask_pixels=pixels, ids=ids)
    split = _split_of(data)
    assert split.method == "stratified"
    shares = pixels[split.parts == TEST].sum(axis=0) / pixels.sum(axis=0)
    assert abs(shares - 0.2).max() < 0.03
    assert abs((split.parts == TEST).mean() - 0.2) < 0.03
