"""Which dataset comes when: exactly by the weights, each dataset in its own order."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shards.streaming.mix import Mixture, proportional_weights, whole_weights

COUNT = 200


@st.composite
def mixtures(draw, max_datasets=6):
    weights = draw(st.lists(st.integers(0, 40), min_size=1, max_size=max_datasets).filter(any))
    taken = [draw(st.integers(0, 10**12)) for _ in weights]
    return Mixture(weights=tuple(weights), start=sum(taken), taken=tuple(taken))


@given(mixtures())
def test_each_dataset_is_read_in_its_own_order_without_gaps(mixture):
    datasets, positions = mixture.split(np.arange(mixture.start, mixture.start + COUNT))
    for dataset, taken in enumerate(mixture.taken):
        mine = positions[datasets == dataset]
        assert mine.tolist() == list(range(taken, taken + len(mine)))
    assert set(datasets.tolist()) <= {dataset for dataset, weight in enumerate(mixture.weights) if weight}


@given(mixtures(), st.integers(0, COUNT))
def test_counts_agree_with_split(mixture, count):
    datasets, _ = mixture.split(np.arange(mixture.start, mixture.start + count))
    found = np.bincount(datasets, minlength=len(mixture.weights)) + mixture.taken
    assert mixture.counts(mixture.start + count) == tuple(found.tolist())


@given(mixtures(), st.integers(0, 10**12), st.randoms())
def test_a_number_means_the_same_in_any_company(mixture, first, random):
    numbers = mixture.start + first + np.arange(COUNT)
    some = np.array(random.sample(range(COUNT), 20))
    for alone, together in zip(mixture.split(numbers[some]), mixture.split(numbers), strict=True):
        assert alone.tolist() == together[some].tolist()


@given(mixtures(), st.integers(0, 10**12))
def test_numbers_undo_split(mixture, first):
    numbers = mixture.start + first + np.arange(COUNT)
    datasets, positions = mixture.split(numbers)
    for dataset in set(datasets.tolist()):
        mine = datasets == dataset
        assert mixture.numbers(dataset, positions[mine]).tolist() == numbers[mine].tolist()


def largest_error(mixture, numbers):
    """Return by how many samples any count is off its share."""
    shares = np.array(mixture.weights) / sum(mixture.weights)
    return max(np.abs(np.array(mixture.counts(number)) - shares * number).max() for number in numbers)


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=3))
def test_of_up_to_three_datasets_counts_are_within_one_at_any_time(weights):
    assert largest_error(Mixture(weights=tuple(weights)), range(COUNT)) <= 1


@given(st.lists(st.integers(1, 1000), min_size=4, max_size=9))
def test_of_more_datasets_counts_are_within_half_a_sample_per_split(weights):
    assert largest_error(Mixture(weights=tuple(weights)), range(COUNT)) <= (len(weights) - 1) / 2


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (999_999, 1), (7, 11, 13), (500_001, 300_000, 199_999)])
def test_there_is_no_drift(weights):
    mixture = Mixture(weights=weights)
    assert largest_error(mixture, [10**9 + number for number in range(50)]) <= 1
    whole = 10**9 // sum(weights)
    assert mixture.counts(whole * sum(weights)) == tuple(whole * weight for weight in weights)
    late = np.arange(10**12, 10**12 + sum(weights))
    datasets, positions = mixture.split(late)
    assert all(positions[datasets == each].min() == count for each, count in enumerate(mixture.counts(10**12)))


@given(mixtures(), st.integers(0, COUNT), st.lists(st.integers(0, 9), min_size=6, max_size=8).filter(any))
def test_after_a_change_each_dataset_goes_on_where_it_was(mixture, count, weights):
    changed = mixture.change(mixture.start + count, weights)
    before = mixture.split(np.arange(mixture.start, mixture.start + count))
    after = changed.split(np.arange(changed.start, changed.start + COUNT))
    datasets, positions = (np.concatenate(parts) for parts in zip(before, after, strict=True))
    for dataset, taken in enumerate([*mixture.taken, *[0] * (len(weights) - len(mixture.weights))]):
        mine = positions[datasets == dataset]
        assert mine.tolist() == list(range(taken, taken + len(mine)))


def test_the_mixture_is_the_one_it_always_was():
    # A change here breaks the promise to every run that is under way: then the stream's version must change.
    datasets, _ = Mixture(weights=(5, 2, 0, 3)).split(np.arange(20))
    assert "".join(map(str, datasets.tolist())) == "03010301030301030103"


@pytest.mark.parametrize("weights", [(), (0, 0), (-1, 2), (10**6, 1)])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        Mixture(weights=weights)


@pytest.mark.parametrize(
    ("given_", "whole"),
    [
        ((3, 1), (3, 1)),
        ((0.75, 0.25), (3, 1)),
        ((0.1, 0.2, 0), (1, 2, 0)),
        ((10, 20), (1, 2)),
        ((1e-5, 0.1), (1, 10000)),
    ],
)
def test_weights_become_whole_numbers(given_, whole):
    assert whole_weights(given_) == whole


@pytest.mark.parametrize("weights", [(), (0, 0), (1, -1), (1, float("nan")), (1, float("inf"))])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match="not numbers ≥ 0"):
        whole_weights(weights)


def test_too_fine_weights_are_refused():
    with pytest.raises(ValueError, match=r"\(3333333, 10000000\); round them"):
        whole_weights([0.3333333, 1])


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=8))
def test_default_weights_are_in_proportion_to_the_samples(counts):
    weights = proportional_weights(counts)
    assert min(weights) >= 1
    shares = np.array(weights) / sum(weights)
    assert np.abs(shares - np.array(counts) / sum(counts)).max() < 1e-5
    Mixture(weights=weights)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=5), st.integers(1, 10**6))
def test_default_weights_are_exact_where_numbers_are_small(counts, factor):
    weights = proportional_weights([count * factor for count in counts])
    assume(sum(counts) <= 10**6)
    assert all(a * counts[0] == b * weights[0] for a, b in zip(weights, counts, strict=True))
