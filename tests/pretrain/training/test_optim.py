import torch

from pretrain.config import OptimiserConfig
from pretrain.model.pera import PerA
from pretrain.training.optim import decays, make_optimiser, set_rates


def test_only_matrices_decay(tiny):
    spared = {name for name, parameter in PerA(tiny, 3).trainable().items() if not decays(name, parameter)}
    assert {"mask_token", "student.backbone.pos_embed", "student.backbone.cls_token"} < spared
    assert {"student.cls_head.last_layer.weight_g", "student.backbone.blocks.0.norm1.weight"} < spared
    assert not any(name.endswith((".qkv.weight", ".fc1.weight", "weight_v", "proj.weight")) for name in spared)
    assert not any(parameter.ndim == 1 and name not in spared for name, parameter in PerA(tiny, 3).trainable().items())


def test_decay_shrinks_the_one_group_only():
    weight, bias = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    optimiser = make_optimiser({"weight": weight, "bias": bias}, OptimiserConfig())
    weight.grad, bias.grad = torch.zeros(2, 2), torch.zeros(2)
    set_rates(optimiser, lr=0.1, weight_decay=0.5)
    optimiser.step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), 0.95))
    assert torch.equal(bias.detach(), torch.ones(2))


def test_official_decay_takes_everything(tiny):
    optimiser = make_optimiser(PerA(tiny, 3).trainable(), OptimiserConfig(decay_all=True))
    assert [len(group["params"]) for group in optimiser.param_groups][1] == 0
