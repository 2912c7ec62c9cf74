import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as reference

from pretrain.batches.views import Crop, cut, draw_colours, draw_crops, group_bands, place_crops
from pretrain.config import ColourConfig, ViewsConfig
from shards.images import decode_image, encode_image
from shards.keyed import generator


def crops_of(seed, num, height, width, scale):
    return place_crops(generator(seed).random((num, 24)), height, width, scale, (0.75, 1.33), 0.5)


def cut_alone(pixels_HWC, crop, side_px):
    dtype = torch.uint8 if pixels_HWC.dtype == np.uint8 else torch.float32
    view = torch.empty(pixels_HWC.shape[2], side_px, side_px, dtype=dtype)
    cut(group_bands(pixels_HWC), crop, view)
    return view


@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 10**6))
def test_crops_lie_inside_the_tile(height, width, seed):
    for crop in crops_of(seed, 3, height, width, (0.05, 1.0)):
        assert crop.height >= 1
        assert crop.width >= 1
        assert 0 <= crop.top <= height - crop.height
        assert 0 <= crop.left <= width - crop.width


@pytest.mark.parametrize(("ratio", "size"), [((0.001, 0.002), (100, 1)), ((500.0, 1000.0), (1, 100))])
def test_a_ratio_narrower_than_a_pixel_leaves_one(ratio, size):
    (crop,) = place_crops(generator(0).random((1, 24)), 100, 100, (0.4, 1.0), ratio, 0.5)
    assert (crop.height, crop.width) == size


def test_areas_and_ratios_cover_their_ranges():
    crops = crops_of(0, 500, 200, 200, (0.4, 1.0))
    areas = np.array([crop.height * crop.width for crop in crops]) / 200**2
    ratios = np.array([crop.width / crop.height for crop in crops])
    assert 0.38 < areas.min() < 0.45
    assert 0.9 < areas.max() <= 1
    assert 0.73 < ratios.min() < 0.85
    assert 1.2 < ratios.max() < 1.36
    assert 0.4 < np.mean([crop.flip_horizontal for crop in crops]) < 0.6
    assert 0.4 < np.mean([crop.flip_vertical for crop in crops]) < 0.6


@pytest.mark.parametrize("num_bands", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.uint16])
def test_cut_equals_torchvision(num_bands, dtype):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, num_bands)).astype(dtype)
    crop = Crop(top=5, left=7, height=40, width=33, flip_horizontal=True, flip_vertical=False)
    planes = torch.from_numpy(pixels.astype(np.uint8 if dtype == np.uint8 else np.float32)).permute(2, 0, 1)
    theirs = reference.horizontal_flip(reference.resized_crop(planes, 5, 7, 40, 33, [24, 24], antialias=True))
    ours = cut_alone(pixels, crop, 24)
    assert ours.dtype == theirs.dtype
    assert (ours.float() - theirs.float()).abs().max() <= (1 if dtype == np.uint8 else 1e-3)


def test_flips_turn_the_named_axis():
    pixels = np.arange(2 * 3, dtype=np.uint8).reshape(2, 3, 1).repeat(2, 0)[:3]
    whole = {"top": 0, "left": 0, "height": 3, "width": 3}
    plain = cut_alone(pixels, Crop(**whole, flip_horizontal=False, flip_vertical=False), 3)
    assert torch.equal(plain, torch.from_numpy(pixels).permute(2, 0, 1))
    for flips, axes in (((True, False), [2]), ((False, True), [1]), ((True, True), [1, 2])):
        crop = Crop(**whole, flip_horizontal=flips[0], flip_vertical=flips[1])
        assert torch.equal(cut_alone(pixels, crop, 3), plain.flip(axes))


