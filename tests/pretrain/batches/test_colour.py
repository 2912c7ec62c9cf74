from itertools import permutations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from pretrain.batches import colour as colour_module
from pretrain.batches.colour import Colour
from pretrain.batches.views import GREY, JITTER, PLAIN, ColourDraws

TOLERANCE = 1 / 255
NAMES = ("brightness", "contrast", "saturation", "hue")
PLAIN_RGB = Colour(value_range=255.0, mean=(0.0,) * 3, std=(1.0,) * 3, rgb=(0, 1, 2))
NUM_PATCHES, PIXELS = 9, 16


def make_draws(kinds, amounts, orders):
    return ColourDraws(kind_N=torch.tensor(kinds), amount_N4=torch.tensor(amounts), order_N4=torch.tensor(orders))


def random_draws(num_images, seed=0):
    """All orders in turn, and some images of the other kinds among them."""
    rng, orders = np.random.default_rng(seed), list(permutations(range(4)))
    kinds = [(JITTER, JITTER, GREY, JITTER, PLAIN)[i % 5] for i in range(num_images)]
    amounts = rng.uniform((0.6, 0.6, 0.8, -0.1), (1.4, 1.4, 1.2, 0.1), (num_images, 4)).astype(np.float32)
    return make_draws(kinds, amounts.tolist(), [orders[i % 24] for i in range(num_images)])


def take(draws, images):
    return ColourDraws(**{name: value[images] for name, value in vars(draws).items()})


def random_patches(num_images, num_bands=3, seed=0):
    shape = (num_images, NUM_PATCHES, num_bands * PIXELS)
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def random_sets(num_images, sizes, seed=0):
    rng = np.random.default_rng(seed)
    orders = torch.from_numpy(np.stack([rng.permutation(NUM_PATCHES) for _ in range(num_images)]))
    return [part.sort(1).values for part in orders.split(sizes, 1)]


def perturbed_by_torchvision(values_3PQ, kind, amounts, order):
    if kind == GREY:
        return reference.rgb_to_grayscale(values_3PQ, num_output_channels=3)
    for number in order if kind == JITTER else ():
        values_3PQ = getattr(reference, f"adjust_{NAMES[number]}")(values_3PQ, amounts[number])
    return values_3PQ


def expected(colour, patches, sets, draws):
    """One image after the other by torchvision: gathered, perturbed, normalised, cut into the sets."""
    rows, mean, std = [], torch.tensor(colour.mean)[:, None, None], torch.tensor(colour.std)[:, None, None]
    for i, given in enumerate(torch.cat(sets, 1)):
        planes = patches[i, given].float().reshape(len(given), -1, PIXELS).transpose(0, 1) / colour.value_range
        planes = perturbed_by_torchvision(
            planes, draws.kind_N[i], draws.amount_N4[i].tolist(), draws.order_N4[i].tolist()
        )
        rows.append(((planes - mean) / std).transpose(0, 1).flatten(1))
    return torch.stack(rows).split([part.shape[1] for part in sets], 1)


def test_each_image_has_its_own_kind_amounts_and_order():
    patches, sets, draws = random_patches(60), random_sets(60, [2, 3, 4])[:2], random_draws(60)
    colour = Colour(value_range=255.0, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), rgb=(0, 1, 2))
    for ours, theirs in zip(colour(patches, sets, draws), expected(colour, patches, sets, draws), strict=True):
        assert ours.dtype == torch.float32
        assert ours.is_contiguous()
        assert (ours - theirs).abs().max() < TOLERANCE
    changed = colour(patches, sets, draws)[0] != colour(patches, sets, take(draws, [4] * 60))[0]
    assert torch.equal(changed.flatten(1).any(1), draws.kind_N != PLAIN)


def test_nothing_of_the_patches_that_are_not_given_comes_through():
    patches, draws = random_patches(30), random_draws(30)
    student, learnable, teacher = random_sets(30, [2, 3, 4])
    spoilt = patches.clone()
    spoilt[torch.arange(30)[:, None], teacher] = 255
    for ours, others in zip(
        PLAIN_RGB(patches, [student, learnable], draws), PLAIN_RGB(spoilt, [student, learnable], draws), strict=True
    ):
        assert torch.equal(ours, others)
    assert not torch.equal(PLAIN_RGB(patches, [teacher], draws)[0], PLAIN_RGB(spoilt, [teacher], draws)[0])


def test_an_image_is_the_same_bit_for_bit_in_any_batch():
    patches, sets, draws = random_patches(50), random_sets(50, [2, 7]), random_draws(50)
    together = PLAIN_RGB(patches, sets, draws)
    for images in ([3], [7, 4], list(range(20, 50))):
        alone = PLAIN_RGB(patches[images], [part[images] for part in sets], take(draws, images))
        assert all(torch.equal(whole[images], part) for whole, part in zip(together, alone, strict=True))


