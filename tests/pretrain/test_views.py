import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as reference

from pretrain.config import ViewsConfig
from pretrain.views import Crop, cut, cut_view, draw_crop
from shards.keyed import generator


@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 10**6))
def test_crops_lie_inside_the_tile(height, width, seed):
    crop = draw_crop(generator(seed), height, width, (0.05, 1.0), (0.75, 1.33), 0.5)
    assert crop.height >= 1
    assert crop.width >= 1
    assert 0 <= crop.top <= height - crop.height
    assert 0 <= crop.left <= width - crop.width


def test_areas_and_ratios_cover_their_ranges():
    crops = [draw_crop(generator(i), 200, 200, (0.4, 1.0), (0.75, 1.33), 0.5) for i in range(500)]
    areas = np.array([crop.height * crop.width for crop in crops]) / 200**2
    ratios = np.array([crop.width / crop.height for crop in crops])
    assert 0.38 < areas.min() < 0.45
    assert 0.9 < areas.max() <= 1
    assert 0.73 < ratios.min() < 0.85
    assert 1.2 < ratios.max() < 1.36
    assert 0.4 < np.mean([crop.flip_horizontal for crop in crops]) < 0.6
    assert 0.4 < np.mean([crop.flip_vertical for crop in crops]) < 0.6


def test_cut_equals_torchvision():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    crop = Crop(top=5, left=7, height=40, width=33, flip_horizontal=True, flip_vertical=False)
    theirs = reference.resized_crop(torch.from_numpy(pixels).permute(2, 0, 1), 5, 7, 40, 33, [24, 24], antialias=True)
    ours = cut(pixels, crop, 24).int()
    assert (ours - reference.horizontal_flip(theirs).int()).abs().max() <= 1


def test_flips_turn_the_named_axis():
    pixels = np.arange(2 * 3, dtype=np.uint8).reshape(2, 3, 1).repeat(2, 0)[:3]
    whole = {"top": 0, "left": 0, "height": 3, "width": 3}
    plain = cut(pixels, Crop(**whole, flip_horizontal=False, flip_vertical=False), 3)
    assert torch.equal(cut(pixels, Crop(**whole, flip_horizontal=True, flip_vertical=False), 3), plain.flip(2))
    assert torch.equal(cut(pixels, Crop(**whole, flip_horizontal=False, flip_vertical=True), 3), plain.flip(1))


def test_a_view_is_a_function_of_its_key():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    keys = [
        ((0, 0, "a"), "global0"),
        ((0, 1, "a"), "global0"),
        ((0, 0, "b"), "global0"),
        ((0, 0, "a"), "global1"),
    ]
    crops = [cut_view(pixels, ViewsConfig(), 32, visit, view) for visit, view in keys]
    assert torch.equal(crops[0], cut_view(pixels, ViewsConfig(), 32, *keys[0]))
    assert all(not torch.equal(crops[0], other) for other in crops[1:])
