import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from eval import knn
from eval.knn import TEMPERATURE, knn_predict

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
    monkeypatch.setattr(knn, "_MAX_DISTANCES", 200 * 7)
    for name, predictions in knn_predict(bank, labels, queries, VOTES).items():
        np.testing.assert_array_equal(predictions, whole[name])
