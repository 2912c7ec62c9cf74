"""From the last features of a timm network to one vector per image and one per patch. Pure; costs a mean."""

import math
from typing import Any

import torch
from torch import Tensor

Pooled = dict[str, Tensor]
"""Features [B, D] by name."""


def pool(network: Any, x: Tensor) -> tuple[Pooled, Tensor | None]:
    """Run a timm network on x [B, C, H, W]; return its last features pooled and on their grid [B, h, w, D].

    A transformer gives `cls`, `patch_mean` (the mean over patch tokens; registers count to neither) and `cls+mean`,
    without a class token `patch_mean` alone; any other network gives `pooled`, what its classifier would see. The
    grid is None where the features do not lie on one.
    """
    out = network.forward_features(x)
    if out.ndim == 4:
        channels_last = str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC")
        return _as_classifier(network, out), out if channels_last else out.permute(0, 2, 3, 1)
    num_prefix_tokens = getattr(network, "num_prefix_tokens", None)
    if num_prefix_tokens is None:
        return _as_classifier(network, out), None
    tokens = out[:, num_prefix_tokens:]
    patch_mean, patches = tokens.mean(dim=1), _on_grid(tokens, *x.shape[2:])
    if getattr(network, "cls_token", None) is None:
        return {"patch_mean": patch_mean}, patches
    cls = out[:, 0]
    return {"cls": cls, "patch_mean": patch_mean, "cls+mean": torch.cat([cls, patch_mean], dim=1)}, patches


def _as_classifier(network: Any, out: Tensor) -> Pooled:
    return {"pooled": network.forward_head(out, pre_logits=True)}


def _on_grid(tokens: Tensor, height_px: int, width_px: int) -> Tensor | None:
    """Return tokens [B, N, D] as [B, h, w, D] if N square cells tile the input."""
    num_tokens = tokens.shape[1]
    num_rows = math.isqrt(num_tokens * height_px // width_px)
    num_columns = num_tokens // max(1, num_rows)
    if num_rows * num_columns != num_tokens or num_rows * width_px != num_columns * height_px:
        return None
    return tokens.reshape(len(tokens), num_rows, num_columns, -1)


def cell_px(network: Any) -> int | None:
    """Return how many pixels of the input a cell of the last features spans, by timm's record; None without one."""
    info = getattr(network, "feature_info", None)
    return int(info[-1]["reduction"]) if info else None
