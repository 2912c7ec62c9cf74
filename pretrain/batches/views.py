"""Crops and colours of the samples' views: drawn per sample, size of view and purpose, cut in the loader's worker.

Both sides of a view share the crop and the flips; only their colours differ, and these are made on the device.
So one integer crop per view leaves the worker. Cost on one core: 60 µs per drawn purpose and sample; 0.7 ms per 448 px
crop of a 512 px tile with three bands of 8 bits, 0.15 ms per 96 px crop.

Shape legend: V views of one size, B samples, N = V · B in view-major order, C bands, H height, W width, S side of a
view, G groups of Q bands.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pretrain.batches.masks import Visit
from pretrain.batches.parcels import Empty
from pretrain.config import ColourConfig, ViewsConfig
from shards.keyed import generator

Tile = NDArray[np.uint8] | NDArray[np.float32]
"""An image [G, H, W, Q], see `group_bands`."""
_ATTEMPTS = 10  # as torchvision's RandomResizedCrop
_CROP_DRAWS = 2 * _ATTEMPTS + 4
_BANDS_AT_ONCE = 4  # of 8 bits: torch resizes four interleaved ones twice as fast as three


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A window of the tile, in pixels, and the flips that follow."""

    top: int
    left: int
    height: int
    width: int
    flip_horizontal: bool
    flip_vertical: bool


def place_crops(
    uniform_NK: NDArray[np.float64],
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip: float,
) -> list[Crop]:
    """Place crops of a tile as torchvision's RandomResizedCrop does: uniform area, log-uniform width by height.

    Where none of ten attempts fits into the tile, the largest centred window within the ratios is taken.

    Args:
        uniform_NK: 24 numbers in [0, 1) of each crop: areas, ratios, place down, place across, flips.
        height: of the tile, pixels.
        width: of the tile, pixels.
        scale: lowest and highest area, as a share of the tile.
        ratio: lowest and highest width by height.
        flip: probability of each of the two flips.
    """
    areas_NA = height * width * (scale[0] + (scale[1] - scale[0]) * uniform_NK[:, :_ATTEMPTS])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ratios_NA = np.exp(low + (high - low) * uniform_NK[:, _ATTEMPTS : 2 * _ATTEMPTS])
    widths_NA, heights_NA = np.rint(np.sqrt(areas_NA * ratios_NA)), np.rint(np.sqrt(areas_NA / ratios_NA))
    fits_NA = (widths_NA >= 1) & (widths_NA <= width) & (heights_NA >= 1) & (heights_NA <= height)
    crops = []
    for row, attempt in enumerate(fits_NA.argmax(axis=1)):
        place_y, place_x, flip_x, flip_y = uniform_NK[row, 2 * _ATTEMPTS :].tolist()
        if fits_NA[row, attempt]:
            w, h = int(widths_NA[row, attempt]), int(heights_NA[row, attempt])
            top, left = int(place_y * (height - h + 1)), int(place_x * (width - w + 1))
        else:
            # Of a very narrow ratio a pixel is left, never nothing.
            w, h = (max(1, side) for side in (round(height * ratio[1]), round(width / ratio[0])))
            w, h = min(width, w), min(height, h)
            top, left = (height - h) // 2, (width - w) // 2
        flips = {"flip_horizontal": flip_x < flip, "flip_vertical": flip_y < flip}
        crops.append(Crop(top=top, left=left, height=h, width=w, **flips))
    return crops


def draw_crops(views: ViewsConfig, height: int, width: int, visit: Visit, size: str, num_views: int) -> list[Crop]:
    """Draw the crops of all views of one size of a sample; a view's does not depend on how many follow.

    Args:
        views: scales, ratios, flips.
        height: of the tile, pixels.
        width: of the tile, pixels.
        visit: of the sample.
        size: "global" or "local".
        num_views: of this size.
    """
    scale = views.global_scale if size == "global" else views.local_scale
    uniform_VK = generator(*visit, "crops", size).random((num_views, _CROP_DRAWS))
    return place_crops(uniform_VK, height, width, scale, views.ratio, views.flip)


