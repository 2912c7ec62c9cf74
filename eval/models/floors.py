"""Floors: what costs no training. A backbone that is not better than these has learnt nothing of use.

`image_stats` is the mean and standard deviation of each band. `random_conv` pools the responses of random filters
(random convolutional features: Rahimi and Recht 2007; Rolf et al. 2021): about 23 MMAC for a 64² RGB image.
"""

import torch
from torch import Tensor
from torch.nn import functional

from eval.models import Features, Model, digest_of, unit_range
from shards.errors import UserError
from shards.keyed import generator

_NUM_FILTERS = 128
_KERNEL_PX = 4
_CHUNK = 16  # images; their responses stay within some 0.5 GB at 256²


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
        digest=digest_of("floor", name, _NUM_FILTERS, _KERNEL_PX, 1),
        description=description,
        image_px=None,
        bands=None,
        dtype=None,
        standardise=True,
        embed=embed,
    )


def _image_stats(images: Tensor) -> Features:
    """Return {"stats": [B, 2 C]} of images [B, H, W, C]: means, then standard deviations."""
    x = unit_range(images)
    return {"stats": torch.cat([x.mean(dim=(1, 2)), x.std(dim=(1, 2), correction=0)], dim=1)}


def _random_conv(images: Tensor) -> Features:
    """Return {"responses": [B, 256]}: means of the positive and negative parts of random filter responses."""
    x = unit_range(images).permute(0, 3, 1, 2)
    # Filters without a mean see texture; a bias drawn within the usual range of responses keeps some of them sparse.
    draw = generator("random_conv", x.shape[1])
    weight = torch.from_numpy(draw.standard_normal((_NUM_FILTERS, x.shape[1], _KERNEL_PX, _KERNEL_PX))).float()
    bias = torch.from_numpy(draw.uniform(-1, 1, _NUM_FILTERS)).float()
    with torch.inference_mode():
        parts = [functional.conv2d(chunk - 0.5, weight, bias) for chunk in torch.split(x, _CHUNK)]
        pooled = [torch.cat([r.relu().mean(dim=(2, 3)), (-r).relu().mean(dim=(2, 3))], dim=1) for r in parts]
    return {"responses": torch.cat(pooled)}
