"""What is done to colours, with torchvision's semantics: brightness, contrast, saturation, hue and grey.

Images are changed in place, in whatever unit their values have, and clamped to its range. Few passes over the values
and no large temporary ones: that is all the cost. Each operation rounds once per value (no fused multiply-add, whose
use differs between the middle and the ends of a loop) and sums run within a patch, then over patches. So an image comes
out the same, bit for bit, whatever else is in the batch and, on a CPU, for any number of threads.

Cost of all four in turn: 12 ns per pixel on one core, of which hue takes almost a half.

Shape legend: N images, C bands, P patches, Q pixels of a patch, K factors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

Factor = Tensor | float
"""One for each image, float32 [N, 1, 1, 1], or the number where there is one image."""
NUM_FACTORS = 9
_BRIGHTNESS, _CONTRAST, _TO_MEAN, _SATURATION, _TO_LUMA, _HUE, _AHEAD, _BEHIND, _LEVEL = range(NUM_FACTORS)
NUM_SCRATCH = 6
"""Planes beside an image's own that operations on red, green and blue need."""
_GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision rounds them


@dataclass(frozen=True, kw_only=True)
class Planes:
    """Images to be changed, and room for what comes between."""

    x_NCPQ: Tensor
    """float32 in 0…high."""
    high: float
    channels: tuple[Tensor, ...] = ()
    """Red, green and blue of the images, each [N, 1, P, Q]; empty where they have other bands."""
    scratch_N3PQ: Tensor | None = None
    scratch: tuple[Tensor, ...] = ()
    """Its planes, and three more."""


def planes_of(x_NCPQ: Tensor, high: float) -> Planes:
    """Take bands that are not red, green and blue."""
    return Planes(x_NCPQ=x_NCPQ, high=high)


def planes_of_rgb(x_N3PQ: Tensor, high: float, scratch_NSPQ: Tensor) -> Planes:
    """Take red, green and blue, and NUM_SCRATCH planes of any values."""
    return Planes(
        x_NCPQ=x_N3PQ,
        high=high,
        channels=torch.chunk(x_N3PQ, 3, 1),
        scratch_N3PQ=scratch_NSPQ[:, :3],
        scratch=torch.chunk(scratch_NSPQ, NUM_SCRATCH, 1),
    )


def make_factors(amount_N4: Tensor) -> Tensor:
    """Return all that operations multiply with: float32 [N, K].

    Args:
        amount_N4: factors of brightness, contrast and saturation; shift of hue in turns.
    """
    brightness_N, contrast_N, saturation_N, shift_N = amount_N4.unbind(1)
    hue_N3, level_N = _hue_weights(shift_N)
    columns = (brightness_N, contrast_N, 1 - contrast_N, saturation_N, 1 - saturation_N, *hue_N3.unbind(1), level_N)
    return torch.stack(columns, 1)


def brightness(planes: Planes, factors: Sequence[Factor]) -> None:
    """Scale all values, in place as all operations do. `factors` are the K columns of `make_factors`."""
    planes.x_NCPQ.mul_(factors[_BRIGHTNESS]).clamp_(0, planes.high)


def contrast(planes: Planes, factors: Sequence[Factor]) -> None:
    """Scale the distance to the mean of the luma."""
    red, green, blue = torch.chunk(_means(planes.x_NCPQ).mul_(_grey_weights(planes.x_NCPQ.device)), 3, 1)
    _turn_around(planes, red.add_(green).add_(blue), factors[_CONTRAST], factors[_TO_MEAN])


def contrast_of_bands(planes: Planes, factors: Sequence[Factor]) -> None:
    """Scale each band's distance to its own mean."""
    _turn_around(planes, _means(planes.x_NCPQ), factors[_CONTRAST], factors[_TO_MEAN])


def saturation(planes: Planes, factors: Sequence[Factor]) -> None:
    """Scale the distance to the luma."""
    _turn_around(planes, _luma(planes), factors[_SATURATION], factors[_TO_LUMA])