def test_chunks_and_threads_change_nothing(monkeypatch):
    patches, sets, draws = random_patches(50), random_sets(50, [2, 7]), random_draws(50)
    together = PLAIN_RGB(patches, sets, draws)[1]
    monkeypatch.setattr(colour_module, "_CHUNK_BYTES", 1)
    assert torch.equal(PLAIN_RGB(patches, sets, draws)[1], together)
    torch.set_num_threads(3)
    monkeypatch.setattr(colour_module, "_CHUNK_BYTES", 2**13)
    assert torch.equal(PLAIN_RGB(patches, sets, draws)[1], together)


def test_all_at_once_as_on_an_accelerator_gives_the_same(monkeypatch):
    patches, sets, draws = random_patches(50), random_sets(50, [2, 3, 4])[:2], random_draws(50)
    in_chunks = PLAIN_RGB(patches, sets, draws)
    one = colour_module._one_chunk(draws, torch.device("cpu"))
    monkeypatch.setattr(colour_module, "_plan", lambda *_: (50, [one]))
    at_once = PLAIN_RGB(patches, sets, draws)
    assert all(torch.equal(a, b) for a, b in zip(in_chunks, at_once, strict=True))


@pytest.mark.parametrize("kind", [JITTER, GREY])
def test_hue_saturation_and_grey_concern_red_green_and_blue_alone(kind):
    rgb = random_patches(3)
    planes = rgb.reshape(3, NUM_PATCHES, 3, PIXELS)
    # nir, blue, green, red, swir
    five = torch.cat([planes[:, :, :1], planes[:, :, [2, 1, 0]], planes[:, :, :1] // 2], 2).flatten(2)
    colour = Colour(value_range=255.0, mean=(0.0,) * 5, std=(1.0,) * 5, rgb=(3, 2, 1))
    draws = make_draws([kind] * 3, [[1.0, 1.0, 1.2, 0.1]] * 3, [[0, 1, 2, 3]] * 3)
    sets = random_sets(3, [4, 5])[:1]
    ours = colour(five, sets, draws)[0].reshape(3, 4, 5, PIXELS)
    plain = colour(five, sets, take(make_draws([PLAIN], [[1.0] * 4], [[0, 1, 2, 3]]), [0, 0, 0]))[0]
    torch.testing.assert_close(ours[:, :, [0, 4]], plain.reshape(3, 4, 5, PIXELS)[:, :, [0, 4]])
    torch.testing.assert_close(ours[:, :, [3, 2, 1]].flatten(2), PLAIN_RGB(rgb, sets, draws)[0])
    assert (ours - plain.reshape(ours.shape)).abs().max() > TOLERANCE


@pytest.mark.parametrize(("num_bands", "rgb"), [(3, ()), (2, ()), (1, ()), (6, (0, 1, 2))])
def test_other_bands_get_brightness_and_contrast_around_their_own_means(num_bands, rgb):
    patches, sets = random_patches(2, num_bands), random_sets(2, [5, 4])[:1]
    colour = Colour(value_range=255.0, mean=(0.0,) * num_bands, std=(1.0,) * num_bands, rgb=rgb)
    draws = make_draws([JITTER] * 2, [[1.3, 0.7, 1.2, 0.1]] * 2, [[3, 1, 2, 0]] * 2)
    ours = colour(patches, sets, draws)[0].reshape(2, 5, num_bands, PIXELS)
    for i in range(2):
        for band in range(num_bands)[len(rgb) :]:
            values = patches[i, sets[0][i]].reshape(5, num_bands, PIXELS)[:, band].float() / 255
            turned = (0.7 * values + 0.3 * values.mean()).clamp(0, 1)
            torch.testing.assert_close(ours[i, :, band], (1.3 * turned).clamp(0, 1))


def test_normalisation_is_in_shares_of_the_value_range():
    patches = torch.full((1, NUM_PATCHES, 3 * PIXELS), 51, dtype=torch.uint8)
    draws = make_draws([PLAIN], [[1.0, 1.0, 1.0, 0.0]], [[0, 1, 2, 3]])
    colour = Colour(value_range=255.0, mean=(0.1, 0.2, 0.3), std=(0.1, 0.1, 0.2), rgb=(0, 1, 2))
    ours = colour(patches, [torch.tensor([[0]])], draws)[0].reshape(3, PIXELS)
    torch.testing.assert_close(ours[:, 0], torch.tensor([1.0, 0.0, -0.5]))
    wide = Colour(value_range=65535.0, mean=(0.1,) * 3, std=(0.1,) * 3, rgb=(0, 1, 2))
    ours = wide(torch.full((1, NUM_PATCHES, 3 * PIXELS), 13107.0), [torch.tensor([[0]])], draws)[0]
    torch.testing.assert_close(ours, torch.ones(1, 1, 3 * PIXELS))


def test_an_empty_set_is_empty():
    sets = [torch.tensor([[0, 4]] * 2), torch.empty(2, 0, dtype=torch.int64)]
    student, learnable = PLAIN_RGB(random_patches(2), sets, random_draws(2))
    assert student.shape == (2, 2, 3 * PIXELS)
    assert learnable.shape == (2, 0, 3 * PIXELS)
