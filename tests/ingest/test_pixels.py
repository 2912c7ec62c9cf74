"""Scaling, figures, filters and resampling, against plain definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ingest.config import Recipe
from ingest.pixels import (
    Scaling,
    _integer_scalings,
    clear,
    cloudy,
    downsample,
    percentile_bounds,
    policy,
    scale,
    shift,
    upsample,
)
from ingest.reasons import SceneRejectedError

TYPES = ("uint8", "uint16", "int16", "float32")
STRIPS = st.one_of(
    *[npst.arrays(dtype, (2, 3, 4)) for dtype in ("uint8", "int8", "uint16", "int16", "int32")],
    npst.arrays("float32", (2, 3, 4), elements=st.floats(-1e6, 1e6, width=32)),
)
SCALINGS = st.builds(
    lambda low, span, offset, factor: Scaling(
        low=(low, low + 1), high=(low + span, low + 1 + span), offset=offset, scale=factor
    ),
    st.floats(-1000, 1000),
    st.floats(1, 5000),
    st.floats(-1000, 1000),
    st.sampled_from([1.0, 0.0000275, 0.1, 3.0]),
)


def elements(dtype):
    return st.floats(-1e6, 1e6, width=32) if dtype == "float32" else None


def tiles(dtype, shape=(6, 5, 3)):
    return npst.arrays(dtype, shape, elements=elements(dtype))


def prepared(strip, scaling):
    return (strip.astype(np.float64) + scaling.offset) * scaling.scale


def bounds(scaling):
    return np.array(scaling.low)[:, None, None], np.array(scaling.high)[:, None, None]


@given(STRIPS, SCALINGS)
def test_scale_follows_its_formula_for_every_type(strip, scaling):
    low, high = bounds(scaling)
    values = prepared(strip, scaling)
    scaled, clipped = scale(strip, scaling)
    assert np.array_equal(scaled, np.rint((values - low) / (high - low) * 255.0).clip(0, 255))
    assert np.array_equal(clipped, ((values < low) | (values > high)).any(axis=0))


@pytest.mark.parametrize(
    ("dtype", "scaling", "has_line"),
    [
        ("uint16", Scaling(low=(200.0,), high=(3000.0,)), True),
        ("uint16", Scaling(low=(11.0,), high=(65535.0,)), True),
        ("int16", Scaling(low=(-30000.0,), high=(-11.5,), offset=-0.25), True),
        ("uint16", Scaling(low=(0.0,), high=(0.3,), offset=-7272.727272, scale=2.75e-5), True),  # Landsat
        ("uint16", Scaling(low=(0.0,), high=(0.3,), offset=-1000, scale=1e-4), False),  # halves, up and down
        ("int16", Scaling(low=(1e-300,), high=(2e-300,)), False),
    ],
)
def test_every_value_is_scaled_as_the_formula_says_with_a_line_and_without(dtype, scaling, has_line):
    info = np.iinfo(dtype)
    values = np.arange(info.min, info.max + 1).astype(dtype).reshape(1, 256, 256)
    scaled, clipped = scale(values, scaling)
    (low,), (high,), wide = scaling.low, scaling.high, prepared(values, scaling)
    assert np.array_equal(scaled, np.rint((wide - low) / (high - low) * 255.0).clip(0, 255))
    assert np.array_equal(clipped, ((wide < low) | (wide > high))[0])
    assert (_integer_scalings(scaling, dtype)[0].line is not None) == has_line


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_window_of_a_strip_is_scaled_like_a_copy(dtype):
    strip = np.random.default_rng(0).integers(0, 3000, (3, 40, 5000)).astype(dtype)
    scaling = Scaling(low=(10.0, 20.0, 30.0), high=(2000.0, 2100.0, 2200.0))
    window = strip[:, 3:30, 100:4900]
    (scaled, clipped), (of_window, clipped_there) = scale(strip, scaling), scale(window, scaling)
    assert np.array_equal(scaled[:, 3:30, 100:4900], of_window)
    assert np.array_equal(clipped[3:30, 100:4900], clipped_there)


def test_scale_survives_nan_and_infinity():
    strip = np.array([[[np.nan, np.inf, -np.inf, 5.0]]], np.float32)
    scaled, clipped = scale(strip, Scaling(low=(0.0,), high=(10.0,)))
    assert scaled.tolist() == [[[0, 255, 0, 128]]]
    assert clipped.tolist() == [[False, True, True, False]]


def test_values_above_the_range_never_wrap_around():
    strip = np.array([[[0, 3000, 3001, 60000]]], np.uint16)
    scaled, clipped = scale(strip, Scaling(low=(0.0,), high=(3000.0,)))
    assert scaled.tolist() == [[[0, 255, 255, 255]]]
    assert clipped.tolist() == [[False, False, True, True]]


def test_a_range_beyond_the_type_clips_everything():
    strip = np.array([[[0, 255]]], np.uint8)
    assert scale(strip, Scaling(low=(300.0,), high=(400.0,)))[1].all()
    assert scale(strip, Scaling(low=(-9.0,), high=(-5.0,)))[1].all()


@given(st.sampled_from(TYPES).flatmap(lambda dtype: tiles(dtype, (2, 3, 4))), st.integers(-100_000, 100_000))
def test_shift_adds_and_clips_to_the_type(strip, offset):
    shifted = shift(strip, offset, strip.dtype.name)
    assert shifted.dtype == strip.dtype
    if strip.dtype.kind == "f":
        assert np.array_equal(shifted, (strip.astype(np.float64) + offset).astype(np.float32))
        return
    info = np.iinfo(strip.dtype)
    expected = (strip.astype(np.int64) + offset).clip(1 if info.min == 0 else info.min, info.max)
    assert np.array_equal(shifted, expected)


def test_harmonising_keeps_zero_for_no_data():
    strip = np.array([[[0, 1, 999, 1000, 1001, 65535]]], np.uint16)
    assert shift(strip, -1000.0, "uint16").tolist() == [[[1, 1, 1, 1, 1, 64535]]]
    assert shift(np.array([[[3e38]]], np.float32), 3e38, "float32")[0, 0, 0] == np.finfo(np.float32).max


def test_clear_sets_what_has_no_data_to_zero_also_nan():
    values, valid = np.array([[[np.nan, 2.0]], [[1.0, np.inf]]], np.float32), np.array([[False, True]])
    assert clear(values, valid).tolist() == [[[0.0, 2.0]], [[0.0, np.inf]]]
    assert clear(np.array([[[-5, 7]]], np.int16), valid).tolist() == [[[0, 7]]]


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
    assert scale(np.full((1, 2, 2), value), Scaling(low=low, high=high))[0].tolist() == [[[0, 0], [0, 0]]]


def test_no_valid_pixel_has_no_bounds():
    assert percentile_bounds(np.empty((3, 0), np.uint16), (2, 98)) is None


def test_auto_scales_all_but_bytes():
    assert policy(Recipe(), "uint8") == "none"
    assert policy(Recipe(), "uint16") == "percentile"
    assert policy(Recipe(normalisation="linear"), "uint8") == "linear"


def test_clouds_by_value_and_by_bit():
    classes = np.array([[3, 4, 8, 9, 10, 11]], np.uint8)
    assert cloudy(classes, (3, 8, 9, 10, 300), ()).tolist() == [[True, False, True, True, True, False]]
    assert cloudy(np.array([[0b1, 0b10, 0b1000, 0b100000]], np.uint16), (), (1, 3, 40)).tolist() == [
        [False, True, True, False]
    ]
    assert cloudy(np.array([[-1, 1]], np.int16), (), (15,)).tolist() == [[True, False]]
    assert cloudy(np.array([[3.0, np.nan]], np.float32), (3,), ()).tolist() == [[True, False]]
    with pytest.raises(SceneRejectedError, match="wrong_dtype"):
        cloudy(np.zeros((1, 1), np.float32), (), (1,))


def naive_downsample(values, valid, factor):
    channels, height, width = values.shape
    out = np.zeros((channels, height // factor, width // factor), values.dtype)
    kept = np.zeros(out.shape[1:], bool)
    for y, x in np.ndindex(kept.shape):
        here = np.s_[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
        chosen = valid[here]
        kept[y, x] = chosen.sum() * 2 >= factor * factor
        for channel in range(channels) if kept[y, x] else ():
            block = values[channel][here][chosen]
            if values.dtype.kind == "f":
                out[channel, y, x] = block.astype(np.float64).sum() / len(block)
            else:
                out[channel, y, x] = (2 * sum(block.tolist()) + len(block)) // (2 * len(block))
    return out, kept


@given(
    st.sampled_from(["uint8", "uint16", "int16", "int32", "uint32", "float32"]),
    st.integers(1, 5),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_downsample_is_the_mean_of_valid_pixels(dtype, factor, whole, seed):
    rng = np.random.default_rng(seed)
    shape = (2, 3 * factor, 4 * factor)
    if dtype == "float32":
        values = rng.integers(-(2**20), 2**20, shape).astype(dtype)  # sums are exact in any order
    else:
        info = np.iinfo(dtype)
        values = rng.choice([info.min, 0, 1, info.max - 1, info.max], shape).astype(dtype)
    valid = np.ones(shape[1:], bool) if whole else rng.random(shape[1:]) < 0.6
    means, kept = downsample(values, valid, factor)
    expected, expected_kept = naive_downsample(values, valid, factor)
    assert means.dtype == values.dtype
    assert np.array_equal(kept, expected_kept)
    assert np.array_equal(means, expected)


def test_halves_are_rounded_up_and_nan_without_data_stays_out():
    everywhere = np.ones((2, 2), bool)
    assert downsample(np.array([[[0, 1], [1, 0]]], np.uint8), everywhere, 2)[0].tolist() == [[[1]]]
    assert downsample(np.array([[[0, -1], [-1, 0]]], np.int16), everywhere, 2)[0].tolist() == [[[0]]]
    values, valid = np.array([[[np.nan, 4.0], [2.0, np.nan]]], np.float32), np.array([[False, True], [True, False]])
    assert [part.tolist() for part in downsample(values, valid, 2)] == [[[[3.0]]], [[True]]]


@pytest.mark.parametrize(("dtype", "factor"), [("uint8", 300), ("uint16", 300), ("int16", 300)])
def test_strong_downsampling_of_the_largest_values_is_exact(dtype, factor):
    largest = np.iinfo(dtype).max
    means, _ = downsample(np.full((1, factor, factor), largest, dtype), np.ones((factor, factor), bool), factor)
    assert means.tolist() == [[[largest]]]


@given(STRIPS, st.integers(1, 4))
def test_upsample_then_downsample_is_the_same(strip, factor):
    finer = upsample(strip, factor)
    assert finer.shape == (2, 3 * factor, 4 * factor)
    assert np.array_equal(finer[:, ::factor, ::factor], strip)
    assert np.array_equal(downsample(finer, np.ones(finer.shape[1:], bool), factor)[0], strip)
