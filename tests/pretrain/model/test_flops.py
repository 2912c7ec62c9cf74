from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pretrain.config import Config, HeadConfig, LossConfig, MasksConfig, ModelConfig, ViewsConfig
from pretrain.model.backbone import DropPath
from pretrain.model.flops import step_flops
from pretrain.model.inputs import ViewPatches
from pretrain.model.pera import PerA

SMALL = Config(
    data="",
    run="",
    model=ModelConfig(image_px=64, patch_px=8, width=64, depth=3, heads=2, drop_path=0.3),
    head=HeadConfig(hidden=96, bottleneck=48, prototypes=320),
    views=ViewsConfig(num_global=2, num_local=3, local_px=32),
)
POSITIONS = 2 * 4**2 * 8**2 * 64
"""Those of local views are made of those of global ones by one product."""
VARIANTS = {
    "small": SMALL,
    "no stochastic depth": replace(SMALL, model=replace(SMALL.model, drop_path=0.0)),
    "hardly an image left": replace(SMALL, model=replace(SMALL.model, drop_path=0.95)),
    "no local views": replace(SMALL, views=replace(SMALL.views, num_local=0)),
    "patches that no local view has": replace(
        SMALL, model=replace(SMALL.model, patch_px=32), views=replace(SMALL.views, num_local=0, local_px=24)
    ),
    "one view": replace(SMALL, views=replace(SMALL.views, num_global=1, num_local=1)),
    "deeper": replace(SMALL, model=replace(SMALL.model, depth=8)),
    "mostly attention": replace(SMALL, model=replace(SMALL.model, image_px=128, width=16, heads=1)),
    "mostly prototypes": replace(SMALL, head=replace(SMALL.head, prototypes=20_000)),
    "other masks": replace(SMALL, masks=MasksConfig(student=0.4, teacher=0.3)),
    "independent masks": replace(SMALL, masks=MasksConfig(teacher=1.0, learnable=0.3, independent=True)),
    "mask tokens at the input": replace(SMALL, model=replace(SMALL.model, join=0)),
    "mask tokens at the last block": replace(SMALL, model=replace(SMALL.model, join=2)),
    "nothing predicted": replace(SMALL, masks=MasksConfig(learnable=0.0), loss=LossConfig(pixel=0.0)),
    "other views": replace(SMALL, loss=LossConfig(crossed=True)),
    "pixels alone": replace(SMALL, loss=LossConfig(cls=0.0), views=replace(SMALL.views, num_local=0)),
}


def make_views(config, batch, num_views, side_px, num_bands):
    """Views of noise; any places do."""
    num_images, values = num_views * batch, num_bands * config.model.patch_px**2
    sizes = config.set_sizes(side_px)
    views = {}
    for name in ("student", "learnable", "teacher"):
        views[f"{name}_NPD"] = torch.randn(num_images, getattr(sizes, name), values)
        views[f"{name}_indices_NP"] = torch.arange(getattr(sizes, name)).expand(num_images, -1)
    return ViewPatches(**views)


def added_product(_, left, right, **__):
    """Operations of a product that is added to a sum, of the shapes of all three."""
    return 2 * left[0] * left[1] * right[1]


def counted(config, batch, num_bands, backward):
    """What torch counts of a step."""
    model = PerA(config, num_bands)
    model.student.backbone.recompute = config.activation_checkpointing
    arguments = (
        make_views(config, batch, config.views.num_global, config.model.image_px, num_bands),
        make_views(config, batch, config.views.num_local, config.views.local_px, num_bands)
        if config.views.num_local
        else None,
        0.05,
        DropPath(rate=config.model.drop_path, generator=torch.Generator()),
    )
    # torch counts no fused attention on a CPU, and no product that is added to a sum in place.
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added_product})
    with sdpa_kernel(SDPBackend.MATH), counter:
        output = model(*arguments)
        if backward:
            (output.loss + output.spread_VBX.sum()).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("num_bands", [3, 7])
def test_total_is_what_torch_counts(config, num_bands):
    flops = step_flops(config, num_bands, batch=4)
    assert flops.total == counted(config, 4, num_bands, backward=True)
    assert flops.repeated == 0


def test_forward_is_a_third_of_what_learns():
    config = VARIANTS["no stochastic depth"]
    flops = step_flops(config, 3, batch=4)
    # Of the cross-entropy the gradient is made in the forward pass.
    prototypes = 2 * 4 * 5 * config.head.bottleneck * config.head.prototypes
    # The embedding's input learns nothing: it is counted twice, not three times.
    embedding = 2 * (8 * 13 + 12 * 3) * 3 * 8**2 * 64 + POSITIONS
    rest = flops.total - flops.teacher - flops.cls_heads // 4 - 2 * embedding
    forward = counted(config, 4, 3, backward=False)
    assert forward == rest // 3 + flops.teacher + flops.cls_heads // 4 + embedding + 2 * prototypes


def test_checkpointing_repeats_the_blocks():
    config = replace(SMALL, activation_checkpointing=True)
    flops = step_flops(config, 3, batch=4)
    assert flops.total == step_flops(SMALL, 3, batch=4).total
    assert flops.total + flops.repeated == counted(config, 4, 3, backward=True)


def test_accumulation_repeats_the_forward_pass_of_the_global_views():
    flops, part = step_flops(replace(SMALL, accumulate=3), 3, batch=12), step_flops(SMALL, 3, batch=4)
    assert flops.total == 3 * part.total
    views = make_views(SMALL, 4, SMALL.views.num_global, SMALL.model.image_px, 3)
    drop_path = DropPath(rate=SMALL.model.drop_path, generator=torch.Generator())
    model = PerA(SMALL, 3)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.spread(views, drop_path)
    assert flops.repeated == 3 * counter.get_total_flops()
    assert step_flops(replace(SMALL, accumulate=3, loss=LossConfig(koleo=0.0)), 3, batch=12).repeated == 0


def test_cost_grows_as_batch_and_depth():
    totals = [step_flops(SMALL, 3, batch=batch).total for batch in (10, 40, 70)]
    assert totals[1] - totals[0] == totals[2] - totals[1]
    # What a batch of nothing would cost: the positions of local views, for the student twice and the teacher once.
    assert 2 * totals[0] - totals[1] + 2 * (totals[1] - totals[0]) / 3 == 3 * POSITIONS
    deeper = [step_flops(replace(SMALL, model=replace(SMALL.model, depth=n)), 3, batch=10) for n in (4, 8, 12)]
    assert deeper[1].total - deeper[0].total == deeper[2].total - deeper[1].total
    assert deeper[0].pixel_head == deeper[2].pixel_head
    assert deeper[0].cls_heads == deeper[2].cls_heads


def test_paper_model_costs_what_the_paper_model_costs():
    """ViT-B at 448²: 253 G multiply-adds of an image, the teacher 41 %; less what nobody asks of the last block."""
    config = Config(
        data="",
        run="",
        model=ModelConfig(image_px=448, patch_px=16, width=768, depth=12, heads=12),
        head=HeadConfig(hidden=2048, bottleneck=384, prototypes=131_072),
        views=ViewsConfig(num_global=2, num_local=8, local_px=96),
    )
    flops = step_flops(config, 3, batch=1)
    assert 0.94 < flops.total / 2e9 / 253 < 1
    assert flops.teacher / flops.total == pytest.approx(0.41, abs=0.01)
