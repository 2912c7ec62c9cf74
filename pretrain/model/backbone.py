"""The vision transformer on a subset of its patches: timm's modules and names, our sparse forward pass.

Patches are gathered before they are embedded, so that cost follows the patches that are seen. Every call has a
fixed shape. The mask tokens join in the middle of the depth by concatenation: attention does not care about order,
each token carries its position.

Shape legend: N images, C channels, L patches, P gathered patches, D = C · patch² values, W width, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from timm.models import vision_transformer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pretrain.config import ModelConfig
from pretrain.transfer import send


@dataclass(frozen=True, kw_only=True)
class DropPath:
    """Batch-subset stochastic depth: each residual branch is computed for a random part of the batch only.

    The draws are keyed by (seed, step) and made on the CPU, so that they depend on no history and no device.
    """

    rate: float
    generator: torch.Generator

    def subset(self, num_images: int) -> Tensor:
        """Draw the images that a branch is computed for, int64 [max(1, (1 - rate) N)], ascending."""
        order = torch.randperm(num_images, generator=self.generator)
        return order[: num_kept(num_images, self.rate)].sort().values


def num_kept(num_images: int, rate: float) -> int:
    """Return how many images a residual branch is computed for."""
    return max(1, round(num_images * (1 - rate)))


class Block(vision_transformer.Block):
    """timm's pre-norm block, each of whose two branches may be computed for some of the images only."""

    def forward(  # type: ignore[override]  # timm's takes masks of attention, which we have no use for
        self,
        x_NTW: Tensor,
        attn_N: Tensor | None = None,
        mlp_N: Tensor | None = None,
        num_asked: int | None = None,
    ) -> Tensor:
        """Apply to tokens [N, T, W].

        Args:
            x_NTW: tokens.
            attn_N: int64, images that attention is computed for; None: all.
            mlp_N: likewise for the MLP.
            num_asked: tokens, from the first, that come out: the others are only looked at; None: all.
        """
        if num_asked is None:
            x_NTW = _add_branch(x_NTW, self.norm1, self.attn, attn_N)
        else:
            x_NTW = _add_branch(x_NTW, self.norm1, partial(_attend, self.attn, num_asked), attn_N, num_asked)
        return _add_branch(x_NTW, self.norm2, self.mlp, mlp_N)


def _attend(attention: Any, num_asked: int, x_NTW: Tensor) -> Tensor:
    """Return what timm's attention gives for the first tokens: [N, num_asked, W]."""
    width, heads = x_NTW.shape[-1], attention.num_heads
    weight, bias = attention.qkv.weight, attention.qkv.bias
    query = functional.linear(x_NTW[:, :num_asked], weight[:width], bias[:width])
    key, value = functional.linear(x_NTW, weight[width:], bias[width:]).chunk(2, -1)
    query, key, value = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (query, key, value))
    seen = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    projected: Tensor = attention.proj(seen)
    return projected


def _add_branch(
    x_NTW: Tensor,
    norm: nn.Module,
    branch: Callable[[Tensor], Tensor],
    kept: Tensor | None,
    num_asked: int | None = None,
) -> Tensor:
    """Add a residual branch to the first tokens; the others are left out."""
    if kept is None:
        return x_NTW[:, :num_asked] + branch(norm(x_NTW))
    residual = branch(norm(x_NTW.index_select(0, kept)))
    # The kept images stand for all: scaled up, the expectation of the residual is unchanged.
    return x_NTW[:, :num_asked].index_add(0, kept, residual.to(x_NTW.dtype), alpha=len(x_NTW) / len(kept))


def build_vit(config: ModelConfig, num_bands: int) -> vision_transformer.VisionTransformer:
    """Make a pre-norm ViT without registers and LayerScale (LayerNorm eps 1e-6, GELU MLP of ratio 4)."""
    return vision_transformer.VisionTransformer(**vit_arguments(config, num_bands), block_fn=Block)


def vit_arguments(config: ModelConfig, num_bands: int) -> dict[str, Any]:
    """Return the arguments that make timm's VisionTransformer the configured backbone."""
    return {
        "img_size": config.image_px,
        "patch_size": config.patch_px,
        "in_chans": num_bands,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "num_classes": 0,
        "global_pool": "token",
    }


