"""Tiles survive their encodings."""

import io

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
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


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("driver", "num_bands", "options"),
    [
        ("PNG", 2, {}),
        ("PNG", 3, {}),
        ("PNG", 4, {}),
        ("GTiff", 3, {"photometric": "rgb", "interleave": "pixel"}),
        ("GTiff", 4, {"photometric": "rgb", "interleave": "pixel"}),
        ("GTiff", 3, {"photometric": "rgb", "interleave": "band"}),
    ],
)
def test_colours_of_16_bits_are_refused(tmp_path, driver, num_bands, options):
    """Pillow would give the upper halves alone."""
    size = {"width": 5, "height": 4, "count": num_bands}
    with rasterio.open(tmp_path / "a", "w", driver=driver, dtype="uint16", **size, **options) as image:
        image.write(np.full((num_bands, 4, 5), 300, np.uint16))
    with pytest.raises(ValueError, match=r"a \.x image of mode \w+ and 16 bits has no exact form here"):
        decode_image("x", (tmp_path / "a").read_bytes())


def test_floats_and_arrays_without_a_band_axis():
    out = io.BytesIO()
    Image.new("F", (4, 3), 0.5).save(out, "TIFF")
    assert np.array_equal(decode_image("tif", out.getvalue()), np.full((3, 4, 1), 0.5, np.float32))
    assert decode_image("npy", npy(np.arange(6, dtype=np.uint16).reshape(2, 3)))[:, :, 0].tolist() == [
        [0, 1, 2],
        [3, 4, 5],
    ]


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


PIXELS = np.random.default_rng(1).integers(0, 255, (6, 5, 3), np.uint8)
ENCODED = [encode_image(PIXELS, encoding) for encoding in ("npy", "jpeg", "png")]


@st.composite
def damaged(draw):
    """Draw an extension and an image's bytes with some others in their place, or cut out, or in between."""
    extension, encoded = draw(st.sampled_from(ENCODED))
    data = bytearray(encoded)
    for _ in range(draw(st.integers(1, 3))):
        # Most of a file's beginning is header.
        begin = draw(st.integers(0, 130) | st.integers(0, len(encoded)))
        length = draw(st.sampled_from([0, 1, 2, 20, len(encoded)]))
        data[begin : begin + length] = draw(st.binary(max_size=3) | st.sampled_from([b"(", b"0", b"'", b"9" * 9]))
    return extension, bytes(data)


@settings(max_examples=400)
@given(damaged())
def test_damaged_bytes_give_pixels_or_a_value_error(image):
    told, pixels = "", PIXELS
    try:
        pixels = decode_image(*image)
    except ValueError as error:
        told = str(error)
    assert "\n" not in told
    assert pixels.ndim == 3


def header(text, version=b"\1\0"):
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + bytes(64)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"{'descr': '|u1', 'fortran_order': False, 'shape': (2, 2", "cannot decode"),  # TokenError
        (b"  {'descr': '|u1'\n\t  x", "cannot decode"),  # IndentationError
        (b"(" * 150, "cannot decode"),
        (b"-" * 9000 + b"1", "cannot decode"),  # MemoryError
        (b"\xff" * 50, "cannot decode"),
        (b"{'descr': ['|u1'], 'fortran_order': False, 'shape': (2, 2)}", "cannot decode"),
        (b"{'descr': '|O', 'fortran_order': False, 'shape': (2, 2)}", "it holds object, not numbers"),
        (b"{'descr': '<U2', 'fortran_order': False, 'shape': (2, 2)}", "it holds <U2, not numbers"),
        (b"{'descr': '|u1', 'fortran_order': False, 'shape': (3000000, 3000000)}", "9000000000000 bytes announced, 64"),
        (b"{'descr': '|u1', 'fortran_order': False, 'shape': (-2, -2)}", "is not .height"),
        (b"{'descr': '|u1', 'fortran_order': False, 'shape': (0, 1" + b"0" * 40 + b")}", "is not .height"),
    ],
)
def test_npy_headers_that_announce_no_image_are_refused(text, told):
    with pytest.raises(ValueError, match=told):
        decode_image("npy", header(text))


def test_an_unknown_version_is_named():
    with pytest.raises(ValueError, match=r"version \(7, 0\) of the format is unknown"):
        decode_image("npy", header(b"", b"\7\0"))


