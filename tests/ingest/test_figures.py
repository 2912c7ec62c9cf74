"""What is measured of tiles, against plain numpy; the filters; the difference hash."""

import io
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from ingest.config import Recipe
from ingest.figures import measure, refusal
from ingest.pixels import clear
from shards.images import interleave

TYPES = ("uint8", "uint16", "int16", "float32")


def elements(dtype):
    return st.floats(-1e6, 1e6, width=32) if dtype == "float32" else None


def tiles(dtype, shape=(6, 5, 3)):
    return npst.arrays(dtype, shape, elements=elements(dtype))


def naive_entropy(values):
    if values.dtype == np.uint8:
        binned = values
    elif values.dtype.kind == "f":
        low, high = (float(value) for value in (values.min(), values.max()))
        binned = [min(255, int((float(v) - low) / ((high - low) or 1) * 256)) for v in values]
    else:
        low, high = int(values.min()), int(values.max())
        binned = [(int(v) - low) * 256 // max(256, high - low + 1) for v in values]
    counts = np.unique(binned, return_counts=True)[1]
    return sum(-n / len(values) * math.log2(n / len(values)) for n in counts.tolist())


@given(
    st.sampled_from(TYPES).flatmap(tiles),
    st.one_of(st.none(), st.just(np.ones((6, 5), bool)), npst.arrays(bool, (6, 5))),
)
def test_figures_are_those_of_numpy(pixels, valid):
    figures = measure(pixels, valid)
    mask = np.ones((6, 5), bool) if valid is None else valid
    chosen = pixels[mask]
    assert figures.num_valid == mask.sum()
    assert figures.valid_share == mask.mean()
    if not len(chosen):
        assert (figures.contrast, figures.entropy, figures.black_share, figures.saturated_share) == (0, 0, 0, 0)
        assert figures.band_sums == figures.band_squares == (0, 0, 0)
        return
    wide = chosen.astype(np.float64)
    close = pytest.approx if pixels.dtype == np.float32 else tuple
    assert figures.band_sums == close(tuple(wide.sum(axis=0).tolist()))
    assert figures.band_squares == close(tuple((wide**2).sum(axis=0).tolist()))
    magnitude = 255 if pixels.dtype == np.uint8 else max(np.abs(wide).max(), 1e-12)
    assert figures.contrast == pytest.approx(wide.std(axis=0).max() / magnitude, abs=1e-6)
    assert figures.entropy == pytest.approx(max(naive_entropy(chosen[:, band]) for band in range(3)), abs=1e-12)
    black = {"uint8": chosen <= 2, "uint16": chosen <= 1}.get(pixels.dtype.name, chosen == 0)
    top = {"uint8": 253, "uint16": 65535, "int16": 32767}.get(pixels.dtype.name, np.inf)
    assert figures.black_share == black.all(axis=1).mean()
    assert figures.saturated_share == (chosen >= top).any(axis=1).mean()


@given(st.sampled_from(TYPES), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_figures_do_not_depend_on_strides_and_have_any_number_of_bands(dtype, num_bands, seed):
    strip = np.random.default_rng(seed).integers(0, 200, (num_bands, 20, 40)).astype(dtype)
    view = strip[:, 2:19, 5:30].transpose(1, 2, 0)
    valid = strip[0, 2:19, 5:30] > 20
    assert measure(view, valid) == measure(interleave(strip[:, 2:19, 5:30]), valid)
    assert measure(view, valid) == measure(interleave(clear(strip[:, 2:19, 5:30], valid)), valid)
    assert len(measure(view, valid).band_sums) == num_bands


def test_sums_of_the_largest_tile_are_exact_integers():
    figures = measure(np.full((4096, 4096, 1), 65535, np.uint16), None)
    assert figures.band_squares == (65535**2 * 4096**2,)
    assert isinstance(figures.band_squares[0], int)
    assert figures.contrast == figures.entropy == 0.0
    assert figures.saturated_share == 1.0
    assert figures.dhash == 0


def test_entropy_counts_bits():
    ramp = np.arange(256, dtype=np.uint8).repeat(2).reshape(16, 32, 1)
    assert measure(ramp, None).entropy == 8.0
    assert measure(ramp // 128, None).entropy == 1.0
    assert measure(ramp.astype(np.uint16) * 257, None).entropy == 8.0
    assert measure(ramp.astype(np.float32) / 255, None).entropy == pytest.approx(8.0, abs=0.02)


@pytest.mark.parametrize("side", [512, 520])
def test_entropy_of_large_tiles_is_that_of_small_ones(side):
    pixels = (np.random.default_rng(0).standard_normal((side, side, 1)) * 9 + 100).astype(np.uint8)
    assert measure(pixels, None).entropy == pytest.approx(naive_entropy(pixels.reshape(-1)), abs=1e-12)


def naive_dhash(pixels):
    height, width, _ = pixels.shape
    bright = pixels.astype(np.float64).sum(axis=2)
    bits = 0
    for row in range(8):
        for column in range(8):
            means = []
            for c in (column, column + 1):
                rows = [(2 * sample + 1) * height // 64 for sample in range(4 * row, 4 * row + 4)]
                area = bright[rows, width * c // 9 : width * (c + 1) // 9]
                means.append(Fraction(area.sum()) / area.size)
            bits |= int(means[0] < means[1]) << (8 * row + column)
    return bits


@given(st.sampled_from(TYPES), st.integers(16, 40), st.integers(16, 40), st.integers(0, 2**32 - 1))
def test_dhash_compares_neighbouring_areas(dtype, height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 30000, (height, width, 3)).astype(dtype)
    assert measure(pixels, None).dhash == naive_dhash(pixels)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_dhash_of_bright_tall_tiles_does_not_overflow(dtype):
    pixels = np.full((3000, 18, 3), np.iinfo(dtype).max if dtype != "float32" else 1e30, dtype)
    pixels[:, :2] = 0
    assert measure(pixels, None).dhash == naive_dhash(pixels) == 0x0101010101010101


def test_dhash_of_many_bright_bands_does_not_overflow():
    pixels = np.full((16, 18, 70), 255, np.uint8)
    pixels[:, :2] = 200
    assert measure(pixels, None).dhash == naive_dhash(pixels) == 0x0101010101010101


def test_near_duplicates_differ_in_few_bits():
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8)).resize((256, 256), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    smooth.save(out, "JPEG", quality=60)
    first, again = (measure(np.asarray(image), None).dhash for image in (smooth, Image.open(out)))
    other = measure(rng.integers(0, 255, (256, 256, 3), np.uint8), None).dhash
    assert (first ^ again).bit_count() <= 2
    assert (first ^ other).bit_count() > 12


PLAIN = np.full((9, 9, 3), 7, np.uint8)


def tile(**shares):
    """A noisy grey tile of 100 × 100 pixels, of which shares are black or white."""
    pixels = np.random.default_rng(0).integers(50, 200, (100, 100, 3), np.uint8)
    pixels[: round(100 * shares.get("black", 0))] = 1
    pixels[100 - round(100 * shares.get("white", 0)) :, :, 1] = 254
    return measure(pixels, None)


@pytest.mark.parametrize(
    ("figures", "recipe", "cloud_share", "expected"),
    [
        (tile(), Recipe(), None, None),
        (tile(black=0.5, white=0.5), Recipe(), 1.0, None),
        (measure(PLAIN, np.zeros((9, 9), bool)), Recipe(min_valid_share=0), None, "low_valid_share"),
        (measure(PLAIN, np.eye(9) > 0), Recipe(), None, "low_valid_share"),
        (measure(PLAIN, None), Recipe(), None, "low_contrast"),
        (tile(), Recipe(min_entropy=7.5), None, "low_entropy"),
        (tile(black=0.3), Recipe(max_black_share=0.2), None, "black"),
        (tile(black=0.2), Recipe(max_black_share=0.2), None, None),
        (tile(white=0.3), Recipe(max_saturated_share=0.2), None, "saturated"),
        (tile(), Recipe(max_cloud_share=0.2, cloud_band=1, cloud_values=(3,)), 0.21, "cloudy"),
        (tile(), Recipe(max_cloud_share=0.2, cloud_band=1, cloud_values=(3,)), None, None),
    ],
)  # fmt: skip
def test_filters_name_their_reason(figures, recipe, cloud_share, expected):
    refused = refusal(figures, recipe, cloud_share)
    assert (refused and refused[0]) == expected


def test_details_name_value_and_limit():
    assert refusal(tile(black=0.3), Recipe(max_black_share=0.2), None) == ("black", "0.300 > 0.2")
