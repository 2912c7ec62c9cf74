"""Colour perturbation and normalisation of a batch on the device, with torchvision's semantics per operation.

Images are float in 0…1 and are clamped after each operation. Each image has its own factors and its own order of
operations; the images that get an operation in a round are gathered by indices known on the CPU, so that an
accelerator never waits. Bands other than red, green and blue get brightness and contrast only.

Shape legend: N images, C bands, H height, W width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.views import GREY, JITTER, NUM_OPERATIONS, ColourDraws

_GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision rounds them


def grey(rgb_N3HW: Tensor) -> Tensor:
    """Return the luma of RGB images: [N, 1, H, W]."""
    red, green, blue = rgb_N3HW.unbind(1)
    r, g, b = _GREY_WEIGHTS
    return (r * red + g * green + b * blue).unsqueeze(1)


def brightness(x_NCHW: Tensor, factor_N111: Tensor) -> Tensor:
    """Scale all values."""
    return (x_NCHW * factor_N111).clamp(0, 1)


def contrast(x_NCHW: Tensor, factor_N111: Tensor) -> Tensor:
    """Scale the distance to the mean: of the luma where there are three bands, else of each band."""
    luminance = grey(x_NCHW) if x_NCHW.shape[1] == 3 else x_NCHW
    mean = luminance.mean((-2, -1), keepdim=True)
    return (mean + factor_N111 * (x_NCHW - mean)).clamp(0, 1)


def saturation(rgb_N3HW: Tensor, factor_N111: Tensor) -> Tensor:
    """Scale the distance to the luma."""
    luma = grey(rgb_N3HW)
    return (luma + factor_N111 * (rgb_N3HW - luma)).clamp(0, 1)


def hue(rgb_N3HW: Tensor, shift_N111: Tensor) -> Tensor:
    """Turn the hue of RGB images by a share of the colour circle, -0.5…0.5 (HSV, alternative formula)."""
    value, _ = rgb_N3HW.max(1)
    lowest, _ = rgb_N3HW.min(1)
    chroma = value - lowest
    red, green, blue = rgb_N3HW.unbind(1)
    safe = chroma.clamp_min(torch.finfo(chroma.dtype).tiny)
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    turned = sector + 6 * shift_N111[:, 0]
    channels = []
    for offset in (5, 3, 1):
        k = (offset + turned) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


_OPERATIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (brightness, contrast, saturation, hue)
_NUM_ANY_BAND = 2  # brightness and contrast make sense for every band


def perturb(x_NCHW: Tensor, draws: ColourDraws) -> Tensor:
    """Perturb images that have one meaning: three bands are RGB, any other number gets no hue and saturation."""
    is_rgb = x_NCHW.shape[1] == 3
    x_NCHW = x_NCHW.clone()
    for round_ in range(NUM_OPERATIONS):
        for number, operation in enumerate(_OPERATIONS[: None if is_rgb else _NUM_ANY_BAND]):
            chosen = (draws.kind_N == JITTER) & (draws.order_N4[:, round_] == number)
            rows = chosen.nonzero()[:, 0]
            if len(rows):
                amount = draws.amount_N4[rows, number].to(x_NCHW.device)[:, None, None, None]
                rows = rows.to(x_NCHW.device)
                x_NCHW[rows] = operation(x_NCHW[rows], amount)
    greyed = (draws.kind_N == GREY).nonzero()[:, 0].to(x_NCHW.device)
    if is_rgb and len(greyed):
        x_NCHW[greyed] = grey(x_NCHW[greyed]).expand(-1, 3, -1, -1)
    return x_NCHW


@dataclass(frozen=True, kw_only=True)
class Colour:
    """What turns integer crops into the two sides' inputs."""

    value_range: float
    """What 1.0 is in the crops' units: 255 for uint8."""
    mean: tuple[float, ...]
    """Per band, as a share of the value range."""
    std: tuple[float, ...]
    rgb: tuple[int, ...]
    """Places of red, green and blue among the bands; empty where they are not all there."""

    def __call__(self, crops_NCHW: Tensor, draws: ColourDraws) -> Tensor:
        """Return one side's images: float32, perturbed and normalised.

        Args:
            crops_NCHW: on the device, in the dataset's units.
            draws: one entry per image.
        """
        x_NCHW = crops_NCHW.float() / self.value_range
        others = [band for band in range(x_NCHW.shape[1]) if band not in self.rgb]
        if not others and self.rgb == (0, 1, 2):
            x_NCHW = perturb(x_NCHW, draws)
        else:
            x_NCHW = self._perturb_groups(x_NCHW, draws, others)
        mean = x_NCHW.new_tensor(self.mean)[:, None, None]
        std = x_NCHW.new_tensor(self.std)[:, None, None]
        return (x_NCHW - mean) / std

    def _perturb_groups(self, x_NCHW: Tensor, draws: ColourDraws, others: list[int]) -> Tensor:
        x_NCHW = x_NCHW.clone()
        if self.rgb:
            x_NCHW[:, self.rgb] = perturb(x_NCHW[:, self.rgb], draws)
        for band in others:
            # One by one: three bands together would be taken for red, green and blue.
            x_NCHW[:, band : band + 1] = perturb(x_NCHW[:, band : band + 1], draws)
        return x_NCHW
