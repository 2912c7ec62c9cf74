"""Crops and colours of one sample's views: drawn per sample, view and purpose, cut in the loader's worker.

Both sides of a view share the crop and the flips; only their colours differ, and these are made on the device.
So one integer crop per view leaves the worker. Cost: about 60 µs per drawn view, 50 µs per 64 px crop.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pretrain.config import ColourConfig, ViewsConfig
from shards.keyed import generator

_ATTEMPTS = 10  # as torchvision's RandomResizedCrop


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A window of the tile, in pixels, and the flips that follow."""

    top: int
    left: int
    height: int
    width: int
    flip_horizontal: bool
    flip_vertical: bool


def draw_crop(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip: float,
) -> Crop:
    """Draw a crop as torchvision's RandomResizedCrop does: uniform area, log-uniform width by height.

    Where no attempt fits into the tile, the largest centred window within the ratios is taken.
    """
    areas = height * width * rng.uniform(*scale, size=_ATTEMPTS)
    ratios = np.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]), size=_ATTEMPTS))
    widths, heights = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
    place_y, place_x, flip_x, flip_y = rng.random(4)
    fits = np.flatnonzero((widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height))
    if fits.size:
        w, h = int(widths[fits[0]]), int(heights[fits[0]])
        top, left = int(place_y * (height - h + 1)), int(place_x * (width - w + 1))
    else:
        w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
        top, left = (height - h) // 2, (width - w) // 2
    return Crop(
        top=top,
        left=left,
        height=h,
        width=w,
        flip_horizontal=bool(flip_x < flip),
        flip_vertical=bool(flip_y < flip),
    )


def cut(pixels_HWC: NDArray[np.uint8] | NDArray[np.float32], crop: Crop, side_px: int) -> Tensor:
    """Cut, resize (bilinear with antialias) and flip: [C, side, side] of the same type."""
    window = pixels_HWC[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    image_NCHW = torch.from_numpy(window.copy()).permute(2, 0, 1)[None]
    resized = functional.interpolate(image_NCHW, (side_px, side_px), mode="bilinear", antialias=True)[0]
    flips = [axis for axis, wanted in ((2, crop.flip_horizontal), (1, crop.flip_vertical)) if wanted]
    return resized.flip(flips) if flips else resized


def view_names(views: ViewsConfig) -> tuple[list[str], list[str]]:
    """Return the names of the global and of the local views; they key all draws."""
    return [f"global{i}" for i in range(views.num_global)], [f"local{i}" for i in range(views.num_local)]


def cut_view(
    pixels_HWC: NDArray[np.uint8] | NDArray[np.float32],
    views: ViewsConfig,
    side_px: int,
    visit: tuple[int, int, str],
    view: str,
) -> Tensor:
    """Draw and cut one view of a sample.

    Args:
        pixels_HWC: the tile.
        views: scales, ratios, flips.
        side_px: of the view.
        visit: (seed, epoch, sample key).
        view: its name, "global0", "local3"…
    """
    scale = views.global_scale if view.startswith("global") else views.local_scale
    height, width = pixels_HWC.shape[:2]
    rng = generator(*visit, "crop", view)
    return cut(pixels_HWC, draw_crop(rng, height, width, scale, views.ratio, views.flip), side_px)


PLAIN, JITTER, GREY = 0, 1, 2
NUM_OPERATIONS = 4
"""Brightness, contrast, saturation, hue: their numbers in `order`."""


@dataclass(frozen=True, kw_only=True)
class ColourDraws:
    """Colour perturbations of N images, in CPU memory: what to do with each, how much, in which order."""

    kind_N: Tensor
    """int64: PLAIN, JITTER or GREY."""
    amount_N4: Tensor
    """float32: factors of brightness, contrast, saturation; shift of hue in turns."""
    order_N4: Tensor
    """int64: the operation that comes first, second, third, fourth."""


def draw_colours(
    colour: ColourConfig, share: float, visits: Sequence[tuple[int, int, str]], view: str, side: str
) -> ColourDraws:
    """Draw one side's colours for a view of several samples, each from its own key.

    Args:
        colour: ranges.
        share: of the images that are perturbed at all.
        visits: (seed, epoch, sample key) of each sample.
        view: its name.
        side: "student" or "teacher".
    """
    n = len(visits)
    kinds, amounts = np.zeros(n, np.int64), np.ones((n, NUM_OPERATIONS), np.float32)
    orders = np.empty((n, NUM_OPERATIONS), np.int64)
    spans = np.array([colour.brightness, colour.contrast, colour.saturation, colour.hue])
    for i, visit in enumerate(visits):
        rng = generator(*visit, "colour", view, side)
        perturbed, grey = rng.random(2)
        if perturbed < share:
            kinds[i] = GREY if grey < colour.grey else JITTER
        amounts[i] = np.array([1, 1, 1, 0]) + spans * rng.uniform(-1, 1, NUM_OPERATIONS)
        orders[i] = rng.permutation(NUM_OPERATIONS)
    return ColourDraws(
        kind_N=torch.from_numpy(kinds), amount_N4=torch.from_numpy(amounts), order_N4=torch.from_numpy(orders)
    )


@dataclass(frozen=True, kw_only=True)
class ViewTensors:
    """All views of one size: normalised pixels of both sides and who sees which patches."""

    student_NCHW: Tensor
    teacher_NCHW: Tensor
    student_indices_NP: Tensor
    learnable_indices_NP: Tensor
    teacher_indices_NP: Tensor
