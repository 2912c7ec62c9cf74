"""Keyed randomness: the same key, the same draw; permutations are permutations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.keyed import generator, hash64, mix64, permute


def test_values_never_change():
    # Orders, masks and crops of every run hang on these: a change here breaks the resume of all old runs.
    assert hash64("order", 0, 1, "abc") == 14619106906850267515
    assert generator(0, 1, "sample", "crop").integers(0, 2**62) == 2732032004158051850
    assert mix64(np.arange(2, dtype=np.uint64), 7).tolist() == [7691468747802983308, 4539542768916953411]
    assert permute(np.arange(10), 10, 3).tolist() == [6, 4, 0, 2, 5, 9, 7, 3, 1, 8]


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(n, key):
    assert sorted(permute(np.arange(n), n, key).tolist()) == list(range(n))


@given(st.integers(1, 10**12), st.integers(0, 2**64 - 1), st.data())
def test_permute_needs_no_neighbours(n, key, data):
    indices = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20)))
    together = permute(indices, n, key)
    assert ((together >= 0) & (together < n)).all()
    assert together.tolist() == [int(permute(np.array([index]), n, key)[0]) for index in indices]


def test_permute_looks_random():
    n = 10_000
    places = permute(np.arange(n), n, key=1)
    # For a uniform permutation the rank correlation has standard deviation 1/sqrt(n) = 0.01.
    assert abs(np.corrcoef(np.arange(n), places)[0, 1]) < 0.05
    assert np.mean(places == permute(np.arange(n), n, key=2)) < 0.01


def test_permute_refuses_what_is_outside():
    with pytest.raises(ValueError, match=r"outside \[0, 5\)"):
        permute(np.array([5]), 5, 0)


@given(st.lists(st.one_of(st.text(), st.binary(), st.integers(-(2**63), 2**64)), max_size=4))
def test_hash64_tells_parts_apart(parts):
    assert hash64(*parts) == hash64(*parts)
    assert hash64(*parts) != hash64(*parts, 0)
    assert hash64("a", "bc", *parts) != hash64("ab", "c", *parts)
    assert hash64(1, *parts) != hash64("1", *parts)


def test_mix64_is_injective_on_a_range():
    assert len(set(mix64(np.arange(100_000, dtype=np.uint64), 5).tolist())) == 100_000
