"""Patches of whole images, as training gathers them."""

import torch
from torch import Tensor

from pretrain.batches.batch import patchify


def gather(images_NCHW: Tensor, patch_px: int, indices_NP: Tensor) -> Tensor:
    """Return the chosen patches of each image: [N, P, D]."""
    return patchify(images_NCHW, patch_px)[torch.arange(len(indices_NP))[:, None], indices_NP]
