import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from pretrain.config import ModelConfig
from pretrain.model.backbone import SparseBackbone
from pretrain.runs.checkpoint import Position
from pretrain.runs.export import Origin, describe, write_export
from pretrain.runs.initial import load_initial
from shards.errors import UserError
from tests.pretrain.patches import gather

GOLDEN = Path(__file__).parents[1] / "model" / "golden" / "pera_golden.npz"
TINY = ModelConfig(image_px=224, patch_px=16, width=192, depth=12, heads=3)
SMALL = ModelConfig(image_px=32, patch_px=8, width=32, depth=2, heads=2)
RGB = ("red", "green", "blue")


def features(backbone, images):
    """Tokens of all patches, after the norm."""
    patch_px, grid = backbone.patch_embed.proj.weight.shape[-1], backbone.grid
    everything = torch.arange(grid**2).expand(len(images), -1)
    patches = gather(images, patch_px, everything)
    with torch.no_grad():
        tokens = backbone.embed(patches, everything, backbone.positions(grid))
        return backbone.norm(backbone.run_blocks(tokens, range(backbone.depth)))


def small_vit(**changes):
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    return VisionTransformer(**{**arguments, **changes})


def save(folder, state):
    file = folder / "model.safetensors"
    safetensors.torch.save_file(dict(state), str(file))
    return str(file)


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory):
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=10)
    return save(tmp_path_factory.mktemp("timm"), network.state_dict())


@pytest.mark.parametrize(
    "changes", [{}, {"image_px": 112}, {"image_px": 64, "patch_px": 8}], ids=["same", "112", "patch 8"]
)
def test_a_timm_checkpoint_gives_timms_features(tiny_file, changes):
    backbone = SparseBackbone(replace(TINY, **changes), 3)
    told = load_initial(backbone, tiny_file, RGB)
    size = {"img_size": changes.get("image_px", 224), "patch_size": changes.get("patch_px", 16)}
    overlay = {"file": tiny_file, "num_classes": 10}
    network = timm.create_model(
        "vit_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **size
    )
    images = torch.randn(2, 3, size["img_size"], size["img_size"], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network.double().eval().forward_features(images.double())
    torch.testing.assert_close(features(backbone.double(), images.double()), expected, atol=1e-6, rtol=0)
    assert "left out head.bias, head.weight" in told
    assert ("position embedding 14 × 14 → 7 × 7" in told) == (changes == {"image_px": 112})
    assert ("patch 16 px → 8 px" in told) == ("patch_px" in changes)


def test_official_weights_are_known_by_their_names(tmp_path):
    with np.load(GOLDEN) as golden:
        state = {name[2:]: torch.from_numpy(golden[name]) for name in golden.files if name.startswith("w.")}
    # A fresh run's two sides are equal; here they must be told apart.
    state |= {name: tensor + 1 for name, tensor in state.items() if name.startswith("student.")}
    content = {"model": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}
    torch.save({**content, "args": argparse.Namespace(lr=0.1)}, tmp_path / "official.pth")
    backbone = SparseBackbone(ModelConfig(image_px=48, patch_px=8, width=32, depth=4, heads=2), 3)
    told = load_initial(backbone, str(tmp_path / "official.pth"), RGB)
    assert "(model.module.teacher.backbone.*)" in told
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, state[f"teacher.backbone.{name}"].float()), name


@pytest.mark.parametrize("prefix", ["", "state_dict.", "student.backbone.", "model_ema.", "backbone."])
def test_where_there_is_one_backbone_it_is_found(tmp_path, prefix):
    vit = small_vit()
    state = {f"{prefix}{name}": tensor for name, tensor in vit.state_dict().items()}
    state |= {"model.patch_embed.proj.weight": torch.zeros(32, 3, 8, 8)} if "ema" in prefix else {}
    backbone = SparseBackbone(SMALL, 3)
    load_initial(backbone, save(tmp_path, state), RGB)
    assert torch.equal(backbone.pos_embed, vit.pos_embed)


