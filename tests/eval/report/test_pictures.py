import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from sklearn.decomposition import PCA

from eval.protocols.task import Picture
from eval.report.pictures import beside, figures, gallery, pca_picture, pca_pictures


def test_components_are_those_of_scikit_learn():
    patches = np.random.default_rng(0).normal(size=(3, 8, 8, 20)) * np.linspace(4, 1, 20)
    colours = pca_pictures(patches.astype(np.float32)).reshape(-1, 3)
    scores = PCA(3).fit_transform(patches.reshape(-1, 20))
    for component in range(3):
        low, high = np.percentile(scores[:, component], [2, 98])
        expected = (255 * (scores[:, component] - low) / (high - low)).round().clip(0, 255)
        either_way = [expected, 255 - expected]
        assert min(np.abs(colours[:, component] - each).max() for each in either_way) <= 1


def test_two_regions_have_two_colours():
    patches = np.zeros((4, 6, 5), np.float32)
    patches[:, 3:] = [1, -2, 3, 0, 0]
    picture = pca_picture(patches)
    assert (picture.shape, picture.dtype) == ((4, 6, 3), np.uint8)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 2
    # There is one component: the other colours are medium.
    assert set(np.unique(picture[..., 1:])) == {128}


def test_a_colour_means_the_same_in_all_images():
    draw = np.random.default_rng(1)
    patches = draw.normal(size=(2, 4, 4, 6)).astype(np.float32)
    patches[1, 2, 3] = patches[0, 0, 0]
    pictures = pca_pictures(patches)
    assert (pictures[1, 2, 3] == pictures[0, 0, 0]).all()


@given(arrays(np.float32, (2, 3, 4, 2), elements=st.floats(-1e6, 1e6, width=32)))
def test_any_features_have_a_picture(patches):
    assert pca_pictures(patches).shape == (2, 3, 4, 3)


def test_pictures_lie_beside_each_other_at_one_height():
    patches = np.full((2, 3, 3), 7, np.uint8)
    picture = beside([np.zeros((40, 20, 3), np.uint8), patches], height_px=20)
    assert picture.shape == (20, 10 + 6 + 30, 3)
    assert (picture[:, 10:16] == 255).all()
    assert (picture[:, 16:] == 7).all()


def _grey(level, height=30, width=40):
    return np.full((height, width, 3), level, np.uint8)


def test_a_gallery_has_a_line_for_each_query():
    images = {place: _grey(20 * place) for place in range(6)}
    pixels = gallery(images, [[0, 1, 2], [3, 4, 5]], tile_px=10).pixels
    assert pixels.shape == (26, 60, 3)
    # Centres of the tiles: the query, then what was found, 12 px further right for the gap.
    assert pixels[5, [5, 39, 55], 0].tolist() == [0, 20, 40]
    assert pixels[21, [5, 39, 55], 0].tolist() == [60, 80, 100]


def test_a_gallery_says_what_is_right():
    images = {place: _grey(128) for place in range(3)}
    labels = np.array([1, 1, 0])
    picture = gallery(images, [[0, 1, 2]], labels, tile_px=40)
    query, right, wrong = (picture.pixels[:, left : left + 40] for left in (0, 64, 110))
    assert len(np.unique(query)) == 1
    assert right[0, 0].tolist() == [31, 111, 139]
    assert wrong[0, 0].tolist() == [190, 92, 50]
    assert right[20, 20].tolist() == [128, 128, 128]
    assert wrong[20, 19].tolist() == [190, 92, 50], "crossed"
    assert "blue frame: of its class" in picture.caption


@pytest.mark.parametrize("shape", [(1, 1), (5, 300), (64, 64)])
def test_a_gallery_takes_images_of_any_size(shape):
    assert gallery({0: _grey(9, *shape)}, [[0, 0]], tile_px=16).pixels.shape == (16, 56, 3)


def test_a_picture_keeps_its_colours():
    pixels = np.kron(np.array([[[0, 114, 178], [230, 159, 0]]]), np.ones((64, 64, 1))).astype(np.uint8)
    found = figures("d", "m", "linear", Picture(caption="c", pixels=pixels))
    assert {name: found[name] for name in ("data", "model", "protocol", "caption")} == {
        "data": "d", "model": "m", "protocol": "linear", "caption": "c",
    }  # fmt: skip
    with Image.open(io.BytesIO(base64.b64decode(found["webp"]))) as image:
        shown = np.asarray(image.convert("RGB")).astype(int)
    assert shown.shape == pixels.shape
    away_from_the_border = [*range(60), *range(68, 128)]
    assert np.abs(shown - pixels)[:, away_from_the_border].max() <= 6
