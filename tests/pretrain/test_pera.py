from dataclasses import replace

import torch

from pretrain.config import LoaderConfig
from pretrain.data import BatchMaker
from pretrain.losses import cross_entropy_by_view, teacher_targets
from pretrain.pera import PerA
from pretrain.sources import begin_stream, continued_stream, make_colour, open_sources


def make_views(config):
    sources, four = open_sources(config), replace(config, loader=LoaderConfig(batch=4))
    with continued_stream(four, sources, begin_stream(four, sources)) as stream:
        batch, _ = BatchMaker(stream, four, sources.places).make(0)
    colour = make_colour(sources, config)
    local_views = batch.local_views and batch.local_views.to_views(torch.device("cpu"), colour)
    return batch.global_views.to_views(torch.device("cpu"), colour), local_views


def blank(images, indices, patch_px=8):
    """Set some patches of each image to noise."""
    changed = images.clone()
    columns = images.shape[-1] // patch_px
    for image, patches in zip(changed, indices.tolist(), strict=True):
        for patch in patches:
            y, x = patch // columns * patch_px, patch % columns * patch_px
            image[:, y : y + patch_px, x : x + patch_px] = torch.randn(3, patch_px, patch_px)
    return changed


def test_teacher_starts_as_the_student_and_gets_no_gradient(tiny):
    model = PerA(tiny, 3)
    for name, value in model.teacher.state_dict().items():
        assert torch.equal(value, model.student.state_dict()[name])
    output = model(*make_views(tiny), 0.05)
    output.loss.backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    assert all(parameter.grad is not None for parameter in model.trainable().values())


def test_no_side_sees_the_others_pixels(tiny):
    model = PerA(tiny, 3)
    views, local_views = make_views(tiny)
    plain = model(views, local_views, 0.05)
    # Noise where the student does not look, targets included: its features stay; only the pixel loss may change.
    unseen = torch.cat([views.learnable_indices_NP, views.teacher_indices_NP], 1)
    student_blind = model(replace(views, student_NCHW=blank(views.student_NCHW, unseen)), local_views, 0.05)
    torch.testing.assert_close(student_blind.student.cls_logits_VBK, plain.student.cls_logits_VBK)
    assert student_blind.parts["pixel"] != plain.parts["pixel"]
    unseen = torch.cat([views.learnable_indices_NP, views.student_indices_NP], 1)
    teacher_blind = model(replace(views, teacher_NCHW=blank(views.teacher_NCHW, unseen)), local_views, 0.05)
    torch.testing.assert_close(teacher_blind.teacher_logits_VBK, plain.teacher_logits_VBK)
    # And what they do see matters.
    seen = model(replace(views, student_NCHW=blank(views.student_NCHW, views.student_indices_NP)), local_views, 0.05)
    assert (seen.student.cls_logits_VBK[:2] - plain.student.cls_logits_VBK[:2]).abs().max() > 1e-4


def test_total_is_the_weighted_sum(tiny):
    parts = PerA(tiny, 3)(*make_views(tiny), 0.05).parts
    total = parts["global_cls"] + parts["local_cls"] + 0.1 * parts["koleo"] + 0.01 * parts["pixel"]
    torch.testing.assert_close(parts["loss"], total)


def test_equal_sides_diverge_by_nothing(tiny):
    model = PerA(tiny, 3)
    views, local_views = make_views(tiny)
    logits = model(views, local_views, 0.05).teacher_logits_VBK
    targets = teacher_targets(logits, torch.zeros(32), 0.1)
    cross_entropy = cross_entropy_by_view(logits, targets.probabilities_VBK, 0.1).mean()
    torch.testing.assert_close(cross_entropy, targets.entropy)


def test_no_local_views_are_supported(variant):
    config = variant(views__num_local=0)
    views, local_views = make_views(config)
    assert local_views is None
    output = PerA(config, 3)(views, None, 0.05)
    assert torch.isfinite(output.loss)
    assert output.parts["local_cls"] == 0


def test_teacher_and_centre_follow_by_their_momenta(tiny):
    model = PerA(tiny, 3)
    with torch.no_grad():
        model.student.backbone.cls_token.add_(1.0)
        before = model.teacher.backbone.cls_token.clone()
    mean = torch.arange(32.0)
    model.update_teacher(0.9, mean)
    torch.testing.assert_close(model.teacher.backbone.cls_token, before + 0.1)
    torch.testing.assert_close(model.centre, 0.1 * mean)
    model.update_teacher(1.0, mean)
    torch.testing.assert_close(model.centre, 0.19 * mean)
