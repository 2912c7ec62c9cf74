from dataclasses import replace

import pytest
import torch

from pretrain.batches.batch import patchify
from pretrain.model.inputs import ViewPatches
from pretrain.model.pera import PerA
from pretrain.pages.inspection import inspect, patch_features


def make_views(rng, num_images, grid, patch_px, sizes):
    """Views of noise, and all their patches."""
    patches = patchify(torch.randn(num_images, 3, grid * patch_px, grid * patch_px, generator=rng), patch_px)
    order = torch.stack([torch.randperm(grid * grid, generator=rng) for _ in range(num_images)])
    parts = [part.sort(1).values for part in order.split([*sizes, grid * grid - sum(sizes)], 1)]
    picked = [patches.gather(1, part[:, :, None].expand(-1, -1, patches.shape[-1])) for part in parts]
    names = ("student", "learnable", "teacher")
    values = {f"{name}_NPD": value for name, value in zip(names, picked, strict=True)}
    indices = {f"{name}_indices_NP": part for name, part in zip(names, parts, strict=True)}
    return ViewPatches(**values, **indices), patches


@pytest.fixture
def model(tiny):
    torch.manual_seed(0)
    return PerA(tiny, 3)


@pytest.fixture
def views():
    rng = torch.Generator().manual_seed(1)
    # 3 images: 2 global views of 4 × 4 patches, 2 local ones of 3 × 3.
    return make_views(rng, 6, 4, 8, (3, 3)), make_views(rng, 6, 3, 8, (2, 0))


def test_pairs_are_those_of_the_loss(model, views):
    (global_views, whole), (local_views, _) = views
    findings = inspect(model, global_views, local_views, whole, 0.05)
    output = model(global_views, local_views, 0.05)
    assert findings.pairs.cross_entropy_VB.shape == (4, 3)
    parts = output.parts["global_cls"] + output.parts["local_cls"]
    assert float(findings.pairs.cross_entropy_VB.mean()) == pytest.approx(float(parts), rel=1e-5)
    assert float(findings.pairs.cross_entropy_VB[:2].sum() / 12) == pytest.approx(
        float(output.parts["global_cls"]), rel=1e-5
    )
    assert (findings.pairs.place_VB >= 1).all()
    assert (findings.pairs.place_VB <= 32).all()


def test_the_teachers_choice_is_first_where_both_sides_say_the_same(model, views):
    (global_views, whole), (local_views, _) = views
    # The teacher begins as the student; given the same patches, both say the same.
    same = replace(local_views, student_NPD=local_views.teacher_NPD, student_indices_NP=local_views.teacher_indices_NP)
    findings = inspect(model, global_views, same, whole, 0.05)
    assert findings.pairs.place_VB[2:].unique().tolist() == [1]
    # A centre that the student does not know makes another prototype the teacher's first.
    model.centre[findings.pairs.choice_VB[2, 0]] = 100.0
    moved = inspect(model, global_views, same, whole, 0.05)
    assert moved.pairs.choice_VB[2, 0] != findings.pairs.choice_VB[2, 0]
    assert moved.pairs.place_VB[2, 0] > 1


def test_predictions_are_in_the_order_of_the_patches(model, views):
    (global_views, whole), (local_views, _) = views
    findings = inspect(model, global_views, local_views, whole, 0.05)
    pixel = (findings.predictions_NPD - global_views.learnable_NPD).square().sum(-1).mean()
    assert float(pixel) == pytest.approx(float(model(global_views, local_views, 0.05).parts["pixel"]), rel=1e-5)


def test_features_are_those_of_the_dense_timm_model(model, views):
    (_, whole), _ = views
    timm = pytest.importorskip("timm")
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0
    )
    vit.load_state_dict(model.teacher.backbone.state_dict())
    grid = whole.reshape(6, 4, 4, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(6, 3, 32, 32)
    with torch.no_grad():
        expected = vit.forward_features(grid)[:, 1:]
    torch.testing.assert_close(patch_features(model, whole), expected, rtol=1e-4, atol=1e-5)