def pick_positions(positions_LW: Tensor, indices_NP: Tensor) -> Tensor:
    """Return the position embedding of gathered patches: [N, P, W].

    As an embedding and not by indexing, whose backward pass on a CPU adds up in whatever order its threads
    come: gradients would differ in their last bits from run to run.
    """
    return functional.embedding(indices_NP, positions_LW)


class SparseBackbone(nn.Module):
    """A timm VisionTransformer's parameters under timm's names, run on gathered patches."""

    cls_token: nn.Parameter
    pos_embed: nn.Parameter

    def __init__(self, config: ModelConfig, num_bands: int) -> None:
        super().__init__()
        vit = build_vit(config, num_bands)
        assert vit.cls_token is not None
        assert vit.pos_embed is not None
        # Adopted, not wrapped: the state dict of this module is the state dict of a timm model.
        self.cls_token = vit.cls_token
        self.pos_embed = vit.pos_embed
        self.patch_embed = vit.patch_embed
        self.blocks = vit.blocks
        self.norm = vit.norm
        self.grid = config.image_px // config.patch_px
        self.recompute = False
        """Keep only what goes into the blocks for the backward pass, and compute their insides again."""

    def embed(self, patches_NPD: Tensor, indices_NP: Tensor, positions_LW: Tensor) -> Tensor:
        """Embed gathered patches, add their positions, put the cls token before them: [N, 1 + P, W]."""
        projection = self.patch_embed.proj
        x_NPW = functional.linear(patches_NPD, projection.weight.flatten(1), projection.bias)
        x_NPW = x_NPW + pick_positions(positions_LW, indices_NP)
        cls_N1W = (self.cls_token + self.pos_embed[:, :1]).expand(len(x_NPW), -1, -1)
        return torch.cat([cls_N1W.to(x_NPW.dtype), x_NPW], dim=1)

    def positions(self, grid: int) -> Tensor:
        """Return the position embedding [grid², W] of a square view, interpolated where it is not the global one."""
        positions_LW = self.pos_embed[0, 1:]
        if grid == self.grid:
            return positions_LW
        # As a product: the same on all devices, and its gradient has one order of sums, which CUDA's has not.
        with torch.autocast(positions_LW.device.type, enabled=False):
            return _resizing(self.grid, grid, positions_LW.dtype, positions_LW.device) @ positions_LW

    def run_blocks(
        self, x_NTW: Tensor, blocks: Sequence[int], drop_path: DropPath | None = None, num_asked: int | None = None
    ) -> Tensor:
        """Apply some blocks to tokens [N, T, W]; with stochastic depth, each branch to its own subset of the images.

        Args:
            x_NTW: tokens.
            blocks: their numbers.
            drop_path: stochastic depth; None computes all.
            num_asked: tokens, from the first, that are asked of the model's last block and come out of it; None: all.
        """
        for index, kept in zip(blocks, _draw(drop_path, len(blocks), x_NTW), strict=True):
            arguments = (*kept, num_asked if index == self.depth - 1 else None)
            if self.recompute and torch.is_grad_enabled():
                # Nothing in a block is random, so there is no random state to keep.
                x_NTW = checkpoint(self.blocks[index], x_NTW, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                x_NTW = self.blocks[index](x_NTW, *arguments)
        return x_NTW

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)


def _draw(drop_path: DropPath | None, num_blocks: int, x_NTW: Tensor) -> Sequence[Sequence[Tensor | None]]:
    """Return the images that the two branches of each block are computed for, on the device; None: all."""
    if drop_path is None or drop_path.rate == 0 or not num_blocks:
        return [(None, None)] * num_blocks
    drawn = torch.stack([drop_path.subset(len(x_NTW)) for _ in range(2 * num_blocks)])
    return [pair.unbind() for pair in send(drawn, x_NTW.device).view(num_blocks, 2, -1)]


@cache
def _resizing(grid: int, new_grid: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix [new_grid², grid²] that makes position embeddings of another number of patches.

    Bicubic without antialias, with DINOv2's offset of 0.1 in the scale factor.
    """
    scale = (new_grid + 0.1) / grid
    # It is kept: whoever comes first may want no gradients, the next may.
    with torch.inference_mode(False):
        each = torch.eye(grid**2, dtype=torch.float64).view(-1, 1, grid, grid)
        resized = functional.interpolate(each, scale_factor=(scale, scale), mode="bicubic")
        assert resized.shape[-2:] == (new_grid, new_grid)
        return resized.flatten(1).T.to(device, dtype)
