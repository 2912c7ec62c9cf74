"""Floors: what costs no training. A backbone that is not better than these has learnt nothing of use.

`image_stats` is the mean and standard deviation of each band. `random_conv` pools the responses of random filters
(random convolutional features: Rahimi and Recht 2007; Rolf et al. 2021): about 23 MMAC for a 64² RGB image. Both
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
_CHUNK_PX = 1 << 18  # pixels of images; their responses take some 0.5 GB


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
        digest=digest_of("floor", name, _NUM_FILTERS, _KERNEL_PX, CELL_PX, 1),
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
    x = unit_range(images).permute(0, 3, 1, 2)
    # Filters without a mean see texture; a bias drawn within the usual range of responses keeps some of them sparse.
    draw = generator("random_conv", x.shape[1])
    weight = torch.from_numpy(draw.standard_normal((_NUM_FILTERS, x.shape[1], _KERNEL_PX, _KERNEL_PX))).float()
    bias = torch.from_numpy(draw.uniform(-1, 1, _NUM_FILTERS)).float()
    chunk = max(1, _CHUNK_PX // (x.shape[2] * x.shape[3]))
    with torch.inference_mode():
        pooled, cells = zip(*[_responses(part - 0.5, weight, bias) for part in torch.split(x, chunk)], strict=True)
    return Embedded(pooled={"responses": torch.cat(pooled)}, patches=torch.cat(cells))


def _responses(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean rectified responses of x [B, C, H, W] over each image [B, 2 F] and each cell [B, h, w, 2 F]."""
    before, after = (_KERNEL_PX - 1) // 2, _KERNEL_PX // 2
    padded = functional.pad(x, (before, after, before, after), mode="replicate")
    responses = functional.conv2d(padded, weight, bias)
    positive = responses.relu()
    parts = torch.cat([positive, positive - responses], dim=1)
    # The image's own figure leaves out the responses that saw the padding.
    inner = parts[:, :, before : parts.shape[2] - after, before : parts.shape[3] - after]
    return inner.mean(dim=(2, 3)), _cells(parts).permute(0, 2, 3, 1)


def _cells(x: Tensor) -> Tensor:
    """Return the mean of each cell of x [B, C, H, W]; cells cut off by the border count what they have."""
    return functional.avg_pool2d(x, CELL_PX, ceil_mode=True, count_include_pad=False)
