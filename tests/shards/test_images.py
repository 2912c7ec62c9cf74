"""Tiles survive their encodings."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from shards.images import decode_image, encode_image, interleave


@given(st.sampled_from(["png", "webp"]), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.data())
def test_lossless_encodings_give_the_pixels_back(encoding, height, width, channels, data):
    raw = data.draw(st.binary(min_size=height * width * channels, max_size=height * width * channels))
    pixels = np.frombuffer(raw, np.uint8).reshape(height, width, channels)
    if encoding == "webp" and channels == 1:
        return  # WebP has no grey: it comes back as three equal bands
    extension, encoded = encode_image(pixels, encoding)
    assert np.array_equal(decode_image(extension, encoded), pixels)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_npy_holds_any_type_and_band_count(dtype):
    pixels = np.arange(5 * 4 * 7).reshape(5, 4, 7).astype(dtype)
    extension, encoded = encode_image(pixels, "npy")
    decoded = decode_image(extension, encoded)
    assert decoded.dtype == pixels.dtype
    assert np.array_equal(decoded, pixels)


def test_jpeg_is_near_and_keeps_full_colour_resolution():
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[::2] = (255, 0, 0)
    pixels[1::2] = (0, 0, 255)
    decoded = decode_image(*encode_image(pixels, "jpeg", 95)).astype(int)
    # With 4:2:0 chroma the red and blue rows would both become purple.
    assert np.abs(decoded - pixels).mean() < 12


def test_same_pixels_same_bytes():
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    for encoding in ("jpeg", "png", "webp", "npy"):
        assert encode_image(pixels, encoding) == encode_image(pixels.copy(), encoding)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="jpeg holds uint8 with 1 or 3 bands, not uint16 with 4"):
        encode_image(np.zeros((4, 4, 4), np.uint16), "jpeg")
    with pytest.raises(ValueError, match=r"cannot decode \.jpg"):
        decode_image("jpg", b"no image")


@pytest.mark.parametrize("mode", ["I", "I;16B"])
def test_modes_that_would_lose_their_values_are_refused(mode):
    out = io.BytesIO()
    Image.new(mode, (4, 4)).save(out, "TIFF")
    with pytest.raises(ValueError, match=f"image of mode {mode} has no exact form"):
        decode_image("tif", out.getvalue())


def test_floats_and_arrays_without_a_band_axis():
    out = io.BytesIO()
    Image.new("F", (4, 3), 0.5).save(out, "TIFF")
    assert np.array_equal(decode_image("tif", out.getvalue()), np.full((3, 4, 1), 0.5, np.float32))
    out = io.BytesIO()
    np.save(out, np.arange(6, dtype=np.uint16).reshape(2, 3))
    assert decode_image("npy", out.getvalue())[:, :, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


@given(st.sampled_from(["uint8", "int16", "float32"]).flatmap(lambda dtype: npst.arrays(dtype, (2, 3, 4))))
def test_interleave_transposes(strip):
    tile = interleave(strip)
    assert tile.flags.c_contiguous
    np.testing.assert_array_equal(tile, strip.transpose(1, 2, 0))
