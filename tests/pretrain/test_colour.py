import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from pretrain import colour
from pretrain.colour import Colour, perturb
from pretrain.config import ColourConfig
from pretrain.views import GREY, JITTER, PLAIN, ColourDraws, draw_colours

TOLERANCE = 1 / 255
AMOUNTS = {
    "brightness": (0.6, 1.0, 1.4),
    "contrast": (0.6, 1.0, 1.4),
    "saturation": (0.8, 1.2),
    "hue": (-0.1, 0.07),
}


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.random((3, 3, 16, 16), np.float32))
    noise[1, :, :8] = 0.5  # grey: the hue is undefined
    noise[2, 0] = noise[2, 1]  # two channels tie for the largest
    return noise


@pytest.mark.parametrize(("name", "amount"), [(n, a) for n, amounts in AMOUNTS.items() for a in amounts])
def test_operation_equals_torchvision(images, name, amount):
    ours = getattr(colour, name)(images, torch.full((3, 1, 1, 1), amount))
    theirs = getattr(reference, f"adjust_{name}")(images, amount)
    assert (ours - theirs).abs().max() < TOLERANCE


def test_grey_equals_torchvision(images):
    draws = make_draws([GREY] * 3, [[1, 1, 1, 0]] * 3, [[0, 1, 2, 3]] * 3)
    theirs = reference.rgb_to_grayscale(images, num_output_channels=3)
    assert (perturb(images, draws) - theirs).abs().max() < TOLERANCE


def make_draws(kinds, amounts, orders):
    return ColourDraws(kind_N=torch.tensor(kinds), amount_N4=torch.tensor(amounts), order_N4=torch.tensor(orders))


def test_each_image_has_its_own_order(images):
    orders = [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]]
    amount = [1.4, 0.6, 1.2, 0.1]
    ours = perturb(images, make_draws([JITTER, JITTER, PLAIN], [amount] * 3, orders))
    names = list(AMOUNTS)
    for i in (0, 1):
        expected = images[i]
        for number in orders[i]:
            expected = getattr(reference, f"adjust_{names[number]}")(expected, amount[number])
        assert (ours[i] - expected).abs().max() < TOLERANCE
    assert torch.equal(ours[2], images[2])


def test_other_bands_keep_hue_and_saturation_of_the_rest(images):
    five = torch.cat([images[:, :1], images[:, [2, 1, 0]], images[:, :1] * 0.5], 1)  # nir, blue, green, red, swir
    normalise = Colour(value_range=1.0, mean=(0.0,) * 5, std=(1.0,) * 5, rgb=(3, 2, 1))
    draws = make_draws([JITTER] * 3, [[1.0, 1.0, 1.2, 0.1]] * 3, [[0, 1, 2, 3]] * 3)
    ours = normalise(five, draws)
    torch.testing.assert_close(ours[:, [0, 4]], five[:, [0, 4]])
    torch.testing.assert_close(ours[:, [3, 2, 1]], perturb(images, draws))
    assert (ours[:, [3, 2, 1]] - images).abs().max() > TOLERANCE


def test_normalisation_is_in_shares_of_the_value_range():
    crops = torch.full((1, 3, 4, 4), 51, dtype=torch.uint8)
    draws = make_draws([PLAIN], [[1.0, 1.0, 1.0, 0.0]], [[0, 1, 2, 3]])
    normalise = Colour(value_range=255.0, mean=(0.1, 0.2, 0.3), std=(0.1, 0.1, 0.2), rgb=(0, 1, 2))
    torch.testing.assert_close(normalise(crops, draws)[0, :, 0, 0], torch.tensor([1.0, 0.0, -0.5]))


def test_draws_follow_the_configured_shares_and_ranges():
    visits = [(0, 0, str(i)) for i in range(2000)]
    config = ColourConfig()
    draws = draw_colours(config, 0.8, visits, "global0", "student")
    shares = torch.bincount(draws.kind_N, minlength=3) / 2000
    assert shares.tolist() == pytest.approx([0.2, 0.72, 0.08], abs=0.04)
    low, high = draws.amount_N4.amin(0), draws.amount_N4.amax(0)
    assert low.tolist() == pytest.approx([0.6, 0.6, 0.8, -0.1], abs=0.01)
    assert high.tolist() == pytest.approx([1.4, 1.4, 1.2, 0.1], abs=0.01)
    assert torch.equal(draws.order_N4.sort(1).values, torch.arange(4).expand(2000, 4))


def test_draws_depend_on_the_sample_not_on_the_batch():
    visits = [(0, 3, "a"), (0, 3, "b"), (0, 3, "c")]
    together = draw_colours(ColourConfig(), 0.8, visits, "local1", "teacher")
    alone = draw_colours(ColourConfig(), 0.8, visits[1:2], "local1", "teacher")
    assert torch.equal(together.amount_N4[1:2], alone.amount_N4)
    other_side = draw_colours(ColourConfig(), 0.8, visits, "local1", "student")
    assert not torch.equal(together.amount_N4, other_side.amount_N4)
