"""Faults are told together, and their error travels between processes."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.indexing.faults import MAX_TOLD, Faults, RefusedError


@given(st.lists(st.text(max_size=5), min_size=1, max_size=30))
def test_the_first_are_told_and_all_are_counted(texts):
    faults = Faults()
    for text in texts:
        faults.add(text)
    with pytest.raises(RefusedError) as error:
        faults.refuse("faults in x")
    several = len(texts) > 1
    assert str(error.value) == (f"{len(texts)} faults in x" if several else texts[0])
    assert error.value.faults == (texts[:MAX_TOLD] if several else [])


def test_some_may_stand_for_all():
    faults = Faults()
    faults.add_many(["a", "b"], 7)
    assert (faults.told, faults.count) == (["a", "b"], 7)


def test_no_fault_raises_nothing():
    faults = Faults()
    faults.refuse("faults")
    assert faults.count == 0


def test_a_refusal_can_be_pickled():
    error = pickle.loads(pickle.dumps(RefusedError("2 faults", ["a", "b"])))
    assert (type(error), str(error), error.faults) == (RefusedError, "2 faults", ["a", "b"])
