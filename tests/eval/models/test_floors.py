import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from eval.models.floors import CELL_PX, floor_model
from shards.errors import UserError
from shards.keyed import generator

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 24, 20, 3)).astype(np.uint8)


def _embed(name, images=IMAGES):
    return floor_model(name).embed(torch.from_numpy(images))


def test_image_stats_of_an_image_and_of_its_cells_are_numpy_s():
    embedded = _embed("image_stats")
    whole = IMAGES / 255
    expected = np.concatenate([whole.mean(axis=(1, 2)), whole.std(axis=(1, 2))], axis=1)
    np.testing.assert_allclose(embedded.pooled["stats"], expected, atol=1e-6)
    assert embedded.patches.shape == (3, 3, 3, 6)
    # The last column of cells is cut off by the border: it counts the four columns of pixels that it has.
    cell = whole[:, 8:16, 16:20]
    expected = np.concatenate([cell.mean(axis=(1, 2)), cell.std(axis=(1, 2))], axis=1)
    np.testing.assert_allclose(embedded.patches[:, 1, 2], expected, atol=1e-6)


def test_image_stats_keep_small_deviations_of_large_values():
    images = (20_000 + np.random.default_rng(1).integers(0, 10, (1, 16, 16, 2))).astype(np.int16)
    embedded = _embed("image_stats", images)
    expected = images[0, 8:, :8].std(axis=(0, 1)) / 32767
    np.testing.assert_allclose(embedded.patches[0, 1, 0, 2:], expected, rtol=1e-2)


def test_random_conv_pools_the_responses_of_an_image_and_of_its_cells():
    draw = generator("random_conv", 3)
    weight = torch.from_numpy(draw.standard_normal((128, 3, 4, 4))).float()
    bias = torch.from_numpy(draw.uniform(-1, 1, 128)).float()
    responses = functional.conv2d(torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255 - 0.5, weight, bias)
    embedded = _embed("random_conv")
    expected = torch.cat([responses.relu().mean(dim=(2, 3)), (-responses).relu().mean(dim=(2, 3))], dim=1)
    torch.testing.assert_close(embedded.pooled["responses"], expected, atol=1e-5, rtol=1e-4)
    assert embedded.patches.shape == (3, 3, 3, 256)
    # A response belongs to the second pixel of its filter: cell (1, 1) has those of pixels 8…15.
    cell = responses[:, :, 7:15, 7:15]
    torch.testing.assert_close(embedded.patches[:, 1, 1, :128], cell.relu().mean(dim=(2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(embedded.patches[:, 1, 1, 128:], (-cell).relu().mean(dim=(2, 3)), atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=25)
@given(st.integers(4, 40), st.integers(4, 40), st.integers(1, 5), st.integers(0, 10**6))
def test_random_conv_is_a_convolution_rectified_and_pooled(height, width, num_bands, seed):
    """Of any size: cells that the border cuts off count what they have."""
    images = np.random.default_rng(seed).integers(0, 256, (2, height, width, num_bands)).astype(np.uint8)
    draw = generator("random_conv", num_bands)
    weight = torch.from_numpy(draw.standard_normal((128, num_bands, 4, 4))).float().double()
    bias = torch.from_numpy(draw.uniform(-1, 1, 128)).float().double()
    x = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255 - 0.5
    responses = functional.conv2d(functional.pad(x, (1, 2, 1, 2), mode="replicate"), weight, bias)
    both = torch.cat([responses.relu(), (-responses).relu()], dim=1)
    embedded = _embed("random_conv", images)
    inner = both[:, :, 1 : height - 2, 1 : width - 2].mean(dim=(2, 3)).float()
    torch.testing.assert_close(embedded.pooled["responses"], inner, atol=2e-5, rtol=1e-4)
    cells = functional.avg_pool2d(both, 8, ceil_mode=True, count_include_pad=False).permute(0, 2, 3, 1).float()
    torch.testing.assert_close(embedded.patches, cells, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["image_stats", "random_conv"])
@pytest.mark.parametrize("size", [(1, 1), (3, 9), (4, 2)])
def test_images_smaller_than_a_filter_have_features(name, size):
    """Small chips at an eighth of their size are."""
    embedded = _embed(name, IMAGES[:, : size[0], : size[1]])
    for values in (*embedded.pooled.values(), embedded.patches):
        assert torch.isfinite(values).all()


@pytest.mark.parametrize("name", ["image_stats", "random_conv"])
def test_floors_say_their_cell_and_have_no_network(name):
    model = floor_model(name)
    assert (model.patch_px, model.network, model.image_px) == (CELL_PX, None, None)
    assert torch.isfinite(_embed(name).patches).all()


def test_an_unknown_floor_is_refused():
    with pytest.raises(UserError, match="floor:cellar does not exist"):
        floor_model("cellar")
