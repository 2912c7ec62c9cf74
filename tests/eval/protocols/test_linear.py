import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from eval.protocols import linear
from eval.protocols.linear import C_SWEEP, LINEAR, linear_predict


def _blobs(seed, num, num_classes=5, width=24, noise=2.2):
    """Return correlated Gaussian classes: features [num, width] and labels."""
    draw = np.random.default_rng(seed)
    fixed = np.random.default_rng(99)
    centres, mixing = fixed.normal(size=(num_classes, width)), fixed.normal(size=(width, width))
    labels = draw.integers(0, num_classes, num)
    features = (centres[labels] + noise * draw.normal(size=(num, width))) @ mixing + 5
    return features.astype(np.float32), labels


@pytest.mark.parametrize("noise", [0.8, 2.2])
def test_accuracy_within_a_fifth_of_a_point_of_scikit_learn(noise):
    train, validation, (queries, truth) = (
        _blobs(0, 800, noise=noise),
        _blobs(1, 300, noise=noise),
        _blobs(2, 2000, noise=noise),
    )
    fit = linear_predict(train, validation, queries)
    features, labels = (np.concatenate([a, b]) for a, b in zip(train, validation, strict=True))
    scaler = StandardScaler().fit(features)
    reference = LogisticRegression(C=fit.c, max_iter=5000, tol=1e-6).fit(scaler.transform(features), labels)
    accuracy = reference.score(scaler.transform(queries), truth)
    assert abs((fit.predictions == truth).mean() - accuracy) <= 0.002


def test_accuracy_within_a_fifth_of_a_point_of_scikit_learn_on_real_features(eurosat_task):
    outcome = LINEAR.run(eurosat_task)["linear"]
    features, labels = eurosat_task.bank
    scaler = StandardScaler().fit(features.astype(np.float64))
    reference = LogisticRegression(C=outcome.detail["c"], max_iter=10_000, tol=1e-5)
    # One thread: on small products the threads of BLAS wait for each other more than they work.
    with threadpool_limits(1):
        reference.fit(scaler.transform(features.astype(np.float64)), labels)
    right = reference.predict(scaler.transform(eurosat_task.test[0].astype(np.float64))) == eurosat_task.test[1]
    assert abs(outcome.evidence.units.mean() - right.mean()) <= 0.002
    np.testing.assert_array_equal(outcome.evidence.units, outcome.predictions == eurosat_task.test[1])
    assert outcome.detail["validation"] == pytest.approx(right.mean(), abs=0.1)


@pytest.mark.parametrize("c", [1e-4, 1e-2, 1.0])
def test_fewer_images_than_features_have_the_same_minimum(c, monkeypatch: pytest.MonkeyPatch):
    train, validation, (queries, _) = _blobs(8, 40, width=90), _blobs(9, 30, width=90), _blobs(10, 3000, width=90)
    monkeypatch.setattr(linear, "C_SWEEP", (c,))
    fit = linear_predict(train, validation, queries)
    features, labels = (np.concatenate([a, b]) for a, b in zip(train, validation, strict=True))
    scaler = StandardScaler().fit(features)
    reference = LogisticRegression(C=c, max_iter=20_000, tol=1e-7).fit(scaler.transform(features), labels)
    assert (fit.predictions == reference.predict(scaler.transform(queries))).mean() > 0.995


def test_sweep_chooses_as_scikit_learn_does():
    train, validation, (queries, _) = _blobs(3, 300, noise=3), _blobs(4, 300, noise=3), _blobs(5, 10)
    fit = linear_predict(train, validation, queries)
    scaler = StandardScaler().fit(train[0])
    accuracies = [
        LogisticRegression(C=c, max_iter=5000)
        .fit(scaler.transform(train[0]), train[1])
        .score(scaler.transform(validation[0]), validation[1])
        for c in C_SWEEP
    ]
    assert fit.c in C_SWEEP
    assert fit.validation_accuracy == pytest.approx(max(accuracies), abs=0.007)


def test_constant_features_and_no_validation_part_are_fine():
    features, labels = _blobs(7, 200, noise=0.3)
    features[:, 3] = 7
    fit = linear_predict((features, labels), (features[:0], labels[:0]), features)
    assert (fit.c, fit.validation_accuracy) == (1.0, None)
    assert (fit.predictions == labels).mean() > 0.95


def test_a_flat_start_of_the_sweep_does_not_end_it():
    """Class means that nearly coincide: small C gives one answer over several decades, only a large one separates."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(2), 400)
    along = rng.normal(0, 30, 800)
    x = np.stack([along + 0.5 * labels, along - 0.5 * labels], axis=1) + rng.normal(0, 0.1, (800, 2))
    x = x.astype(np.float32)
    part = rng.permutation(800)
    train, validation, test = part[:500], part[500:650], part[650:]
    fit = linear_predict((x[train], labels[train]), (x[validation], labels[validation]), x[test])
    assert fit.c >= 1
    assert (fit.predictions == labels[test]).mean() > 0.95
