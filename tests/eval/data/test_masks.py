import io

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from eval.data.decode import UnreadableImageError
from eval.data.kinds import IGNORE
from eval.data.masks import class_of_pixels, count_values, decode_mask, find_classes
from shards.errors import UserError

VALUES = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)


def _bytes(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _palette() -> Image.Image:
    image = Image.fromarray(VALUES, "L").convert("P")
    image.putdata(VALUES.ravel().tolist())
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 200, 0])
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(VALUES), VALUES),
        (Image.fromarray(VALUES.astype(np.uint16) * 300), VALUES.astype(np.uint16) * 300),
        (_palette(), VALUES),
        (Image.fromarray(np.dstack([VALUES] * 3)), VALUES),
        (Image.fromarray(np.dstack([VALUES] * 3 + [VALUES * 0])), VALUES),
        (Image.fromarray(VALUES > 0), VALUES > 0),
    ],
)
def test_png_modes(image, expected):
    np.testing.assert_array_equal(decode_mask("m.png", _bytes(image, "PNG")), expected)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32"])
def test_tiff_types(tmp_path, dtype):
    path = tmp_path / "m.tif"
    with rasterio.open(path, "w", driver="GTiff", dtype=dtype, width=3, height=2, count=1) as image:
        image.write(VALUES.astype(dtype)[None])
    np.testing.assert_array_equal(decode_mask("m.tif", path.read_bytes()), VALUES)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_the_palette_of_a_tiff_does_not_matter():
    np.testing.assert_array_equal(decode_mask("m.tif", _bytes(_palette(), "TIFF")), VALUES)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("num_bands", [1, 2, 3, 4])
def test_a_png_of_16_bits_keeps_them(tmp_path, num_bands):
    values = VALUES.astype(np.uint16) * 300
    path = tmp_path / "m.png"
    with rasterio.open(path, "w", driver="PNG", dtype="uint16", width=3, height=2, count=num_bands) as image:
        image.write(np.stack([values] * num_bands))
    np.testing.assert_array_equal(decode_mask("m.png", path.read_bytes()), values)


def test_a_lossy_mask_is_black_and_white():
    truth = np.kron(np.random.default_rng(0).integers(0, 2, (16, 16)), np.ones((4, 4))).astype(np.uint8) * 255
    data = _bytes(Image.fromarray(truth), "JPEG", quality=50)
    assert len(np.unique(np.asarray(Image.open(io.BytesIO(data))))) > 2, "compression has blurred it"
    np.testing.assert_array_equal(decode_mask("m.jpg", data), truth)
    for bad in (Image.fromarray(truth // 2), Image.fromarray(np.dstack([truth, 255 - truth, truth]))):
        with pytest.raises(UserError, match="write it as PNG"):
            decode_mask("m.jpg", _bytes(bad, "JPEG"))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_floats_and_colours_are_refused_by_name(tmp_path):
    path = tmp_path / "f.tif"
    with rasterio.open(path, "w", driver="GTiff", dtype="float32", width=3, height=2, count=1) as image:
        image.write(VALUES.astype(np.float32)[None])
    with pytest.raises(UserError, match=r"mask f.tif holds float32"):
        decode_mask("f.tif", path.read_bytes())
    colours = Image.fromarray(np.dstack([VALUES, VALUES, VALUES + 1]))
    with pytest.raises(UserError, match=r"mask c.png holds colours"):
        decode_mask("c.png", _bytes(colours, "PNG"))


@pytest.mark.parametrize("path", ["m.png", "m.tif", "m.jpg"])
def test_damage_is_an_unreadable_image(path):
    for data in (b"", b"no image", _bytes(Image.fromarray(VALUES), "PNG")[:40]):
        with pytest.raises(UnreadableImageError, match=path):
            decode_mask(path, data)


@given(hnp.arrays(np.int16, (5, 7), elements=st.integers(-3, 300)))
def test_counts_are_of_all_pixels(values):
    counts = count_values(values)
    assert sum(counts.values()) == values.size
    assert all((values == value).sum() == count for value, count in counts.items())
    assert count_values(values.clip(0, 255).astype(np.uint8)) == count_values(values.clip(0, 255))


@pytest.mark.parametrize(
    ("values", "kept", "names"),
    [
        ([0, 255], (0, 255), ("class_0", "class_1")),
        ([0, 1], (0, 1), ("class_0", "class_1")),
        ([0, 1, 255], (0, 1), ("class_0", "class_1")),
        ([2, 1, 5, 255, -1], (1, 2, 5), ("class_1", "class_2", "class_5")),
        ([0, 300], (0, 300), ("class_0", "class_300")),
    ],
)
def test_classes_are_the_values_that_occur(values, kept, names):
    classes = find_classes("d", "masks", values)
    assert (classes.values, classes.names) == (kept, names)
    assert classes.ignored == set(values) - set(kept)


def test_names_of_classes():
    classes = find_classes("d", "masks", [0, 1, 2], ["ignore", "water", "road", "field"])
    assert (classes.values, classes.names, classes.ignored) == ((1, 2), ("water", "road"), {0})
    assert find_classes("d", "masks", [0, 255], ["land", "water"]).names == ("land", "water")
    with pytest.raises(UserError, match="has 2 lines, but value 2 occurs"):
        find_classes("d", "masks", [0, 2], ["land", "water"])


@pytest.mark.parametrize("values", [[0, 255], [0, 1], [0, 1, 255]])
def test_changes_are_binary(values):
    assert find_classes("d", "changes", values).names == ("unchanged", "changed")


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("masks", [0], "hold the value 0: two or more"),
        ("masks", [1, 255], "hold the values 1, 255: two or more"),
        ("masks", [], "hold the values nothing"),
        ("masks", list(range(300)), "hold 299 values: at most 255"),
        ("changes", [0], "hold the value 0: 0 and 1, or 0 and 255"),
        ("changes", [0, 1, 2], "hold the values 0, 1, 2"),
    ],
)
def test_what_gives_no_classes_is_named(kind, values, message):
    with pytest.raises(UserError, match=message):
        find_classes("d", kind, values)


@given(hnp.arrays(np.int32, (4, 6), elements=st.sampled_from([-1, 0, 3, 7, 255])))
def test_every_pixel_has_its_class(values):
    classes = find_classes("d", "masks", [-1, 0, 3, 7, 255])
    found = class_of_pixels(values, classes)
    expected = np.vectorize({-1: IGNORE, 0: 0, 3: 1, 7: 2, 255: IGNORE}.get)(values)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint8


def test_a_value_that_was_not_there_is_no_class():
    classes = find_classes("d", "masks", [0, 3, 7])
    with pytest.raises(UnreadableImageError, match="value 5"):
        class_of_pixels(np.array([[0, 5]]), classes)
