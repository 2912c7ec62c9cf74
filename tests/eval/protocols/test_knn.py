from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from eval.data.split import TEST, TRAIN, VALIDATION
from eval.protocols import knn
from eval.protocols.knn import KNN, TEMPERATURE, knn_predict, nearest
from eval.protocols.task import make_task

VOTES = {"5": (5, False), "20": (20, False), "20w": (20, True)}


def _reference(bank, labels, queries, k, weighted):
    weights = (lambda distances: np.exp((1 - distances) / TEMPERATURE)) if weighted else "uniform"
    model = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights)
    return model.fit(bank, labels).predict(queries)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 12), st.sampled_from([2, 7, 33]))
def test_equals_scikit_learn_prediction_for_prediction(seed, num_classes, width):
    draw = np.random.default_rng(seed)
    bank, queries = (draw.normal(0.3, 1, (n, width)).astype(np.float32) for n in (150, 70))
    labels = draw.integers(0, num_classes, 150)
    predicted = knn_predict(bank, labels, queries, VOTES)
    for name, (k, weighted) in VOTES.items():
        np.testing.assert_array_equal(predicted[name], _reference(bank, labels, queries, k, weighted))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 9))
def test_equals_scikit_learn_where_many_of_the_bank_are_equally_far(seed, width, num_values):
    """Features of few whole numbers: the twentieth neighbour is one of many alike, of different classes."""
    draw = np.random.default_rng(seed)
    bank, queries = (draw.integers(0, num_values, (n, width)).astype(np.float32) for n in (300, 60))
    labels = draw.integers(0, 6, 300)
    predicted = knn_predict(bank, labels, queries, {"5": (5, False), "20": (20, False)})
    for k in (5, 20):
        np.testing.assert_array_equal(predicted[str(k)], _reference(bank, labels, queries, k, False))


def test_equals_scikit_learn_on_real_features_some_of_them_twice(eurosat_task):
    """A third of the bank is in it a second time, under another class."""
    bank, labels = eurosat_task.bank
    bank, labels = np.concatenate([bank, bank[:166]]), np.concatenate([labels, (labels[:166] + 1) % 10])
    predicted = knn_predict(bank, labels, eurosat_task.test[0], VOTES)
    for name, (k, weighted) in VOTES.items():
        np.testing.assert_array_equal(predicted[name], _reference(bank, labels, eurosat_task.test[0], k, weighted))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 45), st.booleans())
def test_nearest_are_sorted_and_none_outside_is_nearer(seed, num_bank, k, whole_numbers):
    draw = np.random.default_rng(seed)
    similarities = draw.uniform(-1, 1, (7, num_bank)).astype(np.float32)
    similarities = np.round(2 * similarities) / 2 if whole_numbers else similarities
    for size, near in zip((k, 1), nearest(similarities, k, 1), strict=True):
        assert near.shape == (7, min(size, num_bank))
        chosen = np.take_along_axis(similarities, near, axis=1)
        np.testing.assert_array_equal(chosen, np.sort(similarities, axis=1)[:, ::-1][:, :size])
        assert all(len(set(row)) == len(row) for row in near.tolist())


def test_equal_votes_go_to_the_lower_class():
    bank = np.array([[1, 0], [1, 0.01], [0, 1], [0.01, 1]], np.float32)
    predicted = knn_predict(bank, np.array([2, 1, 0, 0]), np.array([[1, 0]], np.float32), {"2": (2, False)})
    assert predicted["2"].tolist() == [1]


def test_k_above_the_bank_takes_all_of_it():
    bank = np.eye(3, dtype=np.float32)
    assert knn_predict(bank, np.array([0, 1, 1]), bank[:1], {"20": (20, False)})["20"].tolist() == [1]


def test_chunks_do_not_change_predictions(monkeypatch: pytest.MonkeyPatch):
    draw = np.random.default_rng(3)
    bank, queries, labels = draw.normal(size=(200, 16)), draw.normal(size=(90, 16)), draw.integers(0, 5, 200)
    whole = knn_predict(bank, labels, queries, VOTES)
    monkeypatch.setattr(knn, "_MAX_SIMILARITIES", 200 * 7)
    for name, predictions in knn_predict(bank, labels, queries, VOTES).items():
        np.testing.assert_array_equal(predictions, whole[name])


def test_no_queries_have_no_predictions():
    bank = np.eye(3, dtype=np.float32)
    assert knn_predict(bank, np.arange(3), bank[:0], VOTES)["20w"].shape == (0,)


@pytest.mark.parametrize("standardise", [False, True])
def test_protocol_takes_train_and_validation_as_the_bank(classes_task, standardise):
    task = replace(classes_task(num=400, noise=2.5), standardise=standardise)
    outcomes = KNN.run(task)
    assert list(outcomes) == list(KNN.titles)

    def expected(bank, labels, queries):
        scaler = StandardScaler(with_mean=standardise, with_std=standardise).fit(bank)
        return _reference(scaler.transform(bank), labels, scaler.transform(queries), 20, False)

    outcome = outcomes["knn_20"]
    predictions = expected(*task.bank, task.test[0])
    assert (outcome.predictions != predictions).sum() <= 1, "rounding of the scaled features may part a tie"
    np.testing.assert_array_equal(outcome.evidence.units, outcome.predictions == task.test[1])
    on_validation = accuracy_score(task.validation[1], expected(*task.train, task.validation[0]))
    assert outcome.detail["validation"] == pytest.approx(on_validation, abs=1.1 / len(task.validation[1]))


def test_no_validation_part_gives_no_validation_figure():
    features = np.eye(4, dtype=np.float32)[[0, 1, 0, 1]]
    task = make_task(features, np.array([0, 1, 0, 1]), np.array([TRAIN, TRAIN, TEST, TEST]), standardise=False)
    outcomes = KNN.run(task)
    assert outcomes["knn_5"].detail["validation"] is None
    assert VALIDATION in task.places