def test_crops_are_functions_of_their_keys():
    def draw(visit, size="global", num_views=2):
        return draw_crops(ViewsConfig(), 64, 64, visit, size, num_views)

    keys = [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b")]
    drawn = [crop for key in keys for crop in draw(key)] + draw((0, 0, "a"), "local")
    assert len(set(drawn)) == len(drawn) == 10
    # How many follow does not matter.
    assert draw((0, 0, "a"), num_views=7)[:2] == drawn[:2]
    assert draw((0, 0, "a"), "local", 1) == drawn[8:9]


def test_local_crops_are_smaller():
    views = ViewsConfig()
    for size, (low, high) in (("global", views.global_scale), ("local", views.local_scale)):
        crops = draw_crops(views, 500, 500, (0, 0, "a"), size, 300)
        areas = np.array([crop.height * crop.width for crop in crops]) / 500**2
        assert low - 0.01 < areas.min() < low + 0.1
        assert high - 0.1 < areas.max() < high + 0.01


def test_colours_follow_the_configured_shares_and_ranges():
    visits = [(0, 0, str(i)) for i in range(1000)]
    student, teacher = draw_colours(ColourConfig(), visits, "global", 2)
    for draws, shares in ((student, [0.2, 0.72, 0.08]), (teacher, [0.9, 0.09, 0.01])):
        assert (torch.bincount(draws.kind_N, minlength=3) / 2000).tolist() == pytest.approx(shares, abs=0.04)
        low, high = draws.amount_N4.amin(0), draws.amount_N4.amax(0)
        assert low.tolist() == pytest.approx([0.6, 0.6, 0.8, -0.1], abs=0.01)
        assert high.tolist() == pytest.approx([1.4, 1.4, 1.2, 0.1], abs=0.01)
        assert torch.equal(draws.order_N4.sort(1).values, torch.arange(4).expand(2000, 4))
        codes = (draws.order_N4 * torch.tensor([64, 16, 4, 1])).sum(1)
        # Binomial: mean 83, standard deviation 9, for each of the 24 orders.
        assert (torch.bincount(codes)[codes.unique()] - 2000 / 24).abs().max() < 5 * 9
        assert len(codes.unique()) == 24


def test_colours_depend_on_sample_size_view_and_side_alone():
    visits = [(0, 3, "a"), (0, 3, "b"), (0, 3, "c")]
    student, teacher = draw_colours(ColourConfig(), visits, "local", 4)
    alone, _ = draw_colours(ColourConfig(), visits[1:2], "local", 2)
    # View-major: view 1 of the second sample.
    for name, value in vars(alone).items():
        assert torch.equal(value, getattr(student, name)[[1, 4]])
    others, _ = draw_colours(ColourConfig(), visits, "global", 4)
    amounts = torch.cat([student.amount_N4, teacher.amount_N4, others.amount_N4])
    assert len(amounts.unique(dim=0)) == len(amounts) == 36


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_decoded_pictures_are_not_copied_and_give_the_same_views(encoding):
    encoded = encode_image(generator("picture").integers(0, 256, (40, 30, 3), np.uint8), encoding)
    decoded_HWC, pixels_HWC = decode_image(*encoded, padded=True), decode_image(*encoded)
    assert not np.shares_memory(group_bands(pixels_HWC), pixels_HWC)
    groups_GHWQ = group_bands(decoded_HWC)
    assert np.shares_memory(groups_GHWQ, decoded_HWC)
    assert groups_GHWQ.shape == (1, 40, 30, 4)
    for crop in (*crops_of(1, 5, 40, 30, (0.2, 1.0)), *crops_of(1, 1, 40, 30, (1.0, 1.0))):
        assert torch.equal(cut_alone(decoded_HWC, crop, 16), cut_alone(pixels_HWC, crop, 16))


@pytest.mark.parametrize("bands", [slice(1, 4), slice(2, None, -1), slice(0, 2)])
def test_other_bands_of_the_same_memory_are_copied(bands):
    memory_HW4 = generator("memory").integers(0, 256, (8, 6, 4), np.uint8)
    groups_GHWQ = group_bands(memory_HW4[:, :, bands])
    assert not np.shares_memory(groups_GHWQ, memory_HW4)
    num_bands = memory_HW4[:, :, bands].shape[2]
    assert (groups_GHWQ[0, :, :, :num_bands] == memory_HW4[:, :, bands]).all()