def test_an_export_of_a_run_starts_another(tmp_path):
    first = SparseBackbone(SMALL, 4)
    bands = ("red", "green", "blue", "nir")
    origin = Origin(bands=bands, dtype="uint8", dataset_digest="d", config_sha256="c", versions={})
    description = describe(SMALL, origin, Position(), mean=(0.5,) * 4, std=(0.2,) * 4)
    write_export(str(tmp_path / "e"), first.state_dict(), description)
    second = SparseBackbone(SMALL, 4)
    told = load_initial(second, str(tmp_path / "e"), ("nir", "red", "green", "blue"))
    assert "bands red, green, blue, nir → nir, red, green, blue" in told
    images = torch.randn(2, 4, 32, 32)
    torch.testing.assert_close(features(second, images[:, [3, 0, 1, 2]]), features(first, images), atol=1e-5, rtol=0)
    with pytest.raises(UserError, match=r"is for red, green, blue, nir, this run has red, green, blue, swir16"):
        load_initial(second, str(tmp_path / "e"), ("red", "green", "blue", "swir16"))
    with pytest.raises(UserError, match=r"has heads 2, but model\.heads is 4: set it to 2"):
        load_initial(SparseBackbone(replace(SMALL, heads=4), 4), str(tmp_path / "e"), bands)
    (tmp_path / "e" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is damaged: its sha256"):
        load_initial(second, str(tmp_path / "e"), bands)


def test_a_timm_folder_says_its_heads(tmp_path):
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, depth=2, num_classes=0)
    save(tmp_path, vit.state_dict())
    config = {"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 2}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    load_initial(SparseBackbone(replace(TINY, depth=2), 3), str(tmp_path), RGB)
    with pytest.raises(UserError, match=r"has heads 3, but model\.heads is 6"):
        load_initial(SparseBackbone(replace(TINY, depth=2, heads=6), 3), str(tmp_path), RGB)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json describes no model of timm"):
        load_initial(SparseBackbone(replace(TINY, depth=2), 3), str(tmp_path), RGB)


def test_one_band_stands_for_red_green_and_blue(tmp_path):
    vit = small_vit().eval()
    backbone = SparseBackbone(SMALL, 1)
    told = load_initial(backbone, save(tmp_path, vit.state_dict()), ("pan",))
    assert "summed for pan" in told
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        expected = vit.forward_features(image.expand(-1, 3, -1, -1))
    torch.testing.assert_close(features(backbone, image), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("num_bands", "bands", "told"),
    [
        (3, ("blue", "green", "red"), "→ blue, green, red"),
        (3, ("nir", "red", "green"), "3 channels taken for nir, red"),
    ],
)
def test_what_was_done_with_the_bands_is_told(tmp_path, num_bands, bands, told):
    vit, backbone = small_vit(), SparseBackbone(SMALL, num_bands)
    assert told in load_initial(backbone, save(tmp_path, vit.state_dict()), bands)
    order = [2, 1, 0] if bands[0] == "blue" else [0, 1, 2]
    assert torch.equal(backbone.patch_embed.proj.weight, vit.patch_embed.proj.weight[:, order])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reg_tokens": 4}, r"has registers \(reg_token\)"),
        ({"init_values": 0.1}, r"has LayerScale \(blocks\.0\.ls1\.gamma"),
        ({"class_token": False, "global_pool": "avg"}, r"has no class token"),
        ({"no_embed_class": True}, r"pos_embed \[1, 16, 32\] is not that of a class token"),
        ({"pos_embed": "none"}, r"lacks pos_embed"),
        ({"depth": 3}, r"has depth 3, but model\.depth is 2"),
        ({"embed_dim": 64}, r"has width 64, but model\.width is 32"),
        ({"mlp_ratio": 2}, r"blocks\.0\.mlp\.fc1\.weight has the shape \[64, 32\], the backbone's is \[128, 32\]"),
        ({"qk_norm": True}, r"has blocks\.0\.attn\.k_norm\.bias, .* and 5 more beyond"),
        ({"global_pool": "avg", "fc_norm": True}, r"lacks norm\.bias, norm\.weight"),
        ({"in_chans": 5}, r"is for 5 bands, this run has red, green, blue"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_changes_nothing(tmp_path, arguments, message):
    backbone = SparseBackbone(SMALL, 3)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(UserError, match=message) as caught:
        load_initial(backbone, save(tmp_path, small_vit(**arguments).state_dict()), RGB)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_a_class_token_without_a_width_is_refused(tmp_path):
    state = {**small_vit().state_dict(), "cls_token": torch.zeros(())}
    with pytest.raises(UserError, match=r"cls_token has the shape \[\], the backbone's is \[1, 1, 32\]"):
        load_initial(SparseBackbone(SMALL, 3), save(tmp_path, state), RGB)


class Evil:
    def __reduce__(self):
        return (open, ("ran", "w"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("code.pth", {"model": {}, "extra": Evil()}, "could run code"),
        ("nothing.pth", {"model": {"conv1.weight": torch.zeros(1)}}, "no vision transformer by timm's names"),
        (
            "two.pth",
            {side: {"patch_embed.proj.weight": torch.zeros(1)} for side in ("a", "b")},
            r"several backbones: a\., b\.",
        ),
    ],
)
def test_torch_files(tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    torch.save(content, name)
    with pytest.raises(UserError, match=message):
        load_initial(SparseBackbone(SMALL, 3), name, RGB)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["broken.pth", "broken.safetensors", "empty.pth", "cut.pth", "https.pth", "timm.pth", "MZ.pth"]
)
def test_damaged_files_are_refused(tmp_path, name):
    torch.save(small_vit().state_dict(), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    texts = {"https.pth": b"https://x", "timm.pth": b"timm", "MZ.pth": b"MZ", "empty.pth": b""}
    texts["cut.pth"] = whole[: len(whole) // 2]
    (tmp_path / name).write_bytes(texts.get(name, b"not weights at all"))
    with pytest.raises(UserError, match="is damaged"):
        load_initial(SparseBackbone(SMALL, 3), str(tmp_path / name), RGB)


@pytest.mark.parametrize("name", ["nowhere.pth", "."])
def test_where_there_is_nothing_it_says_what_to_give(tmp_path, name):
    with pytest.raises(UserError, match=r"holds no weights: give an export \(RUN/exports/step_"):
        load_initial(SparseBackbone(SMALL, 3), str(tmp_path / name), RGB)


def test_timm_names_are_read_from_the_cache_and_never_downloaded(tmp_path, tiny_file, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    name = "vit_tiny_patch16_224.augreg_in21k"
    backbone = SparseBackbone(TINY, 3)
    with pytest.raises(UserError, match=rf"hf download timm/{name} model\.safetensors"):
        load_initial(backbone, f"timm:{name}", RGB)
    with pytest.raises(UserError, match="has no model 'vit_of_nobody'"):
        load_initial(backbone, "timm:vit_of_nobody", RGB)
    # As the hub's own client lays it out.
    repository = tmp_path / f"models--timm--{name}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (repository / "snapshots" / ("0" * 40) / "model.safetensors").symlink_to(tiny_file)
    assert f"timm:{name} (sha256 " in load_initial(backbone, f"timm:{name}", RGB)
    assert torch.equal(backbone.cls_token, safetensors.torch.load_file(tiny_file)["cls_token"])
