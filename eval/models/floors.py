"""Floors: what costs no training. A backbone that is not better than these has learnt nothing of use.

`image_stats` is the mean and standard deviation of each band. `random_conv` pools the responses of random filters
(random convolutional features: Rahimi and Recht 2007; Rolf et al. 2021): about 26 MMAC for a 64² RGB image. Both
give patch features as well: the same figures of each cell of 8×8 pixels, so that dense tasks have floors, too.
"""

import torch
from torch import Tensor
from torch.nn import functional

from eval.models.model import Embedded, Model, digest_of, unit_range
from shards.errors import UserError
from shards.keyed import generator

CELL_PX = 8
_NUM_FILTERS = 128
_KERNEL_PX = 4
_BEFORE, _AFTER = (_KERNEL_PX - 1) // 2, _KERNEL_PX // 2  # pixels that a filter sees on either side of its own
_VERSIONS = {"image_stats": 2, "random_conv": 3}
"""Of each floor's figures, down to their last bits, and of the places of their cells."""


def floor_model(name: str) -> Model:
    """Return the floor `image_stats` or `random_conv`.

    Raises:
        UserError: there is no such floor.
    """
    if name == "image_stats":
        return _floor(name, "mean and standard deviation of each band", _image_stats)
    if name == "random_conv":
        return _floor(
            name, f"{_NUM_FILTERS} random {_KERNEL_PX}×{_KERNEL_PX} filters, rectified and pooled", _random_conv
        )
    raise UserError(f"floor:{name} does not exist: use floor:image_stats, floor:random_conv or floor:random_init")


def _floor(name: str, description: str, embed: object) -> Model:
    assert callable(embed)
    return Model(
        name=f"floor:{name}",
        kind="floor",
        digest=digest_of("floor", name, _NUM_FILTERS, _KERNEL_PX, CELL_PX, _VERSIONS[name]),
        description=description,
        image_px=None,
        bands=None,
        dtype=None,
        standardise=True,
        patch_px=CELL_PX,
        embed=embed,
    )


def _image_stats(images: Tensor) -> Embedded:
    """Return `stats` [B, 2 C] of images [B, H, W, C]: means, then standard deviations; alike of each cell."""
    x = unit_range(images).permute(0, 3, 1, 2)
    mean, std = x.mean(dim=(2, 3)), x.std(dim=(2, 3), correction=0)
    # The mean of squares less the square of the mean loses figures unless the values lie around zero.
    centred = x - mean[:, :, None, None]
    cell_mean = _cells(centred)
    cell_std = (_cells(centred.square()) - cell_mean.square()).clamp_min(0).sqrt()
    cells = torch.cat([cell_mean + mean[:, :, None, None], cell_std], dim=1)
    return Embedded(pooled={"stats": torch.cat([mean, std], dim=1)}, patches=cells.permute(0, 2, 3, 1))


def _random_conv(images: Tensor) -> Embedded:
    """Return `responses` [B, 256]: means of the positive and negative parts of random filter responses."""
    x = (unit_range(images) - 0.5).permute(0, 3, 1, 2).contiguous()
    with torch.inference_mode():
        found = list(map(_RandomConv(*x.shape[1:]), x))
    pooled, cells = zip(*found, strict=True)
    return Embedded(pooled={"responses": torch.stack(pooled)}, patches=torch.stack(cells))


