import pytest
import torch
from torch.nn import functional

from pretrain.config import ModelConfig
from pretrain.model.backbone import (
    DropPath,
    SparseBackbone,
    build_vit,
    pick_positions,
)
from tests.pretrain.patches import gather

CONFIG = ModelConfig(image_px=32, patch_px=8, width=32, depth=3, heads=2)


def make_pair(num_bands=3):
    backbone, vit = SparseBackbone(CONFIG, num_bands), build_vit(CONFIG, num_bands)
    vit.load_state_dict(backbone.state_dict(), strict=True)
    return backbone, vit.eval()


@pytest.mark.parametrize("num_bands", [1, 3, 5])
def test_all_patches_in_any_order_give_timms_features(num_bands):
    backbone, vit = make_pair(num_bands)
    images = torch.randn(2, num_bands, 32, 32)
    order = torch.stack([torch.randperm(16), torch.randperm(16)])
    patches = gather(images, 8, order)
    tokens = backbone.run_blocks(backbone.embed(patches, order, backbone.positions(4)), range(3))
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.norm(tokens)[:, 0], vit.forward_features(images)[:, 0], atol=1e-5, rtol=1e-4
        )


def test_local_positions_use_the_offset_scale():
    backbone, _ = make_pair()
    grid = backbone.pos_embed[:, 1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    expected = functional.interpolate(grid, scale_factor=3.1 / 4, mode="bicubic").permute(0, 2, 3, 1).reshape(9, 32)
    torch.testing.assert_close(backbone.positions(3), expected)


def test_drop_path_computes_a_subset_and_keeps_the_expectation():
    backbone, _ = make_pair()
    block, tokens = backbone.blocks[0], torch.randn(8, 5, 32)
    with torch.no_grad():
        first_branch = block.attn(block.norm1(tokens))
        generator = torch.Generator().manual_seed(3)
        kept = DropPath(rate=0.25, generator=torch.Generator().manual_seed(3)).subset(8)
        block.mlp.fc2.weight.zero_()
        block.mlp.fc2.bias.zero_()
        out = backbone.run_blocks(tokens, [0], DropPath(rate=0.25, generator=generator))
    assert len(set(kept.tolist())) == 6
    expected = tokens.clone()
    expected[kept] += first_branch[kept] * 8 / 6
    torch.testing.assert_close(out, expected)


def test_drop_path_zero_is_the_plain_block():
    backbone, _ = make_pair()
    tokens = torch.randn(4, 5, 32)
    plain = backbone.run_blocks(tokens, [0])
    assert torch.equal(backbone.run_blocks(tokens, [0], DropPath(rate=0.0, generator=torch.Generator())), plain)


def test_gradients_of_positions_are_the_same_bits_every_time():
    """Threads must not decide the order in which a position's gradient adds up, or no run could be repeated."""
    torch.set_num_threads(2)  # one thread, as in the other tests, has only one order
    positions = torch.randn(64, 128, requires_grad=True)
    indices = torch.stack([torch.randperm(64)[:38] for _ in range(64)])
    weights = torch.randn(64, 38, 128)
    gradients = []
    for _ in range(12):
        positions.grad = None
        (pick_positions(positions, indices) * weights).sum().backward()
        assert positions.grad is not None
        gradients.append(positions.grad.clone())
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
