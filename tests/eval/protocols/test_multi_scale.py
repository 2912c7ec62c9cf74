from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eval.protocols.knn import KNN
from eval.protocols.multi_scale import MULTI_SCALE, scaled_px


def _with_variants(task, noise):
    draw = np.random.default_rng(1)
    test = task.test[0]
    variants = {
        name: test + noise * (1 - share) * draw.normal(size=test.shape).astype(np.float32)
        for name, share in MULTI_SCALE.variants.items()
    }
    return replace(task, variants=variants)


def test_scales_are_an_eighth_a_quarter_a_half_and_all():
    assert dict(MULTI_SCALE.variants) == {"scale_12": 0.125, "scale_25": 0.25, "scale_50": 0.5}


def test_full_size_is_k_nn_and_the_mean_is_that_of_the_scales(classes_task):
    task = _with_variants(classes_task(noise=1.5), noise=4)
    outcomes = MULTI_SCALE.run(task)
    assert list(outcomes) == list(MULTI_SCALE.titles)
    plain = KNN.run(task)["knn_20"]
    np.testing.assert_array_equal(outcomes["knn_20_at_100"].predictions, plain.predictions)
    values = [outcomes[f"knn_20_at_{scale}"].evidence.units.mean() for scale in ("12", "25", "50", "100")]
    assert values[0] < values[2] < values[3]
    mean = outcomes["knn_20_over_scales"]
    np.testing.assert_allclose(mean.evidence.units.mean(), np.mean(values))
    assert mean.evidence.units.shape == task.test[1].shape
    assert mean.predictions is None
    assert mean.detail["validation"] == plain.detail["validation"]


def test_each_scale_is_that_of_its_variant(classes_task):
    task = classes_task()
    task = replace(task, variants=dict.fromkeys(MULTI_SCALE.variants, task.test[0]))
    swapped = replace(task, variants={**task.variants, "scale_25": task.test[0][::-1].copy()})
    alike, other = MULTI_SCALE.run(task), MULTI_SCALE.run(swapped)
    plain = alike["knn_20_at_100"].predictions
    for scale in ("12", "25", "50"):
        np.testing.assert_array_equal(alike[f"knn_20_at_{scale}"].predictions, plain)
        expected = plain[::-1] if scale == "25" else plain
        np.testing.assert_array_equal(other[f"knn_20_at_{scale}"].predictions, expected)


@given(st.integers(1, 5000), st.sampled_from([0.125, 0.25, 0.5, 1.0]))
def test_scaled_sides(side_px, share):
    scaled = scaled_px(side_px, share)
    assert 1 <= scaled <= side_px
    assert abs(scaled - side_px * share) <= 1
