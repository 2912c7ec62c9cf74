"""AdamW whose learning rate and weight decay are functions of the step."""

from collections.abc import Mapping

import torch
from torch import nn

from pretrain.config import OptimiserConfig

_NO_DECAY = ("cls_token", "pos_embed", "mask_token", "weight_g")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Say whether weight decay makes sense: not for biases, norms, tokens, positions and gains."""
    return parameter.ndim >= 2 and not name.endswith(_NO_DECAY)


def make_optimiser(parameters: Mapping[str, nn.Parameter], config: OptimiserConfig) -> torch.optim.AdamW:
    """Make AdamW (fused kernels) over two groups: with and without weight decay."""
    decayed = [p for name, p in parameters.items() if config.decay_all or decays(name, p)]
    others = [p for name, p in parameters.items() if not (config.decay_all or decays(name, p))]
    groups = [{"params": decayed, "decayed": True}, {"params": others, "decayed": False}]
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)


def set_rates(optimiser: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Set what the next step uses."""
    for group in optimiser.param_groups:
        group["lr"] = lr
        group["weight_decay"] = weight_decay if group["decayed"] else 0.0
