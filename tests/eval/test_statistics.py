from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, jaccard_score

from eval.statistics import Evidence, bootstrap_interval, paired_difference, per_class_iou, value


def _draw(*parts):
    return np.random.default_rng(list(parts))


def _accuracy(scores):
    return Evidence(metric="accuracy", units=np.asarray(scores, np.float64))


def _counts(metric, truth, predicted, num_classes):
    """Confusion counts [N, K, K] of truth and prediction [N, P]."""
    flat = truth * num_classes + predicted + np.arange(len(truth))[:, None] * num_classes**2
    units = np.bincount(flat.ravel(), minlength=len(truth) * num_classes**2)
    return Evidence(metric=metric, units=units.reshape(len(truth), num_classes, num_classes))


def test_interval_is_that_of_resampled_images():
    scores = (_draw(0).random(400) < 0.7).astype(float)
    interval = bootstrap_interval(_accuracy(scores), 4000, _draw(1))
    resampled = _draw(2).choice(scores, (4000, 400)).mean(axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    assert interval.value == scores.mean()
    np.testing.assert_allclose([interval.low, interval.high], [low, high], atol=0.006)


def test_interval_of_miou_is_that_of_resampled_images():
    truth = _draw(20).integers(0, 3, (80, 50))
    predicted = np.where(_draw(21).random((80, 50)) < _draw(22).random((80, 1)), truth, 2)
    evidence = _counts("miou", truth, predicted, 3)
    interval = bootstrap_interval(evidence, 4000, _draw(23))
    drawn = _draw(24).integers(0, 80, (2000, 80))
    resampled = [value(Evidence(metric="miou", units=evidence.units[rows])) for rows in drawn]
    np.testing.assert_allclose([interval.low, interval.high], np.percentile(resampled, [2.5, 97.5]), atol=0.008)


@pytest.mark.parametrize("many", [False, True])
def test_interval_covers_the_truth_about_95_times_in_100(many):
    """Right or wrong (few distinct scores), and scores that are all different."""
    covered = 0
    for trial in range(400):
        scores = _draw(3, trial).beta(4, 1, 300) if many else _draw(3, trial).random(300) < 0.8
        interval = bootstrap_interval(_accuracy(scores), 1000, _draw(4, trial))
        covered += interval.low <= 0.8 <= interval.high
    assert 0.92 <= covered / 400 <= 0.98


def test_all_right_is_not_certain():
    """The lower end is near that of the rule of three, 1 - 3/N."""
    for num_images in (30, 100, 1000):
        interval = bootstrap_interval(_accuracy(np.ones(num_images)), 4000, _draw(11))
        assert (interval.value, interval.high) == (1, 1)
        assert 1 - 4.1 / num_images <= interval.low <= 1 - 1.9 / num_images
        nothing = bootstrap_interval(_accuracy(np.zeros(num_images)), 4000, _draw(11))
        assert (nothing.low, nothing.value) == (0, 0)
        assert 1.9 / num_images <= nothing.high <= 4.1 / num_images


@pytest.mark.parametrize("metric", ["miou", "iou", "f1"])
@pytest.mark.parametrize("perfect", [True, False])
def test_all_right_masks_are_not_certain_either(metric, perfect):
    truth = np.tile([0, 0, 1], (40, 5))
    interval = bootstrap_interval(_counts(metric, truth, truth if perfect else 1 - truth, 2), 2000, _draw(12))
    assert interval.value == perfect
    assert interval.high - interval.low > 0.02
    assert interval.low <= interval.value <= interval.high


def _equal_accuracies(trial):
    draw = _draw(5, trial)
    first = draw.random(1000) < 0.8
    redrawn = draw.random(1000) < 0.3
    return _accuracy(first), _accuracy(np.where(redrawn, draw.random(1000) < 0.8, first))


def _equal_segmentations(trial):
    """Images of some difficulty, on which two models err in places of their own."""
    draw = _draw(15, trial)
    truth = np.sort(draw.integers(0, 3, (80, 40)), axis=1)
    difficulty = draw.beta(2, 6, (80, 1))

    def predicted():
        rate = np.clip(difficulty + draw.normal(0, 0.06, (80, 1)), 0, 1)
        return np.where(draw.random((80, 40)) < rate, draw.integers(0, 3, (80, 40)), truth)

    return tuple(_counts("miou", truth, predicted(), 3) for _ in range(2))


def _equal_few_shot(trial):
    """Five draws of the training images, each of which suits one model more than the other."""
    draw = _draw(25, trial)
    ease = draw.beta(4, 2, (1, 300))

    def scores():
        return draw.random((5, 300)) < np.clip(ease + draw.normal(0, 0.03, (5, 1)), 0, 1)

    return _accuracy(scores()), _accuracy(scores())


@pytest.mark.parametrize("pair", [_equal_accuracies, _equal_segmentations, _equal_few_shot])
def test_equal_models_show_no_difference_about_95_times_in_100(pair):
    verdicts = [paired_difference(*pair(trial), 1000, _draw(6, trial)).verdict for trial in range(400)]
    assert 0.92 <= verdicts.count("no difference") / 400 <= 0.98
    assert {"better", "worse"} <= set(verdicts), "it errs to both sides"


def test_few_differing_images_make_the_verdict_cautious():
    for num_images, share_differing in [(300, 0.1), (200, 0.02)]:
        equal = 0
        for trial in range(400):
            draw = _draw(7, trial, num_images)
            first = draw.random(num_images) < 0.8
            second = np.where(draw.random(num_images) < share_differing, draw.random(num_images) < 0.8, first)
            verdict = paired_difference(_accuracy(first), _accuracy(second), 1000, _draw(8, trial)).verdict
            equal += verdict == "no difference"
        assert equal / 400 >= 0.92, (num_images, equal / 400)


def test_a_real_difference_is_found_from_both_sides():
    first = (_draw(7).random(1000) < 0.85).astype(float)
    second = np.where(_draw(8).random(1000) < 0.08, 0, first).astype(float)
    better = paired_difference(_accuracy(first), _accuracy(second), 2000, _draw(9))
    worse = paired_difference(_accuracy(second), _accuracy(first), 2000, _draw(9))
    assert (better.verdict, worse.verdict) == ("better", "worse")
    assert better.low <= better.value <= better.high
    assert better.value == -worse.value


@pytest.mark.parametrize("metric", ["miou", "iou", "f1"])
def test_a_real_difference_between_masks_is_found(metric):
    truth = _draw(30).integers(0, 2, (60, 100))
    first = np.where(_draw(31).random((60, 100)) < 0.10, 1 - truth, truth)
    second = np.where(_draw(32).random((60, 100)) < 0.15, 1 - truth, truth)
    pair = [_counts(metric, truth, predicted, 2) for predicted in (first, second)]
    assert paired_difference(*pair, 1000, _draw(33)).verdict == "better"
    assert paired_difference(*pair[::-1], 1000, _draw(33)).verdict == "worse"
    same = paired_difference(pair[0], pair[0], 1000, _draw(33))
    assert (same.low, same.high, same.verdict) == (0, 0, "no difference")


def test_four_wins_are_not_yet_a_difference():
    first = np.ones(1000)
    second = first.copy()
    second[:4] = 0
    assert paired_difference(_accuracy(first), _accuracy(second), 2000, _draw(10)).verdict == "no difference"
    second[:12] = 0
    assert paired_difference(_accuracy(first), _accuracy(second), 2000, _draw(10)).verdict == "better"


def test_four_won_masks_are_not_yet_a_difference():
    truth = np.tile([0, 1], (200, 10))
    for num_won, verdict in [(4, "no difference"), (12, "better")]:
        second = truth.copy()
        second[:num_won] = 1 - second[:num_won]
        pair = [_counts("miou", truth, predicted, 2) for predicted in (truth, second)]
        assert paired_difference(*pair, 2000, _draw(13)).verdict == verdict


def test_draws_that_disagree_widen_the_interval():
    ease = _draw(40).random(400) < 0.7
    alike = np.tile(ease, (5, 1))
    unlike = _draw(41).random((5, 400)) < np.array([[0.5], [0.6], [0.7], [0.8], [0.9]])
    widths = []
    for scores in (alike, unlike):
        interval = bootstrap_interval(_accuracy(scores), 2000, _draw(42))
        widths.append(interval.high - interval.low)
    # Five draws of deviation 0.158: half the interval is 2.776 × 0.158 / √5 = 0.196, and resampling is a little short.
    assert 0.07 < widths[0] < 0.12
    assert 0.28 < widths[1] < 0.48


def _in_places(trial, num_places, metric="accuracy"):
    """Two equal models on some 30 images of each place; how well each does differs from place to place."""
    draw = _draw(50, trial, num_places)
    places = np.repeat(np.arange(num_places), draw.poisson(30, num_places) + 1)
    pair = []
    for _ in range(2):
        rates = draw.beta(12, 3, num_places)[places]
        if metric == "accuracy":
            units = (draw.random(len(places)) < rates).astype(float)
        else:
            right = draw.binomial(50, rates[:, None], (len(places), 2))
            units = np.stack([right[:, 0], 50 - right[:, 0], 50 - right[:, 1], right[:, 1]], axis=1).reshape(-1, 2, 2)
        pair.append(Evidence(metric=metric, units=units, places=places))
    return pair


@pytest.mark.parametrize("num_places", [5, 20, 100])
def test_interval_over_places_covers_that_of_new_places_about_95_times_in_100(num_places):
    covered, by_images = 0, 0
    for trial in range(300):
        evidence, _ = _in_places(trial, num_places)
        interval = bootstrap_interval(evidence, 1000, _draw(51, trial))
        covered += interval.low <= 0.8 <= interval.high
        interval = bootstrap_interval(_accuracy(evidence.units), 1000, _draw(51, trial))
        by_images += interval.low <= 0.8 <= interval.high
    assert 0.91 <= covered / 300 <= 0.99
    assert by_images / 300 < 0.8, "drawing images is too sure"


@pytest.mark.parametrize("metric", ["accuracy", "miou"])
def test_equal_models_differ_by_place_alone_about_5_times_in_100(metric):
    verdicts = [
        paired_difference(*_in_places(trial, 12, metric), 1000, _draw(52, trial)).verdict for trial in range(300)
    ]
    assert 0.91 <= verdicts.count("no difference") / 300 <= 0.99


def test_all_right_in_all_places_is_not_certain():
    places = np.repeat(np.arange(20), 50)
    interval = bootstrap_interval(Evidence(metric="accuracy", units=np.ones(1000), places=places), 4000, _draw(53))
    assert 1 - 4.5 / 20 <= interval.low <= 1 - 1.9 / 20
    assert interval.high == 1


@pytest.mark.parametrize("metric", ["accuracy", "miou"])
@pytest.mark.parametrize("number", ["one", "one each"])
def test_one_place_or_one_for_each_image_is_as_none(metric, number):
    first, second = _in_places(0, 12, metric)
    places = np.zeros(first.num_images, np.int64) if number == "one" else np.arange(first.num_images)[::-1]
    told = [replace(each, places=places) for each in (first, second)]
    plain = [replace(each, places=None) for each in (first, second)]
    assert bootstrap_interval(told[0], 1000, _draw(54)) == bootstrap_interval(plain[0], 1000, _draw(54))
    assert paired_difference(*told, 1000, _draw(55)) == paired_difference(*plain, 1000, _draw(55))


def test_places_are_drawn_with_all_of_their_images_whatever_their_order():
    evidence, other = _in_places(1, 15, "miou")
    order = _draw(56).permutation(evidence.num_images)
    again, other_again = (
        replace(each, units=each.units[order], places=-7 * each.places[order]) for each in (evidence, other)
    )
    interval, found = bootstrap_interval(evidence, 4000, _draw(57)), bootstrap_interval(again, 4000, _draw(57))
    np.testing.assert_allclose([found.low, found.high], [interval.low, interval.high], atol=0.01)
    assert (
        paired_difference(again, other_again, 1000, _draw(58)).value
        == paired_difference(evidence, other, 1000, _draw(58)).value
    )


@pytest.mark.parametrize("metric", ["miou", "iou", "f1"])
def test_where_nothing_has_a_class_nothing_is_known(metric):
    nothing = Evidence(metric=metric, units=np.zeros((3, 2, 2), np.int64))
    interval, found = bootstrap_interval(nothing, 200, _draw(43)), paired_difference(nothing, nothing, 200, _draw(44))
    assert (interval.value, interval.low, interval.high) == (0, 0, 1)
    assert (found.value, found.low, found.high, found.verdict) == (0, 0, 0, "no difference")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60), st.integers(0, 1000))
