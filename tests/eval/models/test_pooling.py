import pytest
import timm
import torch

from eval.models.pooling import cell_px, pool

_TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}


def _build(name, **arguments):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0, **arguments).eval()


@pytest.mark.parametrize(
    ("changes", "num_prefix", "names"),
    [
        ({}, 1, ["cls", "patch_mean", "cls+mean"]),
        ({"reg_tokens": 4}, 5, ["cls", "patch_mean", "cls+mean"]),
        ({"class_token": False, "global_pool": "avg"}, 0, ["patch_mean"]),
    ],
)
def test_a_transformer_s_patches_are_its_tokens_without_class_token_and_registers(changes, num_prefix, names):
    network = _build("vit_tiny_patch16_224", **_TINY, **changes)
    x = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        tokens = network.forward_features(x)
        pooled, patches = pool(network, x)
    assert cell_px(network) == 8
    assert list(pooled) == names
    assert patches.shape == (3, 4, 4, 32)
    torch.testing.assert_close(patches[:, 1, 2], tokens[:, num_prefix + 6])
    torch.testing.assert_close(pooled["patch_mean"], tokens[:, num_prefix:].mean(dim=1))
    if num_prefix:
        torch.testing.assert_close(pooled["cls"], tokens[:, 0])
        torch.testing.assert_close(pooled["cls+mean"], torch.cat([pooled["cls"], pooled["patch_mean"]], dim=1))


def test_patches_of_an_oblong_input_keep_its_shape():
    network = _build("vit_tiny_patch16_224", **_TINY | {"img_size": (16, 32)})
    assert pool(network, torch.zeros(1, 3, 16, 32))[1].shape == (1, 2, 4, 32)


@pytest.mark.parametrize(
    ("name", "side_px", "shape"),
    [("resnet18", 64, (2, 2, 512)), ("swin_tiny_patch4_window7_224", 224, (7, 7, 768))],
)
def test_other_networks_give_what_the_classifier_sees_and_their_last_map(name, side_px, shape):
    network = _build(name)
    x = torch.randn(2, 3, side_px, side_px)
    with torch.inference_mode():
        out = network.forward_features(x)
        pooled, patches = pool(network, x)
        expected = network.forward_head(out, pre_logits=True)
    assert cell_px(network) == 32
    assert patches.shape[1:] == shape
    torch.testing.assert_close(pooled["pooled"], expected)
    # Both pool by the mean, so that the map's layout shows.
    if name == "swin_tiny_patch4_window7_224":
        torch.testing.assert_close(patches.mean(dim=(1, 2)), expected)
    else:
        torch.testing.assert_close(patches.permute(0, 3, 1, 2), out)


def test_tokens_on_no_grid_give_no_patches():
    network = _build("levit_128s")
    pooled, patches = pool(network, torch.randn(1, 3, 224, 224))
    assert patches is None
    assert pooled["pooled"].shape == (1, 384)