def grey(planes: Planes, factors: Sequence[Factor]) -> None:
    """Set red, green and blue to the luma."""
    planes.x_NCPQ.copy_(_luma(planes))


def hue(planes: Planes, factors: Sequence[Factor]) -> None:
    """Turn the hue of HSV by a share of the colour circle, -0.5…0.5.

    The largest and the smallest of (r, g, b) stay. Over the hue h, in sixths of the circle, red is a trapezoid: largest
    for |h| ≤ 1, smallest for |h| ≥ 2, linear between. Green and blue are the same, 2 and 4 later. So r - g falls by one
    chroma per sixth over 0…2, where blue is smallest, and rises over -3…-1, where blue is largest. A shift by t in 0…1
    therefore makes of red

        clamp(r - g + (2 t - 1) b + (1 - t) (largest + smallest), smallest, largest),

    without a case, a division or a remainder. Green and blue follow in cyclic order. A negative shift exchanges the
    second and the third weight; 2 sixths more move all weights on by one channel.
    """
    (red, green, blue), turned = planes.channels, planes.scratch_N3PQ
    *turned_channels, largest, smallest, part = planes.scratch
    assert turned is not None
    torch.maximum(torch.maximum(red, green, out=largest), blue, out=largest)
    torch.minimum(torch.minimum(red, green, out=smallest), blue, out=smallest)
    torch.mul(planes.x_NCPQ, factors[_HUE], out=turned)
    for factor, channels in ((factors[_AHEAD], (green, blue, red)), (factors[_BEHIND], (blue, red, green))):
        for into, channel in zip(turned_channels, channels, strict=True):
            into.add_(torch.mul(channel, factor, out=part))
    torch.add(largest, smallest, out=part).mul_(factors[_LEVEL])
    torch.clamp(turned.add_(part), smallest, largest, out=planes.x_NCPQ)


Operation = Callable[[Planes, Sequence[Factor]], None]


def _turn_around(planes: Planes, centre: Tensor, factor: Factor, rest: Factor) -> None:
    """Make factor · x + rest · centre of the images; the centre's values are lost."""
    planes.x_NCPQ.mul_(factor).add_(centre.mul_(rest)).clamp_(0, planes.high)


def _luma(planes: Planes) -> Tensor:
    """Return the weighted sum of red, green and blue [N, 1, P, Q], in the scratch."""
    red, green, blue = planes.scratch[:3]
    torch.mul(planes.x_NCPQ, _grey_weights(planes.x_NCPQ.device), out=planes.scratch_N3PQ)
    return red.add_(green).add_(blue)


@cache
def _grey_weights(device: torch.device) -> Tensor:
    return torch.tensor(_GREY_WEIGHTS).view(3, 1, 1).to(device)


def _means(x_NCPQ: Tensor) -> Tensor:
    """Return the mean of each band [N, C, 1, 1]."""
    # In two steps: a sum that has one result alone is shared out among threads, and comes out in another way.
    return x_NCPQ.sum(-1, keepdim=True).sum(-2, keepdim=True).div_(x_NCPQ.shape[2] * x_NCPQ.shape[3])


def _hue_weights(shift_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a channel, its next and its next but one are multiplied with [N, 3], and the level's factor [N]."""
    sixths_N = 6 * shift_N
    channels_N = (sixths_N / 2).round()
    t_N = sixths_N - 2 * channels_N
    ones_N, other_N = torch.ones_like(t_N), 2 * t_N.abs() - 1
    ahead_N = torch.where(t_N < 0, other_N, -ones_N)
    behind_N = torch.where(t_N < 0, -ones_N, other_N)
    moved_N3 = torch.arange(3) + channels_N[:, None].long()
    return torch.stack([ones_N, ahead_N, behind_N], 1).gather(1, moved_N3 % 3), 1 - t_N.abs()