def test_a_model_is_no_different_from_itself(scores, seed):
    evidence = _accuracy(scores)
    assert paired_difference(evidence, evidence, 1000, _draw(seed)).verdict == "no difference"
    interval = bootstrap_interval(evidence, 1000, _draw(seed))
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.low < interval.high


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 30), st.integers(2, 5))
def test_metrics_are_scikit_learn_s(seed, num_images, num_pixels, num_classes):
    truth, predicted = _draw(seed).integers(0, num_classes, (2, num_images, num_pixels))
    flat = truth.ravel(), predicted.ravel()
    rare = {"labels": np.unique(flat), "average": "macro"}
    assert value(_counts("miou", truth, predicted, num_classes)) == pytest.approx(jaccard_score(*flat, **rare))
    assert value(_accuracy(flat[0] == flat[1])) == pytest.approx(accuracy_score(*flat))
    ious = per_class_iou(_counts("miou", truth, predicted, num_classes).units)
    for label in range(num_classes):
        assert np.isnan(ious[label]) == (label not in flat[0] and label not in flat[1])
    two = truth % 2, predicted % 2
    flat = two[0].ravel(), two[1].ravel()
    assert value(_counts("iou", *two, 2)) == pytest.approx(jaccard_score(*flat, zero_division=0))
    assert value(_counts("f1", *two, 2)) == pytest.approx(f1_score(*flat, zero_division=0))
