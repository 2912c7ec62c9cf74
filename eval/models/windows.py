"""Patch features of images of any size, though a network takes squares of one size.

An image is resized to the network's input while that changes little: neither side above 1.5 × the input's, one side
at most 1.5 × the other. Any other image is covered by windows at native resolution (an image narrower than a window
is enlarged first, in shape), and cells that several windows see get their mean. Windows lie on the grid of patches:
the image is continued by less than a patch at its lower and right border, where the last windows end.

Cost: one forward pass per window, (length / ((1 − overlap) × side))² of them; the features of the images at hand.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from eval.models.model import Model
from shards.errors import UserError

Manner = Literal["whole", "resized", "windowed"]
Size = tuple[int, int]
"""Height and width, pixels."""

OVERLAP = 0.25
_MAX_RESIZE = 1.5
_MAX_SHAPE = 1.5
# A floor takes images as they are; its responses are many times the image, so that large ones are cut as well.
_FREE_WHOLE_PX, _FREE_WINDOW_PX = 512, 256


@dataclass(frozen=True, kw_only=True)
class Covering:
    """How an image is shown to a model: scaled, continued at the border, cut into windows."""

    manner: Manner
    scaled: Size
    padded: Size
    window: Size
    tops: tuple[int, ...]
    """First rows of the windows; windows lie at every pair of a top and a left."""
    lefts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class DenseFeatures:
    """Features of one image on a grid that starts at its upper left corner and covers it."""

    values: Tensor
    """float32 [h, w, D]."""
    cell_px: tuple[float, float]
    """Height and width of a cell in pixels of the image as it was given."""
    manner: Manner


def plan_covering(image: Size, side_px: int | None, cell_px: int | None, overlap: float) -> Covering:
    """Decide how an image is shown to a model.

    Args:
        image: its height and width.
        side_px: side of the model's input; None: it takes images as they are.
        cell_px: side of a patch; None, or no divisor of the side: images are always resized.
        overlap: least share of a window that the next one sees again, 0 ≤ overlap < 1.
    """
    assert 0 <= overlap < 1
    if side_px is None:
        if max(image) <= _FREE_WHOLE_PX:
            return Covering(manner="whole", scaled=image, padded=image, window=image, tops=(0,), lefts=(0,))
        return _windowed(image, _FREE_WINDOW_PX, cell_px or 1, overlap)
    resizable = max(image) <= _MAX_RESIZE * side_px and max(image) <= _MAX_SHAPE * min(image)
    if cell_px is None or side_px % cell_px or resizable:
        square = (side_px, side_px)
        return Covering(manner="resized", scaled=square, padded=square, window=square, tops=(0,), lefts=(0,))
    return _windowed(image, side_px, cell_px, overlap)


def _windowed(image: Size, side_px: int, cell_px: int, overlap: float) -> Covering:
    scale = max(1.0, side_px / min(image))
    height, width = (max(side_px, round(scale * length)) for length in image)
    padded = (-(-height // cell_px) * cell_px, -(-width // cell_px) * cell_px)
    tops, lefts = (window_starts(length, side_px, cell_px, overlap) for length in padded)
    return Covering(
        manner="windowed", scaled=(height, width), padded=padded, window=(side_px, side_px), tops=tops, lefts=lefts
    )


def window_starts(length_px: int, side_px: int, cell_px: int, overlap: float) -> tuple[int, ...]:
    """Return where windows start that cover a length, each on a multiple of the cell, the last one at the border.

    Args:
        length_px: at least the side; a multiple of the cell, as the side is.
        side_px: length of a window.
        cell_px: the windows' grid.
        overlap: least share of a window that the next one sees again.
    """
    assert length_px >= side_px
    assert length_px % cell_px == side_px % cell_px == 0
    stride = max(1, int(side_px * (1 - overlap)) // cell_px) * cell_px
    return (*range(0, length_px - side_px, stride), length_px - side_px)


def embed_large(
    model: Model, images: Sequence[Tensor], *, overlap: float = OVERLAP, batch_size: int = 16
) -> list[DenseFeatures]:
    """Return the patch features of images [H, W, C] of any sizes, in the model's bands and type.

    Args:
        model: the backbone.
        images: some images; their features are in memory together.
        overlap: share of a window that its neighbour sees again, 0 ≤ overlap < 1.
        batch_size: windows in a forward pass.

    Raises:
        UserError: the model has no patch features.
    """
    coverings = [
        plan_covering((image.shape[0], image.shape[1]), model.image_px, model.patch_px, overlap) for image in images
    ]
    shown = [_continued(resized(image, c.scaled), c.padded) for image, c in zip(images, coverings, strict=True)]
    sums = [_Sum() for _ in images]
    places = [(index, top, left) for index, c in enumerate(coverings) for top in c.tops for left in c.lefts]
    for window, group in itertools.groupby(places, key=lambda place: coverings[place[0]].window):
        for batch in _batches(list(group), batch_size):
            tiles = [shown[index][top : top + window[0], left : left + window[1]] for index, top, left in batch]
            for (index, top, left), patches in zip(batch, _patches(model, torch.stack(tiles)), strict=True):
                sums[index].add(patches, top, left, coverings[index])
    return [
        _features(total, covering, (image.shape[0], image.shape[1]), model.patch_px)
        for total, covering, image in zip(sums, coverings, images, strict=True)
    ]


def _batches(places: list[tuple[int, int, int]], size: int) -> list[list[tuple[int, int, int]]]:
    return [places[start : start + size] for start in range(0, len(places), size)]


def _patches(model: Model, tiles: Tensor) -> Tensor:
    patches = model.embed(tiles).patches
    if patches is None:
        raise UserError(f"{model.name} has no features on a grid of patches: leave it out where pixels have classes")
    return patches


class _Sum:
    """The windows of one image, added up where they lie."""

    def __init__(self) -> None:
        self.values: Tensor | None = None
        self.counts: Tensor | None = None

    def add(self, patches: Tensor, top_px: int, left_px: int, covering: Covering) -> None:
        """Add the patches [h, w, D] of the window at (top, left)."""
        rows, columns, width = patches.shape
        if self.values is None or self.counts is None:
            height_cells = rows * covering.padded[0] // covering.window[0]
            width_cells = columns * covering.padded[1] // covering.window[1]
            self.values = torch.zeros(height_cells, width_cells, width)
            self.counts = torch.zeros(height_cells, width_cells, 1)
        top, left = top_px * rows // covering.window[0], left_px * columns // covering.window[1]
        self.values[top : top + rows, left : left + columns] += patches
        self.counts[top : top + rows, left : left + columns] += 1


def _features(total: _Sum, covering: Covering, image: Size, patch_px: int | None) -> DenseFeatures:
    assert total.values is not None
    assert total.counts is not None
    grid = total.values.shape[:2]
    height, width = (
        _cell_px(padded, cells, patch_px) * length / scaled
        for padded, cells, length, scaled in zip(covering.padded, grid, image, covering.scaled, strict=True)
    )
    return DenseFeatures(values=total.values / total.counts, cell_px=(height, width), manner=covering.manner)


def _cell_px(length: int, num_cells: int, patch_px: int | None) -> float:
    # The last patch may be cut by the border, or left out: the others keep their size.
    if patch_px is not None and abs(num_cells * patch_px - length) < patch_px:
        return patch_px
    return length / num_cells


def _continued(image: Tensor, size: Size) -> Tensor:
    """Repeat the last row and column of an image [H, W, C] up to a size."""
    rows, columns = (torch.arange(new).clamp_max(old - 1) for new, old in zip(size, image.shape[:2], strict=True))
    return image if image.shape[:2] == size else image[rows][:, columns]


def resized(image: Tensor, size: Size) -> Tensor:
    """Resize an image [H, W, C], bicubic with antialiasing; an equal size leaves it as it is."""
    if image.shape[:2] == size:
        return image
    # Torch resizes uint8 and float natively; other integers go by way of float32 and stay within their range.
    native = image.dtype == torch.uint8 or image.is_floating_point()
    channels_first = (image if native else image.float()).permute(2, 0, 1)
    out: Tensor = transforms.resize(
        channels_first, list(size), transforms.InterpolationMode.BICUBIC, antialias=True
    ).permute(1, 2, 0)
    if native:
        return out
    limits = np.iinfo(str(image.dtype).removeprefix("torch."))
    return out.round().clamp(limits.min, limits.max).to(image.dtype)
