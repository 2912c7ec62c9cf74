"""Projection heads: MLP, L2 normalisation, then a linear layer with weight-normalised rows.

As in DINO (Caron et al. 2021) with a learnable gain per row (Salimans and Kingma 2016).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class WeightNormLinear(nn.Module):
    """Linear layer without bias, each row of its weight being gain · direction / |direction|."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(torch.empty(out_features, in_features))
        self.weight_g = nn.Parameter(torch.ones(out_features, 1))
        nn.init.trunc_normal_(self.weight_v, std=0.02)

    def weight(self) -> Tensor:
        """Return the weight [out, in]: not cheap with 131,072 rows, so a step asks for it once."""
        # Fused in torch, forward and backward: from its parts the backward pass is several times as slow.
        weight: Tensor = torch._weight_norm(self.weight_v, self.weight_g, 0)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        return functional.linear(x, self.weight())


class Head(nn.Module):
    """MLP of three layers to a bottleneck, then to prototypes (cls head) or pixel values (pixel head)."""

    def __init__(self, width: int, hidden: int, bottleneck: int, out_features: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.last_layer = WeightNormLinear(bottleneck, out_features)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def bottleneck(self, x: Tensor) -> Tensor:
        """Map tokens [..., width] to the normalised vector [..., bottleneck] before the last layer."""
        bottleneck: Tensor = self.mlp(x)
        # In float32 at least: autocast would leave it to the device.
        exact = torch.promote_types(bottleneck.dtype, torch.float32)
        return functional.normalize(bottleneck.to(exact), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [..., width] to [..., out_features]."""
        outputs: Tensor = self.last_layer(self.bottleneck(x))
        return outputs
