import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from eval.data.split import TEST, TRAIN, VALIDATION
from eval.protocols.task import accuracy, make_task, standardised


def _parts():
    return np.array([TEST, TRAIN, VALIDATION, TRAIN, TEST])


def test_parts_keep_the_order_and_their_places():
    features, labels = np.arange(10, dtype=np.float32).reshape(5, 2), np.array([0, 1, 2, 3, 4])
    task = make_task(features, labels, _parts(), standardise=False, places=np.array([10, 20, 30, 40, 50]))
    assert (task.train[1].tolist(), task.validation[1].tolist(), task.test[1].tolist()) == ([1, 3], [2], [0, 4])
    assert task.bank[1].tolist() == [1, 3, 2]
    np.testing.assert_array_equal(task.bank[0], features[[1, 3, 2]])
    assert task.bank_places.tolist() == [20, 40, 30]
    assert task.places[TEST].tolist() == [10, 50]


def test_variants_are_cut_to_the_test_part_or_are_it_already():
    features, labels = np.arange(5, dtype=np.float32)[:, None], np.zeros(5, np.int64)
    variants = {"all": features + 1, "test": features[:2] + 7}
    task = make_task(features, labels, _parts(), standardise=False, variants=variants)
    assert task.variants["all"].ravel().tolist() == [1, 5]
    assert task.variants["test"].ravel().tolist() == [7, 8]
    with pytest.raises(AssertionError):
        make_task(features, labels, _parts(), standardise=False, variants={"wrong": features[:3]})


def test_standardised_is_scikit_learn_s_and_leaves_constants():
    draw = np.random.default_rng(0)
    bank, other = (draw.normal(3, 5, (n, 6)).astype(np.float32) for n in (50, 9))
    bank[:, 2] = 4
    scaler = StandardScaler().fit(bank)
    for scaled, values in zip(standardised(bank, other), (bank, other), strict=True):
        assert scaled.dtype == np.float32
        np.testing.assert_allclose(scaled, scaler.transform(values), atol=2e-5)


def test_accuracy_of_nothing_is_none():
    assert accuracy(np.array([1, 2, 3, 3]), np.array([1, 2, 0, 3])) == 0.75
    assert accuracy(np.zeros(0, np.int64), np.zeros(0, np.int64)) is None
