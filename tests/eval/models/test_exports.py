import hashlib
import io
import json
import pickle
from pathlib import Path

import pytest
import timm
import torch

from eval.models.exports import describe_export, read_export
from eval.models.model import export_model
from eval.models.resolve import resolve_models
from shards.errors import UserError

CPU = torch.device("cpu")


def _torch_bytes(content) -> bytes:
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def _resolve(*words, floors=False):
    return resolve_models(list(words), floors, CPU, lambda line: None)


def test_features_are_those_of_the_exported_network(tmp_path: Path, write_export):
    export = read_export(str(write_export(tmp_path / "e")))
    model = export_model(export, CPU)
    images = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    features = model.embed(images).pooled
    network = timm.create_model(export.architecture, num_classes=0, **export.model_args).eval()
    timm.models.load_checkpoint(network, str(tmp_path / "e" / "model.safetensors"))
    x = (images.permute(0, 3, 1, 2) / 255 - 0.4) / 0.2
    with torch.inference_mode():
        tokens = network.forward_features(x)
    torch.testing.assert_close(features["cls"], tokens[:, 0])
    torch.testing.assert_close(features["patch_mean"], tokens[:, 1:].mean(dim=1))


def test_what_is_no_export_is_refused_by_name(tmp_path: Path, write_export):
    folder = write_export(tmp_path / "e")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"model\.safetensors is corrupt"):
        read_export(str(folder))
    assert describe_export(str(folder)).step == 100
    with pytest.raises(UserError, match="is corrupt"):
        describe_export(str(folder)).read_weights()
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="is missing"):
        read_export(str(folder))


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("write", [pickle.dumps, _torch_bytes])
def test_a_pickle_where_safetensors_belong_is_never_loaded(tmp_path: Path, write_export, write):
    """Not even with the right checksum."""
    folder = write_export(tmp_path / "e")
    data = write({"weights": _Payload(tmp_path / "ran")})
    (folder / "model.safetensors").write_bytes(data)
    fields = json.loads((folder / "model.json").read_text()) | {"weights_sha256": hashlib.sha256(data).hexdigest()}
    (folder / "model.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"model\.safetensors is a pickle, .* never loaded"):
        _resolve(str(folder))
    assert not (tmp_path / "ran").exists()


def test_labels_and_runs(tmp_path: Path, write_export):
    inside = read_export(str(write_export(tmp_path / "myrun" / "exports" / "step_00000100")) + "/")
    assert (inside.label, inside.run) == ("myrun step 100", str(tmp_path / "myrun"))
    alone = read_export(str(write_export(tmp_path / "e", step=7)))
    assert (alone.label, alone.run) == ("e step 7", None)


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
        read_export(str(folder))
    (folder / "model.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_export(str(folder))
