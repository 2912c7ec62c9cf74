"""What must come out of any protocol of scene classification: all for a leaked label, chance for shuffled ones."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from eval.protocols import PROTOCOLS, TITLES
from eval.protocols.few_shot import FEW_SHOT
from eval.protocols.knn import KNN
from eval.protocols.linear import LINEAR
from eval.protocols.multi_scale import MULTI_SCALE
from eval.protocols.retrieval import RETRIEVAL

ON_FEATURES = (KNN, LINEAR, FEW_SHOT, MULTI_SCALE, RETRIEVAL)
NUM_CLASSES = 5


def _changed(task, change):
    """Apply a change to the (features, labels) of every part, and give the test part's as all variants."""
    parts = {name: change(*getattr(task, name)) for name in ("train", "validation", "test")}
    return replace(task, **parts, variants=dict.fromkeys(MULTI_SCALE.variants, parts["test"][0]))


def _leak(features, labels):
    """Add the label to 24 features, 40 times: a probe that has one image of each class weighs all features alike."""
    leaked = np.tile(1000 * np.eye(NUM_CLASSES, dtype=np.float32)[labels], 40)
    return np.concatenate([features, leaked], axis=1), labels


def _shuffle(features, labels):
    return features, np.random.default_rng(len(labels)).permutation(labels)


def _run(task, protocol):
    return {name: outcome.evidence.units.mean(axis=-1) for name, outcome in protocol.run(task).items()}


@pytest.mark.parametrize("protocol", ON_FEATURES, ids=lambda protocol: protocol.name)
def test_a_leaked_label_gives_everything(classes_task, protocol):
    values = _run(_changed(classes_task(num_classes=NUM_CLASSES), _leak), protocol)
    assert set(values) == set(protocol.titles)
    for name, value in values.items():
        assert (value > 0.995).all(), name


@pytest.mark.parametrize("protocol", ON_FEATURES, ids=lambda protocol: protocol.name)
def test_shuffled_labels_give_chance(classes_task, protocol):
    """Within the limits that one draw in 100,000 leaves; images of equal classes also share their luck in retrieval."""
    task = _changed(classes_task(num=2000, num_classes=NUM_CLASSES, noise=0.5), _shuffle)
    num_test = len(task.test[1])
    low, high = binom.ppf([1e-5, 1 - 1e-5], num_test, 1 / NUM_CLASSES) / num_test
    for name, value in _run(task, protocol).items():
        assert ((low < value) & (value < high)).all(), (name, value, low, high)


@pytest.mark.parametrize("protocol", ON_FEATURES, ids=lambda protocol: protocol.name)
def test_the_same_task_gives_the_same_figures(classes_task, protocol):
    task = _changed(classes_task(), lambda features, labels: (features, labels))
    first, second = protocol.run(task), protocol.run(task)
    for name, outcome in first.items():
        np.testing.assert_array_equal(outcome.evidence.units, second[name].evidence.units)
        assert outcome.detail == second[name].detail
        assert outcome.metric == outcome.evidence.metric
        assert 0 <= outcome.detail["validation"] <= 1


def test_rows_have_names_of_their_own():
    assert len(TITLES) == sum(len(protocol.titles) for protocol in PROTOCOLS)
    assert len(set(TITLES.values())) == len(TITLES)