@pytest.mark.parametrize("shape", [(), (4,), (1, 2, 2, 1)])
def test_arrays_of_other_dimensions_are_no_images(shape):
    with pytest.raises(ValueError, match=r"^shape \(.*\) is not \[height, width, bands\]$"):
        decode_image("npy", npy(np.ones(shape, np.uint8)))


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_of_any_layout_comes_in_this_machines_byte_order(order):
    pixels = np.arange(24).reshape(2, 3, 4)
    decoded = decode_image("npy", npy(np.asarray(pixels, ">u2", order=order)))
    assert (decoded.dtype, decoded.tolist()) == (np.uint16, pixels.tolist())
    assert str(decoded.dtype) == "uint16"


@given(st.sampled_from(["uint8", "int16", "float32"]).flatmap(lambda dtype: npst.arrays(dtype, (2, 3, 4))))
def test_interleave_transposes(strip):
    tile = interleave(strip)
    assert tile.flags.c_contiguous
    np.testing.assert_array_equal(tile, strip.transpose(1, 2, 0))


@pytest.mark.parametrize("encoding", ["png", "jpeg", "webp"])
def test_pictures_of_three_bands_are_padded_if_asked_to(encoding):
    encoded = encode_image(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8), encoding)
    padded, plain = decode_image(*encoded, padded=True), decode_image(*encoded)
    assert (padded == plain).all()
    assert padded.strides == (120, 4, 1)
    assert plain.strides == (90, 3, 1)


def test_pictures_that_pillow_holds_in_several_blocks_are_copied():
    pixels = np.random.default_rng(0).integers(0, 256, (2100, 2100, 3), np.uint8)
    assert (decode_image(*encode_image(pixels, "png"), padded=True) == pixels).all()


def by_pillow(data):
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def save_jpeg(pixels, mode, keep_rgb=False, subsampling=0, **options):
    out = io.BytesIO()
    form = {"keep_rgb": True} if keep_rgb and mode == "RGB" else {"subsampling": subsampling}
    Image.fromarray(pixels).convert(mode).save(out, "JPEG", **form, **options)
    return out.getvalue()


jpegs = st.builds(
    save_jpeg,
    npst.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))),
    st.sampled_from(["RGB", "L", "CMYK"]),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from([0, 1, 2]),
    progressive=st.booleans(),
    keep_rgb=st.booleans(),
)


@settings(max_examples=200)
@given(jpegs, st.booleans())
def test_jpegs_have_the_pixels_that_pillow_gives(data, padded):
    pixels = decode_image("jpg", data, padded=padded)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, by_pillow(data))


@settings(max_examples=400)
@given(st.data())
def test_of_damaged_jpegs_pillow_says_what_they_are(data):
    encoded = bytearray(data.draw(jpegs))
    for _ in range(data.draw(st.integers(1, 3))):
        begin, length = data.draw(st.integers(0, len(encoded))), data.draw(st.sampled_from([0, 1, 2, 20, 10**6]))
        encoded[begin : begin + length] = data.draw(st.binary(max_size=4))
    try:
        expected = by_pillow(bytes(encoded))
    except Exception:
        with pytest.raises(ValueError, match="cannot decode"):
            decode_image("jpg", bytes(encoded))
    else:
        assert np.array_equal(decode_image("jpg", bytes(encoded)), expected)


@settings(max_examples=200)
@given(
    st.one_of(
        jpegs.map(lambda data: ("jpg", data)),
        st.builds(
            encode_image,
            npst.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))),
            st.sampled_from(["png", "webp", "npy"]),
        ),
        st.builds(encode_image, npst.arrays(np.uint16, (3, 4, 2)), st.just("npy")),
    ),
    st.booleans(),
    st.sampled_from(["fits", "in pieces", "wider", "of another type"]),
)
def test_pixels_lie_where_they_are_to_if_they_fit(encoded, padded, form):
    expected = decode_image(*encoded)
    height, width, bands = expected.shape
    out = {
        "fits": np.empty(expected.shape, expected.dtype),
        "in pieces": np.empty((height, width, bands + 1), expected.dtype)[:, :, :bands],
        "wider": np.empty((height, width + 1, bands), expected.dtype),
        "of another type": np.empty(expected.shape, np.int32),
    }[form]
    pixels = decode_image(*encoded, padded=padded, out=out)
    assert np.array_equal(pixels, expected)
    assert (pixels is out) == (form in ("fits", "in pieces"))


def test_a_jpeg_that_announces_more_than_pillow_takes_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="exceeds limit of 200 pixels"):
        decode_image("jpg", save_jpeg(np.zeros((16, 16, 3), np.uint8), "RGB"))