class _RandomConv:
    """Random filters for images of one size.

    An image is one matrix product, filters × (what they see at each pixel), in memory that all images share: 3 MB for a
    64² RGB image. The pixels of a cell lie side by side, so that its mean is that of a row.
    """

    def __init__(self, num_bands: int, height: int, width: int) -> None:
        self._filters = _filters(num_bands)
        self._grid = h, w = -(-height // CELL_PX), -(-width // CELL_PX)
        self._cut = (0, w * CELL_PX - width, 0, h * CELL_PX - height)
        self._inside = _by_cell(functional.pad(torch.ones(height, width), self._cut))
        inner = torch.zeros(height, width)
        inner[_inner(height), _inner(width)] = 1
        self._margin = 1 - _by_cell(functional.pad(inner, self._cut))
        self._edge, self._num_inner = torch.nonzero(self._margin.any(dim=1))[:, 0], inner.sum()
        self._fields = torch.ones(self._filters.shape[1], *self._inside.shape)
        self._responses = torch.empty(_NUM_FILTERS, *self._inside.shape)

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean rectified responses over an image [C, H, W] and over each cell, [2 F] and [h, w, 2 F]."""
        self._see(image)
        torch.mm(self._filters, self._fields.flatten(1), out=self._responses.view(_NUM_FILTERS, -1))
        positive = self._means(self._responses.relu_())
        # What is negative is, in the mean, what is positive less all, which the mean of what is seen gives.
        negative = (positive - self._filters @ self._means(self._fields)).clamp_min_(0)
        both = torch.cat([positive, negative]).T
        return both[0], both[1:].reshape(*self._grid, -1)

    def _see(self, image: Tensor) -> None:
        """Fill in what filters see at each pixel, [C × 4 × 4 + 1, cells, 64]; the last is 1, for the bias."""
        padded = functional.pad(image[None], (_BEFORE, _AFTER, _BEFORE, _AFTER), mode="replicate")[0]
        seen = functional.pad(padded, self._cut).unfold(1, _KERNEL_PX, 1).unfold(2, _KERNEL_PX, 1)
        fields = self._fields[:-1].view(len(image), _KERNEL_PX, _KERNEL_PX, *self._grid, CELL_PX, CELL_PX)
        fields.copy_(_in_cells(seen.permute(0, 3, 4, 1, 2)))
        if any(self._cut):
            # Beyond the border all is 0, the bias too, and so are the responses.
            self._fields[-1] = self._inside
            self._fields *= self._inside

    def _means(self, values: Tensor) -> Tensor:
        """Return the means of values [K, cells, 64] over the inner image and over each cell, [K, 1 + cells]."""
        sums = values.sum(dim=2)
        outer = (values.index_select(1, self._edge) * self._margin[self._edge]).sum(dim=(1, 2))
        inner = (sums.sum(dim=1) - outer) / self._num_inner
        return torch.cat([inner[:, None], sums / self._inside.sum(dim=1)], dim=1)


def _inner(length: int) -> slice:
    """Return what the image's own figure counts: responses that saw no padding, all where an image is too small."""
    return slice(_BEFORE, length - _AFTER) if length >= _KERNEL_PX else slice(None)


def _filters(num_bands: int) -> Tensor:
    """Return the filters with their biases in the last column, [F, C × 4 × 4 + 1]."""
    # Filters without a mean see texture; a bias drawn within the usual range of responses keeps some of them sparse.
    draw = generator("random_conv", num_bands)
    weight = torch.from_numpy(draw.standard_normal((_NUM_FILTERS, num_bands, _KERNEL_PX, _KERNEL_PX))).float()
    bias = torch.from_numpy(draw.uniform(-1, 1, _NUM_FILTERS)).float()
    return torch.cat([weight.flatten(1), bias[:, None]], dim=1)


def _in_cells(x: Tensor) -> Tensor:
    """Return a view of pixels [..., h × 8, w × 8] as [..., h, w, 8, 8]."""
    *before, height, width = x.shape
    return x.view(*before, height // CELL_PX, CELL_PX, width // CELL_PX, CELL_PX).transpose(-3, -2)


def _by_cell(x: Tensor) -> Tensor:
    """Return pixels [h × 8, w × 8] as [cells, 64]."""
    return _in_cells(x).flatten(2).flatten(0, 1)


def _cells(x: Tensor) -> Tensor:
    """Return the mean of each cell of x [B, C, H, W]; cells cut off by the border count what they have."""
    return functional.avg_pool2d(x, CELL_PX, ceil_mode=True, count_include_pad=False)
