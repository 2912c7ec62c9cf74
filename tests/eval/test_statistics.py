import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.statistics import bootstrap_interval, paired_difference


def _draw(*parts):
    return np.random.default_rng(list(parts))


def test_interval_is_that_of_resampled_images():
    scores = (_draw(0).random(400) < 0.7).astype(float)
    interval = bootstrap_interval(scores, 4000, _draw(1))
    resampled = _draw(2).choice(scores, (4000, 400)).mean(axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    assert interval.value == scores.mean()
    np.testing.assert_allclose([interval.low, interval.high], [low, high], atol=0.006)


def test_interval_covers_the_truth_about_95_times_in_100():
    covered = 0
    for trial in range(400):
        interval = bootstrap_interval((_draw(3, trial).random(300) < 0.8).astype(float), 1000, _draw(4, trial))
        covered += interval.low <= 0.8 <= interval.high
    assert 0.91 <= covered / 400 <= 0.98


def test_equal_models_show_no_difference_about_95_times_in_100():
    """Two models that err at the same rate, on partly the same images: by construction no difference."""
    for num_images, share_differing in [(1000, 0.3), (300, 0.1), (200, 0.02)]:
        equal = 0
        for trial in range(400):
            draw = _draw(5, trial, num_images)
            first = (draw.random(num_images) < 0.8).astype(float)
            redrawn = draw.random(num_images) < share_differing
            second = np.where(redrawn, draw.random(num_images) < 0.8, first).astype(float)
            equal += paired_difference(first, second, 1000, _draw(6, trial)).verdict == "no difference"
        assert equal / 400 >= 0.92, (num_images, equal / 400)
        # With few differing images the verdict is cautious, with many it is calibrated from both sides.
        assert num_images < 1000 or equal / 400 <= 0.98


def test_a_real_difference_is_found_from_both_sides():
    first = (_draw(7).random(1000) < 0.85).astype(float)
    second = np.where(_draw(8).random(1000) < 0.08, 0, first).astype(float)
    better = paired_difference(first, second, 2000, _draw(9))
    worse = paired_difference(second, first, 2000, _draw(9))
    assert (better.verdict, worse.verdict) == ("better", "worse")
    assert better.low <= better.value <= better.high
    assert better.value == -worse.value


def test_four_wins_are_not_yet_a_difference():
    first = np.ones(1000)
    second = first.copy()
    second[:4] = 0
    assert paired_difference(first, second, 2000, _draw(10)).verdict == "no difference"
    second[:12] = 0
    assert paired_difference(first, second, 2000, _draw(10)).verdict == "better"


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60), st.integers(0, 1000))
def test_a_model_is_no_different_from_itself(scores, seed):
    values = np.array(scores)
    assert paired_difference(values, values, 1000, _draw(seed)).verdict == "no difference"
    interval = bootstrap_interval(values, 1000, _draw(seed))
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
