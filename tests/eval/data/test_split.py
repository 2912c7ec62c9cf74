import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eval.split import TEST, TRAIN, VALIDATION, stratified_split


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
