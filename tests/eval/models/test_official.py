import argparse
import pickle
from pathlib import Path

import pytest
import timm
import torch

from eval.models.model import export_model
from eval.models.official import official_export, teacher_backbone
from shards.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8, embed_dim=64, depth=3, num_heads=1
    ).eval()


def _save(path: Path, network, prefix="teacher.backbone.", **others) -> Path:
    weights = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    student = {name.replace("teacher", "student"): torch.zeros_like(tensor) for name, tensor in weights.items()}
    torch.save({"model": student | weights, "epoch": 3, **others}, path)
    return path


@pytest.mark.parametrize("prefix", ["teacher.backbone.", "module.teacher.backbone."])
def test_features_are_those_of_the_teacher(tmp_path: Path, network, prefix):
    """A namespace of arguments, which such files hold, does no harm."""
    path = _save(tmp_path / "pera.pth", network, prefix, args=argparse.Namespace(lr=1e-3))
    export = official_export(str(path))
    assert (export.image_px, export.model_args["depth"], export.model_args["num_heads"]) == (32, 3, 1)
    assert (export.label, export.run, export.step) == ("pera.pth", None, None)
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    embedded = export_model(export, CPU).embed(images)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        tokens = network.forward_features(((images / 255 - mean) / std).permute(0, 3, 1, 2))
    torch.testing.assert_close(embedded.pooled["cls"], tokens[:, 0])


def test_normalisation_and_heads_can_be_given(tmp_path: Path, network):
    path = _save(tmp_path / "pera.pth", network)
    export = official_export(f"{path}?mean=.3585,.3741,.3155&std=.1483,.1283,.1198&heads=2")
    assert (export.mean, export.std) == ((0.3585, 0.3741, 0.3155), (0.1483, 0.1283, 0.1198))
    assert export.model_args["num_heads"] == 2
    plain = official_export(str(path))
    assert export_model(export, CPU).digest != export_model(plain, CPU).digest


@pytest.mark.parametrize(
    ("options", "message"), [("?heads=two", "is no number"), ("?mean=1,2", "use .mean"), ("?colour=1", "use .mean")]
)
def test_wrong_options(tmp_path: Path, network, options, message):
    with pytest.raises(UserError, match=message):
        official_export(f"{_save(tmp_path / 'pera.pth', network)}{options}")


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_a_pickle_that_needs_code_is_refused_and_never_run(tmp_path: Path, network):
    path = _save(tmp_path / "pera.pth", network, extra=_Payload(tmp_path / "ran"))
    with pytest.raises(UserError, match=r"pera\.pth is refused: .* not tensors alone \(it needs \S+\)") as caught:
        official_export(str(path))
    assert "\n" not in str(caught.value)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(_Payload(tmp_path / "ran")))
    with pytest.raises(UserError, match=r"plain\.pth is refused"):
        official_export(str(tmp_path / "plain.pth"))
    assert not (tmp_path / "ran").exists()


def test_other_content_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "other.pth"
    with pytest.raises(UserError, match=r"other\.pth does not exist"):
        official_export(str(path))
    torch.save({"state_dict": {"conv.weight": torch.zeros(2)}}, path)
    with pytest.raises(UserError, match=r"no tensors named teacher\.backbone"):
        official_export(str(path))
    torch.save({"teacher.backbone.conv.weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="no plain vision transformer"):
        official_export(str(path))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"other\.pth is refused: it is damaged"):
        official_export(str(path))


def test_a_width_without_known_heads_asks_for_them(tmp_path: Path):
    network = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=2
    )
    path = _save(tmp_path / "pera.pth", network)
    with pytest.raises(UserError, match=r"add \?heads=N"):
        official_export(str(path))
    assert official_export(f"{path}?heads=2").model_args["embed_dim"] == 32


def test_nested_dictionaries_are_searched():
    tensor = torch.zeros(1)
    assert teacher_backbone({"a": [1], "b": {"c": {"teacher.backbone.norm.weight": tensor}}}) == {"norm.weight": tensor}
    assert teacher_backbone({"teacher.head.weight": tensor}) == {}
