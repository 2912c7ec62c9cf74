from dataclasses import replace

import numpy as np
import pytest
import torch

from pretrain.config import LossConfig
from pretrain.model.backbone import DropPath
from pretrain.model.inputs import ViewPatches
from pretrain.model.pera import PerA

IMAGES = 4


def draw_views(config, num_views, side_px, generator):
    """Return noise for views of four images; each view has sets of its own."""
    sizes = config.set_sizes(side_px)
    cuts = np.cumsum([sizes.student, sizes.learnable]).tolist()
    orders = [torch.randperm(sizes.patches, generator=generator) for _ in range(num_views * IMAGES)]
    parts = zip(*[torch.tensor_split(order, cuts) for order in orders], strict=True)
    sets = [torch.stack([part.sort().values for part in each]) for each in parts]
    patches = [torch.randn(*indices.shape, 3 * config.model.patch_px**2, generator=generator) for indices in sets]
    names = ("student", "learnable", "teacher")
    return ViewPatches(
        **{f"{name}_indices_NP": indices for name, indices in zip(names, sets, strict=True)},
        **{f"{name}_NPD": values for name, values in zip(names, patches, strict=True)},
    )


@pytest.fixture
def views(tiny):
    generator = torch.Generator().manual_seed(0)
    return draw_views(tiny, 2, 32, generator), draw_views(tiny, 2, 24, generator)


@pytest.fixture
def model(tiny):
    torch.manual_seed(0)
    return PerA(tiny, 3)


def test_teacher_starts_as_the_student_and_gets_no_gradient(model, views):
    for name, value in model.teacher.state_dict().items():
        assert torch.equal(value, model.student.state_dict()[name])
    model(*views, 0.05).loss.backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    assert all(parameter.grad is not None for parameter in model.trainable().values())


def test_each_side_depends_on_its_own_patches_alone(model, views):
    global_views, local_views = views

    def with_noise(name):
        noisy = replace(global_views, **{name: torch.randn_like(getattr(global_views, name))})
        return model(noisy, local_views, 0.05)

    plain = model(*views, 0.05)
    # The targets' values go into the pixel loss and nowhere else.
    targets = with_noise("learnable_NPD")
    assert torch.equal(targets.student.cls_NZ, plain.student.cls_NZ)
    assert torch.equal(targets.student.predictions_NPD, plain.student.predictions_NPD)
    assert torch.equal(targets.teacher_NZ, plain.teacher_NZ)
    assert targets.parts["pixel"] != plain.parts["pixel"]
    teacher = with_noise("teacher_NPD")
    assert torch.equal(teacher.student.cls_NZ, plain.student.cls_NZ)
    assert (teacher.teacher_NZ[: 2 * IMAGES] - plain.teacher_NZ[: 2 * IMAGES]).abs().max() > 1e-4
    student = with_noise("student_NPD")
    assert torch.equal(student.teacher_NZ, plain.teacher_NZ)
    assert (student.student.cls_NZ[: 2 * IMAGES] - plain.student.cls_NZ[: 2 * IMAGES]).abs().max() > 1e-4


def test_the_loss_is_the_weighted_sum_but_for_koleo(model, views):
    output = model(*views, 0.05)
    parts = output.parts
    total = parts["global_cls"] + parts["local_cls"] + 0.01 * parts["pixel"]
    torch.testing.assert_close(output.loss.detach(), total)


def test_the_teachers_mean_scores_are_those_of_all_scores(model, views):
    output = model(*views, 0.05)
    scores_NK = output.teacher_NZ @ model.teacher.cls_head.last_layer.weight().T
    torch.testing.assert_close(output.teacher_mean_K, scores_NK.mean(0).detach())


@pytest.mark.parametrize("on_head", [False, True])
def test_spread_ahead_is_what_the_forward_pass_gives(tiny, views, on_head):
    config = replace(tiny, loss=LossConfig(koleo_on_head=on_head))
    model = PerA(config, 3)

    def drop_path():
        return DropPath(rate=0.3, generator=torch.Generator().manual_seed(7))

    ahead = model.spread(views[0], drop_path())
    output = model(*views, 0.05, drop_path())
    assert ahead.shape == (2, IMAGES, 32)
    assert not ahead.requires_grad
    assert torch.equal(ahead, output.spread_VBX)
    assert output.spread_VBX.requires_grad


