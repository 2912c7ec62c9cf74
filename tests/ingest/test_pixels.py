"""Scaling, figures and filters, against plain definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ingest.config import Recipe
from ingest.pixels import Scaling, measure, outside, percentile_bounds, policy, refusal, scale

STRIPS = st.one_of(
    *[npst.arrays(dtype, (2, 3, 4)) for dtype in ("uint8", "int8", "uint16", "int16", "int32")],
    npst.arrays("float32", (2, 3, 4), elements=st.floats(-1e6, 1e6, width=32)),
)


@given(STRIPS, st.floats(-1000, 1000), st.floats(1, 5000), st.floats(-1000, 1000))
def test_scale_follows_its_formula_for_every_type(strip, low, span, offset):
    scaling = Scaling(low=(low, low + 1), high=(low + span, low + 1 + span), offset=offset)
    lows, highs = np.array(scaling.low)[:, None, None], np.array(scaling.high)[:, None, None]
    expected = np.rint((strip.astype(np.float64) + offset - lows) / (highs - lows) * 255.0).clip(0, 255)
    assert np.array_equal(scale(strip, scaling), expected)


def test_scale_survives_nan_and_infinity():
    strip = np.array([[[np.nan, np.inf, -np.inf, 5.0]]], np.float32)
    assert scale(strip, Scaling(low=(0.0,), high=(10.0,), offset=0.0)).tolist() == [[[0, 255, 0, 128]]]


def test_values_above_the_range_never_wrap_around():
    strip = np.array([[[0, 3000, 3001, 60000]]], np.uint16)
    assert scale(strip, Scaling(low=(0.0,), high=(3000.0,), offset=0.0)).tolist() == [[[0, 255, 255, 255]]]
    assert outside(strip, Scaling(low=(0.0,), high=(3000.0,), offset=0.0)).tolist() == [[False, False, True, True]]


@given(npst.arrays("uint16", (3, 50)))
def test_percentile_bounds_are_values_of_the_scene(values):
    low, high = percentile_bounds(values, (2, 98))
    for band in range(3):
        assert low[band] in values[band]
        assert low[band] < high[band]
        assert high[band] in values[band] or high[band] == low[band] + 1


@pytest.mark.parametrize("value", [0.0, -3.4028234663852886e38, 1e16, 1.5e308])
def test_constant_scenes_of_any_magnitude_can_be_scaled(value):
    low, high = percentile_bounds(np.full((1, 9), value), (1, 99))
    assert high[0] > low[0] == value
    assert scale(np.full((1, 2, 2), value), Scaling(low=low, high=high, offset=0.0)).tolist() == [[[0, 0], [0, 0]]]


def test_no_valid_pixel_has_no_bounds():
    assert percentile_bounds(np.empty((3, 0), np.uint16), (2, 98)) is None


@given(npst.arrays("uint8", (6, 5, 3)), npst.arrays(bool, (6, 5)))
def test_figures_are_those_of_numpy(pixels, valid):
    figures = measure(pixels, valid)
    chosen = pixels[valid].astype(np.float64)
    assert figures.num_valid == valid.sum()
    assert figures.valid_share == pytest.approx(valid.mean())
    assert figures.sums == tuple(chosen.sum(axis=0))
    assert figures.squares == tuple((chosen**2).sum(axis=0))
    expected = chosen.std(axis=0).max() / 255 if valid.any() else 0.0
    assert figures.contrast == pytest.approx(expected, abs=1e-6)


def test_filters_name_their_reason():
    recipe = Recipe(min_valid_share=0.5, min_contrast=0.01)
    tile = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    everywhere, nowhere = np.ones((8, 8), bool), np.zeros((8, 8), bool)
    assert refusal(measure(tile, everywhere), recipe) is None
    assert refusal(measure(tile, nowhere), recipe)[0] == "low_valid_share"
    assert refusal(measure(np.full_like(tile, 7), everywhere), recipe)[0] == "low_contrast"
    assert refusal(measure(tile, nowhere), Recipe(min_valid_share=0.0))[0] == "low_valid_share"


def test_auto_scales_all_but_bytes():
    assert policy(Recipe(), "uint8") == "none"
    assert policy(Recipe(), "uint16") == "percentile"
    assert policy(Recipe(normalisation="linear"), "uint8") == "linear"
