import io
from base64 import b64decode

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pretrain.batches.batch import patchify
from pretrain.pages.pictures import (
    SET_COLOURS,
    choose_look,
    component_colours,
    data_uri,
    hatched,
    place_patches,
    set_map,
    with_holes,
)


@given(
    grid=st.integers(1, 5), patch_px=st.sampled_from([2, 4, 8]), num_bands=st.integers(1, 5), seed=st.integers(0, 99)
)
def test_patches_go_back_to_where_they_were_cut(grid, patch_px, num_bands, seed):
    rng = np.random.default_rng(seed)
    image = rng.random((num_bands, grid * patch_px, grid * patch_px), np.float32)
    patches = patchify(torch.from_numpy(image)[None], patch_px)[0].numpy()
    chosen = np.sort(rng.permutation(grid * grid)[: rng.integers(1, grid * grid + 1)])
    placed, seen = place_patches(patches[chosen], chosen, grid, num_bands)
    whole = image.transpose(1, 2, 0)
    assert np.array_equal(placed[seen], whole[seen])
    assert not placed[~seen].any()
    assert seen.sum() == len(chosen) * patch_px**2


def test_sets_have_their_colours():
    sets = {"student": np.array([0]), "learnable": np.array([3]), "teacher": np.array([1])}
    picture = set_map(sets, 2)
    assert picture[0, 0].tolist() == [*SET_COLOURS["student"], 255]
    assert picture[1, 1].tolist() == [*SET_COLOURS["learnable"], 255]
    assert picture[0, 1].tolist() == [*SET_COLOURS["teacher"], 255]
    assert picture[1, 0, 3] == 0


def test_what_nobody_sees_is_transparent_and_what_is_awaited_is_striped():
    seen = np.zeros((16, 16), bool)
    seen[:8] = True
    picture = with_holes(np.full((16, 16, 3), 200, np.uint8), seen)
    assert picture[0, 0].tolist() == [200, 200, 200, 255]
    assert picture[8, 0].tolist() == [0, 0, 0, 0]
    awaited = np.zeros((16, 16), bool)
    awaited[8:, :8] = True
    striped = hatched(picture, awaited)
    assert sorted(np.unique(striped[8:, :8, 3])) == [50, 190]
    assert np.array_equal(striped[~awaited], picture[~awaited])


@pytest.mark.parametrize(
    ("bands", "is_8_bit", "places", "is_stretched"),
    [
        (("red", "green", "blue"), True, (0, 1, 2), False),
        (("nir", "blue", "green", "red"), True, (3, 2, 1), False),
        (("red", "green", "blue"), False, (0, 1, 2), True),
        (("vv", "vh"), True, (0, 0, 0), True),
        (("b1", "b2", "b3", "b4"), True, (0, 1, 2), True),
    ],
)
def test_bands_are_chosen_and_stretched(bands, is_8_bit, places, is_stretched):
    tile = np.linspace(0.2, 0.3, 100 * len(bands), dtype=np.float32).reshape(10, 10, len(bands))
    look = choose_look(tile, bands, is_8_bit=is_8_bit)
    assert look.places == places
    low, high = np.percentile(tile[:, :, places], [2, 98]) if is_stretched else (0, 1)
    assert (look.low, look.high) == pytest.approx((low, high))
    picture = look(tile)
    assert (picture.min(), picture.max()) == ((0, 255) if is_stretched else (51, 76))


def test_a_constant_tile_has_a_picture():
    tile = np.full((4, 4, 1), 0.5, np.float32)
    assert choose_look(tile, ("height",), is_8_bit=False)(tile).tolist() == [[[0, 0, 0]] * 4] * 4


def test_components_are_the_directions_that_vary_most():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(500, 3)) * [9, 3, 1]
    axes = np.linalg.qr(rng.normal(size=(16, 16)))[0][:3]
    colours = component_colours((scores @ axes + 5).astype(np.float32)).astype(float)
    found = np.abs(np.corrcoef(colours.T, scores.T)[:3, 3:])
    assert (found.diagonal() > 0.97).all()
    assert (found[~np.eye(3, dtype=bool)] < 0.2).all()


@pytest.mark.parametrize("features", [np.ones((6, 4)), np.zeros((6, 4)), np.full((5, 2), 1e6)])
def test_features_that_are_all_alike_are_medium(features):
    assert set(component_colours(features.astype(np.float32)).ravel()) <= {127, 128}


def test_fewer_dimensions_than_colours():
    colours = component_colours(np.arange(10, dtype=np.float32)[:, None])
    assert colours[[0, -1], 0].tolist() == [0, 255]
    assert (colours[:, 1:] == 128).all()


def test_small_pictures_are_exact_and_large_ones_close():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (28, 28, 4), np.uint8)
    small[..., 3] = 255
    large = np.dstack([np.indices((256, 256)).sum(0) // 2] * 3).astype(np.uint8)
    for picture, error in ((small, 0), (large, 3)):
        head, _, data = data_uri(picture).partition(",")
        assert head == "data:image/webp;base64"
        back = np.asarray(Image.open(io.BytesIO(b64decode(data))), np.int64)
        # WebP leaves an alpha away that is opaque everywhere.
        assert np.abs(back - picture[..., :3]).mean() <= error
