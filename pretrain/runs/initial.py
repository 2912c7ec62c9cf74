"""Starting weights: a checkpoint of timm, of the official PerA code or of one of our runs, fitted to the backbone.

Position embeddings of another grid and patch embeddings of another patch size are resampled as timm does it. What has
no counterpart is refused by name: weights that fit only half would train, and nobody would know from what.

Shape legend: W width, C bands, G patches per side.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence

import torch
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import adapt_input_conv
from torch import Tensor

from pretrain.model.backbone import SparseBackbone
from pretrain.runs.weights import Weights, read_weights
from shards.errors import UserError

RGB = ("red", "green", "blue")
_PATCH = "patch_embed.proj.weight"
_POSITION = "pos_embed"
_AVERAGED = re.compile(r"(^|[._])(teacher|ema)\.")
_LEFT_OUT = ("head.", "fc_norm.")
"""Beginnings of the names of a classifier's parts, which no backbone needs."""
_FOREIGN = {
    "registers": re.compile(r"reg_token|register_tokens|storage_tokens"),
    "LayerScale": re.compile(r"blocks\.\d+\.(ls[12]\.gamma|gamma_[12])"),
}


def load_initial(backbone: SparseBackbone, url: str, bands: Sequence[str]) -> str:
    """Start a backbone from weights that are there already, in place; return one line that says what was loaded.

    Args:
        backbone: of the student; the teacher is a copy of it.
        url: see `pretrain.runs.weights.read_weights`. Of files that hold several backbones the teacher's is taken
            (official PerA: teacher.backbone.*), else an average (…ema), else the only one.
        bands: of the run, in order. Weights for red, green and blue fit these three in any order, or one band, which
            then stands for all three. Others must have as many bands, and an export the same.

    Raises:
        UserError: nothing to read there, or it is not for this backbone; nothing was changed.
    """
    weights = read_weights(url)
    prefix = choose_prefix(weights)
    picked = {name.removeprefix(prefix): tensor for name, tensor in weights.tensors.items() if name.startswith(prefix)}
    left_out = sorted(name for name in picked if name.startswith(_LEFT_OUT))
    state = {name: tensor.float() for name, tensor in picked.items() if name not in left_out}
    require_kind(weights, state, backbone)
    notes = fit(state, backbone, weights, bands)
    require_same(weights.origin, state, backbone.state_dict())
    backbone.load_state_dict(state)
    told = [f"{len(state)} tensors{f' ({prefix}*)' if prefix else ''}", *notes]
    if left_out:
        told.append(f"left out {listed(left_out)}")
    return f"{weights.origin} (sha256 {weights.sha256[:12]}…): {'; '.join(told)}"


def choose_prefix(weights: Weights) -> str:
    """Return what stands before timm's names in a checkpoint's: "" in a plain one.

    Raises:
        UserError: there is no vision transformer, or several and none is the teacher's.
    """
    ends = [name.removesuffix(_PATCH) for name in weights.tensors if name.endswith(_PATCH)]
    prefixes = [prefix for prefix in ends if prefix == "" or prefix.endswith(".")]
    if not prefixes:
        raise UserError(f"{weights.origin} holds no vision transformer by timm's names: no {_PATCH}")
    preferred = [prefix for prefix in prefixes if _AVERAGED.search(prefix)] or prefixes
    if len(preferred) > 1:
        raise UserError(f"{weights.origin} holds several backbones: {listed(preferred)}; save the one that is meant")
    return preferred[0]


def require_kind(weights: Weights, state: Mapping[str, Tensor], backbone: SparseBackbone) -> None:
    """Make sure that weights are those of a plain ViT with a class token, of the backbone's width, depth and heads.

    Raises:
        UserError: they are not.
    """
    origin = weights.origin
    for part, pattern in _FOREIGN.items():
        names = [name for name in state if pattern.match(name)]
        if names:
            raise UserError(f"{origin} has {part} ({listed(names)}), the backbone has none: start from another")
    if "cls_token" not in state:
        raise UserError(f"{origin} has no class token (cls_token), which the backbone needs: start from another")
    blocks = {match[1] for match in (re.match(r"blocks\.(\d+)\.", name) for name in state) if match}
    # A scalar has no width; its shape is refused later.
    *_, width = (None, *state["cls_token"].shape)
    there = (width, len(blocks), weights.num_heads)
    num_heads = backbone.blocks[0].attn.num_heads  # type: ignore[union-attr]
    here = (backbone.cls_token.shape[-1], backbone.depth, num_heads)
    for option, theirs, ours in zip(("width", "depth", "heads"), there, here, strict=True):
        if theirs not in (None, ours):
            raise UserError(f"{origin} has {option} {theirs}, but model.{option} is {ours}: set it to {theirs}")


