from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from eval.data.split import TRAIN
from eval.protocols.few_shot import FEW_SHOT, NUM_DRAWS, draw_support, fitting_sizes
from eval.protocols.task import make_task
from shards.keyed import hash64


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 9))
def test_draws_are_n_of_each_class_within_larger_ones_and_in_any_order(seed, num_classes, size):
    draw = np.random.default_rng(seed)
    labels = np.concatenate([np.repeat(np.arange(num_classes), 9), draw.integers(0, num_classes, 20)])
    places = draw.choice(10**6, len(labels), replace=False)
    chosen = draw_support(labels, places, size, seed)
    assert np.bincount(labels[chosen]).tolist() == [size] * num_classes
    assert set(draw_support(labels, places, max(1, size - 1), seed)) <= set(chosen)
    order = draw.permutation(len(labels))
    again = order[draw_support(labels[order], places[order], size, seed)]
    assert set(again) == set(chosen)


def test_another_key_draws_others():
    labels, places = np.repeat(np.arange(4), 50), np.arange(200)
    draws = {tuple(draw_support(labels, places, 5, key)) for key in range(20)}
    assert len(draws) == 20


def test_rows_are_the_draws_of_scikit_learn_s_classifiers(classes_task):
    task = classes_task(num=500)
    outcomes = FEW_SHOT.run(task)
    assert set(outcomes) == set(FEW_SHOT.titles)
    for size in (1, 10):
        nearest, linear = (outcomes[f"few_shot_{kind}_{size}"] for kind in ("knn", "linear"))
        for number in range(NUM_DRAWS):
            chosen = draw_support(task.train[1], task.places[TRAIN], size, hash64("few_shot", task.seed, number))
            features, labels = task.train[0][chosen], task.train[1][chosen]
            knn = KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(features, labels)
            np.testing.assert_array_equal(nearest.evidence.units[number], knn.predict(task.test[0]) == task.test[1])
            scaler = StandardScaler().fit(features)
            probe = LogisticRegression(C=1, tol=1e-6, max_iter=5000).fit(scaler.transform(features), labels)
            right = probe.predict(scaler.transform(task.test[0])) == task.test[1]
            assert (linear.evidence.units[number] != right).mean() < 0.01
        for outcome in (nearest, linear):
            assert outcome.evidence.units.shape == (NUM_DRAWS, len(task.test[1]))
            assert outcome.detail["draws"] == outcome.evidence.units.mean(axis=1).tolist()
            assert outcome.detail["validation"] == pytest.approx(outcome.evidence.units.mean(), abs=0.1)


def test_more_labels_are_better(classes_task):
    outcomes = FEW_SHOT.run(classes_task(num=2000, noise=1.5))
    for kind in ("knn", "linear"):
        values = [outcomes[f"few_shot_{kind}_{size}"].evidence.units.mean() for size in (1, 5, 20)]
        assert values[0] < values[1] < values[2]


def test_sizes_above_the_smallest_class_are_left_out(classes_task):
    task = classes_task(num=400)
    features, labels = task.train
    kept = np.concatenate([np.flatnonzero(labels != 2), np.flatnonzero(labels == 2)[:7]])
    parts = np.full(len(kept), TRAIN)
    small = replace(make_task(features[kept], labels[kept], parts, standardise=False), test=task.test)
    assert fitting_sizes(small) == [1, 5]
    assert list(FEW_SHOT.run(small)) == [f"few_shot_{kind}_{size}" for kind in ("knn", "linear") for size in (1, 5)]
    none = replace(small, test=(task.test[0], task.test[1] + 5))
    assert fitting_sizes(none) == []


def test_standardising_takes_the_whole_train_part(classes_task):
    """Features in units a thousand times apart: without scaling one of them decides alone."""
    task = classes_task(num=600, noise=0.8)
    units = np.ones(task.train[0].shape[1], np.float32)
    units[0] = 1000
    scaled = {
        name: (getattr(task, name)[0] * units, getattr(task, name)[1]) for name in ("train", "validation", "test")
    }
    raw, standardised = (
        FEW_SHOT.run(replace(task, **scaled, standardise=flag))["few_shot_knn_5"].evidence.units.mean()
        for flag in (False, True)
    )
    assert standardised > raw + 0.2
