import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as reference

from pretrain.batches import operations

TOLERANCE = 1 / 255
AMOUNTS = {
    "brightness": (0.0, 0.6, 1.0, 1.4, 2.0),
    "contrast": (0.0, 0.6, 1.0, 1.4, 2.0),
    "saturation": (0.0, 0.8, 1.0, 1.2, 2.0),
    "hue": (-0.5, -0.31, -0.1, 0.0, 0.07, 0.25, 1 / 6, 0.5),
}


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.random((5, 3, 16, 16), np.float32))
    noise[1, :, :8] = 0.5  # grey: the hue is undefined
    noise[2, 0] = noise[2, 1]  # two channels tie for the largest
    noise[3] = noise[3].round()  # the corners of the colour cube
    noise[4] = noise[4] ** 4  # dark
    return noise


def apply(name, images, amounts, high=1.0):
    x = images * high
    amount_N4 = torch.as_tensor(amounts, dtype=torch.float32).expand(len(x))[:, None].expand(-1, 4)
    if x.shape[1] == 3:
        planes = operations.planes_of_rgb(x, high, torch.empty(len(x), operations.NUM_SCRATCH, *x.shape[2:]))
    else:
        planes = operations.planes_of(x, high)
    factor_NK = operations.make_factors(amount_N4)
    assert factor_NK.shape == (len(x), operations.NUM_FACTORS)
    columns = factor_NK.t()[:, :, None, None, None].unbind(0)
    getattr(operations, name)(planes, columns if len(x) > 1 else factor_NK[0].tolist())
    return x / high


@pytest.mark.parametrize(("name", "amount"), [(n, a) for n, amounts in AMOUNTS.items() for a in amounts])
def test_operation_equals_torchvision(images, name, amount):
    theirs = getattr(reference, f"adjust_{name}")(images, amount)
    assert (apply(name, images, amount) - theirs).abs().max() < TOLERANCE


def test_grey_equals_torchvision(images):
    theirs = reference.rgb_to_grayscale(images, num_output_channels=3)
    assert (apply("grey", images, 1.0) - theirs).abs().max() < TOLERANCE


@given(st.lists(st.floats(-0.5, 0.5, width=32), min_size=1, max_size=6), st.integers(0, 10**6))
@settings(deadline=None, max_examples=50)
def test_each_image_has_its_own_shift_of_hue(shifts, seed):
    images = torch.from_numpy(np.random.default_rng(seed).integers(0, 5, (len(shifts), 3, 4, 4)).astype(np.float32) / 4)
    theirs = torch.stack([reference.adjust_hue(image, s) for image, s in zip(images, shifts, strict=True)])
    assert (apply("hue", images, torch.tensor(shifts)) - theirs).abs().max() < TOLERANCE


@pytest.mark.parametrize("amount", [-0.4, 0.0, 1.3])
def test_factors_come_as_numbers_for_one_image(images, amount):
    for name in [*AMOUNTS, "grey"]:
        alone = [apply(name, image[None], amount) for image in images]
        assert torch.equal(torch.cat(alone), apply(name, images, amount))


@pytest.mark.parametrize("name", AMOUNTS)
def test_the_unit_of_the_values_does_not_matter(images, name):
    amount = AMOUNTS[name][1]
    torch.testing.assert_close(apply(name, images, amount, high=255.0), apply(name, images, amount))


def test_bands_turn_around_their_own_means():
    bands = torch.tensor([0.2, 0.4, 0.3, 0.9]).reshape(1, 2, 1, 2)
    expected = torch.tensor([0.25, 0.35, 0.45, 0.75]).reshape(1, 2, 1, 2)
    torch.testing.assert_close(apply("contrast_of_bands", bands, 0.5), expected)


@pytest.mark.parametrize("name", [*AMOUNTS, "contrast_of_bands", "grey"])
def test_an_image_is_the_same_bit_for_bit_in_any_batch_and_with_any_threads(name):
    # Sizes that no vector and no share of a thread divides; the largest are worth several threads.
    for patches, pixels in ((7, 49), (3, 16), (131, 196)):
        images = torch.from_numpy(np.random.default_rng(1).random((6, 3, patches, pixels), np.float32))
        amounts = torch.tensor([0.3, -0.1, 0.45, 0.07, -0.4, 0.2]) + (name != "hue")
        together = apply(name, images, amounts)
        for threads in (2, 3):
            torch.set_num_threads(threads)  # the fixture one_thread puts them back
            assert torch.equal(apply(name, images, amounts), together)
            assert torch.equal(apply(name, images[4:5], amounts[4:5])[0], together[4])
        torch.set_num_threads(1)
        alone = [apply(name, images[i : i + 1], amounts[i : i + 1]) for i in range(6)]
        assert torch.equal(torch.cat(alone), together)