def fit(state: dict[str, Tensor], backbone: SparseBackbone, weights: Weights, bands: Sequence[str]) -> list[str]:
    """Fit patch and position embedding to the backbone's bands, patch and grid, in place; say what was changed.

    Raises:
        UserError: the bands do not fit, or there is no place for the class token.
    """
    notes = []
    if _PATCH in state and state[_PATCH].ndim == 4:
        state[_PATCH], note = fit_bands(state[_PATCH], weights, bands)
        notes += [note] if note else []
        there, here = state[_PATCH].shape[-2:], backbone.patch_embed.proj.weight.shape[-2:]
        if there != here:
            state[_PATCH] = resample_patch_embed(state[_PATCH], list(here))
            notes.append(f"patch {there[0]} px → {here[0]} px")
    if _POSITION in state:
        grid = position_grid(state[_POSITION], weights.origin)
        if grid != backbone.grid:
            state[_POSITION] = resample_abs_pos_embed(
                state[_POSITION], [backbone.grid] * 2, old_size=[grid] * 2, num_prefix_tokens=1
            )
            notes.append(f"position embedding {grid} × {grid} → {backbone.grid} × {backbone.grid}")
    return notes


def position_grid(positions_1TW: Tensor, origin: str) -> int:
    """Return the patches per side of a position embedding [1, 1 + G², W].

    Raises:
        UserError: it has another shape.
    """
    num_tokens = positions_1TW.shape[1] if positions_1TW.ndim == 3 else 0
    grid = math.isqrt(max(num_tokens - 1, 0))
    if grid < 1 or num_tokens != 1 + grid**2:
        raise UserError(
            f"{origin}: its pos_embed {list(positions_1TW.shape)} is not that of a class token and a square of patches"
        )
    return grid


def fit_bands(patch_WCpp: Tensor, weights: Weights, bands: Sequence[str]) -> tuple[Tensor, str]:
    """Return the patch embedding for a run's bands, and what was changed; "" for nothing.

    Raises:
        UserError: they are other bands.
    """
    num_there = patch_WCpp.shape[1]
    there = weights.bands or (RGB if num_there == len(RGB) else ())
    if sorted(there) == sorted(bands):
        same = tuple(bands) == there
        order = torch.tensor([there.index(band) for band in bands])
        return patch_WCpp[:, order], "" if same else f"bands {', '.join(there)} → {', '.join(bands)}"
    if sorted(there) == sorted(RGB) and len(bands) == 1:
        # The same as showing the band as a grey image.
        return adapt_input_conv(1, patch_WCpp), f"red, green and blue summed for {bands[0]}"
    if weights.bands is None and num_there == len(bands):
        return patch_WCpp, f"its {num_there} channels taken for {', '.join(bands)}"
    raise UserError(
        f"{weights.origin} is for {', '.join(there) or f'{num_there} bands'}, this run has {', '.join(bands)}: choose "
        "bands to fit, or start from another"
    )


def require_same(origin: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Make sure that weights have the backbone's names and shapes.

    Raises:
        UserError: they have not.
    """
    missing, foreign = own.keys() - state.keys(), state.keys() - own.keys()
    if missing or foreign:
        faults = [f"lacks {listed(missing)}"] * bool(missing) + [f"has {listed(foreign)} beyond"] * bool(foreign)
        raise UserError(f"{origin} is not for this backbone: it {' and '.join(faults)}; start from another")
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            there, here = list(state[name].shape), list(tensor.shape)
            raise UserError(f"{origin}: {name} has the shape {there}, the backbone's is {here}: start from another")


def listed(names: Collection[str]) -> str:
    """Return the first few names, and how many more there are."""
    first = sorted(names)[:3]
    more = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
    return ", ".join(first) + more