def test_activation_checkpointing_changes_no_bit(model, views):
    def gradients(recompute):
        model.zero_grad()
        model.student.backbone.recompute = recompute
        drop_path = DropPath(rate=0.3, generator=torch.Generator().manual_seed(7))
        model(*views, 0.05, drop_path).loss.backward()
        return [parameter.grad.clone() for parameter in model.trainable().values()]

    assert all(map(torch.equal, gradients(recompute=False), gradients(recompute=True)))


def test_no_local_views_are_supported(variant, views):
    output = PerA(variant(views__num_local=0), 3)(views[0], None, 0.05)
    assert torch.isfinite(output.loss)
    assert output.parts["local_cls"] == 0


def test_crossed_pairs_are_those_of_dino(variant):
    config = variant(loss__crossed=True)
    generator = torch.Generator().manual_seed(0)
    views = draw_views(config, 2, 32, generator), draw_views(config, 2, 24, generator)
    torch.manual_seed(0)
    model = PerA(config, 3)
    model.centre.normal_(generator=generator)
    output = model(*views, 0.05)
    # The teacher looks at global views alone.
    assert len(output.teacher_NZ) == 2 * IMAGES
    student_NK = output.student.cls_NZ @ model.student.cls_head.last_layer.weight().T
    student_VBK = (student_NK / 0.1).log_softmax(-1).unflatten(0, (4, IMAGES))
    teacher_NK = (output.teacher_NZ @ model.teacher.cls_head.last_layer.weight().T - model.centre) / 0.05
    teacher_VBK = teacher_NK.softmax(-1).unflatten(0, (2, IMAGES))
    terms = {
        (own, other): -(teacher_VBK[other] * student_VBK[own]).sum(-1).mean()
        for own in range(4)
        for other in range(2)
        if own != other
    }
    whole = sum(terms[pair] for pair in [(0, 1), (1, 0)]) / 6
    local = sum(terms[pair] for pair in [(2, 0), (2, 1), (3, 0), (3, 1)]) / 6
    torch.testing.assert_close(output.parts["global_cls"], whole.detach())
    torch.testing.assert_close(output.parts["local_cls"], local.detach())


def test_pixels_alone_need_no_teacher(variant):
    config = variant(loss__cls=0.0, views__num_local=0)
    views = draw_views(config, 2, 32, torch.Generator().manual_seed(0))
    model = PerA(config, 3)
    output = model(views, None, 0.05)
    torch.testing.assert_close(output.loss.detach(), 0.01 * output.parts["pixel"])
    assert output.parts["global_cls"] == output.parts["local_cls"] == 0
    assert torch.equal(output.teacher_mean_K, model.centre)
    (output.loss + output.spread_VBX.sum()).backward()
    assert not any("cls_head" in name for name in model.trainable())
    assert all(parameter.grad is not None for parameter in model.trainable().values())


def test_nothing_predicted_costs_no_tokens(variant):
    config = variant(masks__learnable=0.0, loss__pixel=0.0)
    generator = torch.Generator().manual_seed(0)
    views = draw_views(config, 2, 32, generator), draw_views(config, 2, 24, generator)
    output = PerA(config, 3)(*views, 0.05)
    assert output.student.predictions_NPD.shape[1] == 0
    assert output.parts["pixel"] == 0
    torch.testing.assert_close(output.loss.detach(), output.parts["global_cls"] + output.parts["local_cls"])


def test_mask_tokens_join_where_they_are_told_to(variant, tiny):
    views = draw_views(tiny, 2, 32, torch.Generator().manual_seed(0))
    outputs = []
    for join in (None, 0, tiny.model.depth // 2):
        torch.manual_seed(0)
        outputs.append(PerA(variant(model__join=join, views__num_local=0), 3)(views, None, 0.05).student)
    assert torch.equal(outputs[0].cls_NZ, outputs[2].cls_NZ)
    # At the input the cls token looks at them from the first block on.
    assert (outputs[0].cls_NZ - outputs[1].cls_NZ).abs().max() > 1e-4


def test_teacher_and_centre_follow_by_their_momenta(model):
    with torch.no_grad():
        model.student.backbone.cls_token.add_(1.0)
        before = model.teacher.backbone.cls_token.clone()
    mean = torch.arange(32.0)
    model.update_teacher(0.9, mean)
    torch.testing.assert_close(model.teacher.backbone.cls_token, before + 0.1)
    torch.testing.assert_close(model.centre, 0.1 * mean)
    model.update_teacher(1.0, mean)
    torch.testing.assert_close(model.centre, 0.19 * mean)