def group_bands(pixels_HWC: NDArray[Any]) -> Tile:
    """Lay out a tile as torch resizes it fastest: uint8 [G, H, W, 4], any other type as float32 [C, H, W, 1].

    Bands that fill up the last group have any values.
    """
    height, width, num_bands = pixels_HWC.shape
    whole_HW4 = _four_bytes_a_pixel(pixels_HWC)
    if whole_HW4 is not None:
        return whole_HW4[None]
    at_once, dtype = (_BANDS_AT_ONCE, np.uint8) if pixels_HWC.dtype == np.uint8 else (1, np.float32)
    groups_GHWQ = np.empty((-(-num_bands // at_once), height, width, at_once), dtype)
    for band in range(num_bands):
        groups_GHWQ[band // at_once, :, :, band % at_once] = pixels_HWC[:, :, band]
    return groups_GHWQ


def _four_bytes_a_pixel(pixels_HWC: NDArray[Any]) -> NDArray[np.uint8] | None:
    """Return the memory [H, W, 4] that three bands of 8 bits are a view of, as Pillow decodes; else None."""
    height, width, num_bands = pixels_HWC.shape
    base = pixels_HWC.base
    if num_bands != 3 or not isinstance(base, np.ndarray) or base.dtype != np.uint8:
        return None
    starts = {array.__array_interface__["data"][0] for array in (pixels_HWC, base)}
    if pixels_HWC.strides != (4 * width, 4, 1) or len(starts) > 1 or base.size != 4 * height * width:
        return None
    return base.reshape(height, width, 4)


def cut(groups_GHWQ: Tile, crop: Crop, view_CSS: Tensor) -> None:
    """Cut, resize (bilinear with antialias) and flip into a view of the same type.

    Args:
        groups_GHWQ: the tile, as `group_bands` lays it out.
        crop: of the view.
        view_CSS: is written; contiguous.
    """
    rows, columns = slice(crop.top, crop.top + crop.height), slice(crop.left, crop.left + crop.width)
    # Always a copy: what was decoded may be read-only, which torch has no tensors for.
    window = torch.from_numpy(np.array(groups_GHWQ[:, rows, columns], order="C")).permute(0, 3, 1, 2)
    resized = functional.interpolate(window, tuple(view_CSS.shape[1:]), mode="bilinear", antialias=True).numpy()
    flipped = resized[:, :, :: -1 if crop.flip_vertical else 1, :: -1 if crop.flip_horizontal else 1]
    for band, plane in enumerate(view_CSS.numpy()):
        # One by one: numpy copies planes of a few strided bytes much faster than it transposes.
        plane[:] = flipped[divmod(band, flipped.shape[1])]


def cut_views(
    views: ViewsConfig,
    tiles: Sequence[Tile],
    visits: Sequence[Visit],
    size: str,
    num_views: int,
    shape: tuple[int, int, int],
    empty: Empty = torch.empty,
) -> Tensor:
    """Draw and cut all views of one size of several samples: [N, C, S, S], uint8 or float32 as the tiles.

    Args:
        views: scales, ratios, flips.
        tiles: of the samples.
        visits: of the samples.
        size: "global" or "local".
        num_views: of this size.
        shape: (C, S, S) of a view.
        empty: gives the memory.
    """
    dtype = torch.uint8 if tiles[0].dtype == np.uint8 else torch.float32
    crops_VBCSS = empty((num_views, len(tiles), *shape), dtype=dtype)
    for image, (tile_GHWQ, visit) in enumerate(zip(tiles, visits, strict=True)):
        height, width = tile_GHWQ.shape[1:3]
        for view, crop in enumerate(draw_crops(views, height, width, visit, size, num_views)):
            cut(tile_GHWQ, crop, crops_VBCSS[view, image])
    return crops_VBCSS.flatten(0, 1)


PLAIN, JITTER, GREY = 0, 1, 2
NUM_OPERATIONS = 4
"""Brightness, contrast, saturation, hue: their numbers in `order`."""
_COLOUR_DRAWS = 2 + 2 * NUM_OPERATIONS


@dataclass(frozen=True, kw_only=True)
class ColourDraws:
    """Colour perturbations of N images, in CPU memory: what to do with each, how much, in which order."""

    kind_N: Tensor
    """int64: PLAIN, JITTER or GREY."""
    amount_N4: Tensor
    """float32: factors of brightness, contrast, saturation; shift of hue in turns."""
    order_N4: Tensor
    """int64: the operation that comes first, second, third, fourth."""

    def left_out(self) -> "ColourDraws":
        """Return draws that leave the same images as they are."""
        return replace(self, kind_N=torch.full_like(self.kind_N, PLAIN))


def draw_colours(
    colour: ColourConfig, visits: Sequence[Visit], size: str, num_views: int
) -> tuple[ColourDraws, ColourDraws]:
    """Draw the student's and the teacher's colours for all views of one size, each sample's from its own key.

    Args:
        colour: ranges, and the shares of each side's views that are perturbed at all.
        visits: of the samples.
        size: "global" or "local".
        num_views: of this size; a view's draws do not depend on how many follow.
    """
    shape = (num_views, 2, _COLOUR_DRAWS)
    uniform_VBSK = np.stack([generator(*visit, "colours", size).random(shape) for visit in visits], axis=1)
    student, teacher = (uniform_VBSK[:, :, side].reshape(-1, _COLOUR_DRAWS) for side in (0, 1))
    return _colour_draws(student, colour, colour.student), _colour_draws(teacher, colour, colour.teacher)


def _colour_draws(uniform_NK: NDArray[np.float64], colour: ColourConfig, share: float) -> ColourDraws:
    spans = np.array([colour.brightness, colour.contrast, colour.saturation, colour.hue])
    amounts = np.array([1, 1, 1, 0]) + spans * (2 * uniform_NK[:, 2 : 2 + NUM_OPERATIONS] - 1)
    kinds = np.where(uniform_NK[:, 1] < colour.grey, GREY, JITTER)
    return ColourDraws(
        kind_N=torch.from_numpy(np.where(uniform_NK[:, 0] < share, kinds, PLAIN)),
        amount_N4=torch.from_numpy(amounts.astype(np.float32)),
        # Places in the order of random numbers: all permutations are equally likely.
        order_N4=torch.from_numpy(np.argsort(uniform_NK[:, 2 + NUM_OPERATIONS :], axis=1, kind="stable")),
    )
