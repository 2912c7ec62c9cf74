import json
from pathlib import Path

import pytest
import timm
import torch

from eval.exports import find_export, read_export
from eval.models import RGB, export_model, timm_model
from eval.resolve import resolve_models
from shards.errors import UserError

CPU = torch.device("cpu")


def _resolve(*words, floors=False):
    return resolve_models(list(words), floors, CPU, lambda line: None)


def test_features_are_those_of_the_exported_network(tmp_path: Path, write_export):
    export = read_export(str(write_export(tmp_path / "e")))
    model = export_model(export, CPU)
    images = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    features = model.embed(images)
    network = timm.create_model(export.architecture, num_classes=0, **export.model_args).eval()
    timm.models.load_checkpoint(network, str(tmp_path / "e" / "model.safetensors"))
    x = (images.permute(0, 3, 1, 2) / 255 - 0.4) / 0.2
    with torch.inference_mode():
        tokens = network.forward_features(x)
    torch.testing.assert_close(features["cls"], tokens[:, 0])
    torch.testing.assert_close(features["patch_mean"], tokens[:, 1:].mean(dim=1))


def test_a_run_gives_its_newest_valid_export(tmp_path: Path, write_export):
    run = tmp_path / "run"
    for step in (90, 100, 110, 120):
        write_export(run / "exports" / f"step_{step:08d}", step=step)
    (run / "exports" / "step_00000120" / "model.json").unlink()
    weights = run / "exports" / "step_00000110" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    export, faults = find_export(str(run))
    assert export.step == 100
    assert export.label == "run step 100"
    assert len(faults) == 1
    assert "step_00000110/model.safetensors is corrupt" in faults[0]


def test_what_is_no_export_is_refused_by_name(tmp_path: Path, write_export):
    (tmp_path / "run" / "exports").mkdir(parents=True)
    with pytest.raises(UserError, match="run has no valid export"):
        find_export(str(tmp_path / "run"))
    with pytest.raises(UserError, match="nowhere does not exist"):
        find_export(str(tmp_path / "nowhere"))
    folder = write_export(tmp_path / "e")
    (folder / "model.safetensors").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"model\.safetensors is corrupt"):
        find_export(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="is missing"):
        find_export(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "version 1"),
        ({"mean": [0.5]}, "1 means"),
        ({"architecture": "vit_of_nobody"}, "cannot build vit_of_nobody"),
        ({"architecture": "resnet18", "model_args": {}}, "does not fit resnet18"),
    ],
)
def test_an_inconsistent_description_is_refused(tmp_path: Path, write_export, changes, message):
    folder = write_export(tmp_path / "e", **changes)
    with pytest.raises(UserError, match=message):
        _resolve(str(folder))


def test_a_description_that_lacks_a_field_or_is_no_json(tmp_path: Path, write_export):
    folder = write_export(tmp_path / "e")
    fields = json.loads((folder / "model.json").read_text())
    del fields["std"]
    (folder / "model.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="lacks 'std'"):
        find_export(str(folder))
    (folder / "model.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        find_export(str(folder))


def test_floors_come_last_and_random_init_has_the_export_s_shape(tmp_path: Path, write_export):
    models = _resolve("floor:image_stats", str(write_export(tmp_path / "e")), floors=True)
    assert [m.name for m in models] == ["e step 100", "floor:image_stats", "floor:random_init", "floor:random_conv"]
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    trained, fresh = models[0].embed(images)["cls"], models[2].embed(images)["cls"]
    assert trained.shape == fresh.shape
    assert not torch.equal(trained, fresh)
    again = _resolve(str(tmp_path / "e"), "floor:random_init")[1]
    assert torch.equal(again.embed(images)["cls"], fresh)
    assert again.digest == models[2].digest != models[0].digest


def test_models_of_one_name_are_told_apart(tmp_path: Path, write_export):
    words = [str(write_export(tmp_path / side / "run" / "exports" / "step_00000100")) for side in "ab"]
    assert [model.name for model in _resolve(*words)] == words


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("floor:random_init", "add one, or name a timm architecture"),
        ("floor:cellar", "floor:cellar does not exist"),
        ("timm:vit_of_nobody", "has no model 'vit_of_nobody'"),
        ("floor:random_init=vit_of_nobody", "has no model"),
    ],
)
def test_unknown_names(word, message):
    with pytest.raises(UserError, match=message):
        _resolve(word)


def test_timm_weights_are_never_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="not on disk and nothing is downloaded"):
        timm_model("vit_tiny_patch16_224", CPU)


def test_random_init_of_a_timm_architecture():
    model = _resolve("floor:random_init=resnet18")[0]
    assert (model.kind, model.bands, model.image_px) == ("floor", RGB, 224)
    assert model.embed(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))["pooled"].shape == (1, 512)
