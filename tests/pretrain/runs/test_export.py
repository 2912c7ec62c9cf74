import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pretrain.config import ModelConfig
from pretrain.model.backbone import SparseBackbone
from pretrain.runs.checkpoint import Position
from pretrain.runs.export import Origin, describe, write_export
from pretrain.runs.exports import list_exports, read_export
from pretrain.training.loop import train
from shards import storage
from shards.errors import UserError
from shards.tables import read_version
from tests.pretrain.patches import gather

MODEL = ModelConfig(image_px=32, patch_px=8, width=32, depth=3, heads=2)
POSITION = Position(step=2, samples=20)
IN_A_FRESH_PROCESS = """
import sys, timm, torch
torch.set_num_threads(1)
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
images = torch.linspace(-1, 1, 2 * 4 * 32 * 32).reshape(2, 4, 32, 32)
with torch.no_grad():
    torch.save([model.to(t).forward_features(images.to(t)) for t in (torch.float32, torch.float64)], sys.argv[2])
assert not {"pretrain", "shards"} & set(sys.modules)
"""


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return SparseBackbone(MODEL, 4)


@pytest.fixture
def description():
    origin = Origin(
        bands=("red", "green", "blue", "nir"),
        dtype="uint8",
        dataset_digest="d" * 64,
        config_sha256="c" * 64,
        versions={"torch": "2"},
    )
    return describe(MODEL, origin, POSITION, mean=(0.1, 0.2, 0.3, 0.4), std=(0.5,) * 4)


def all_tokens(backbone, images):
    everything = torch.arange(16).expand(2, 16)
    patches = gather(images, 8, everything)
    with torch.no_grad():
        tokens = backbone.run_blocks(backbone.embed(patches, everything, backbone.positions(4)), range(3))
        return backbone.norm(tokens)


def test_timm_alone_gives_the_same_features(backbone, description, tmp_path):
    write_export(str(tmp_path / "e"), backbone.state_dict(), description)
    file = tmp_path / "features.pt"
    command = [sys.executable, "-c", IN_A_FRESH_PROCESS, str(tmp_path / "e"), str(file)]
    subprocess.run(command, check=True, cwd=tmp_path, env={"HF_HUB_OFFLINE": "1"})
    single, double = torch.load(file, weights_only=True)
    images = torch.linspace(-1, 1, 2 * 4 * 32 * 32).reshape(2, 4, 32, 32)
    torch.testing.assert_close(single, all_tokens(backbone, images), atol=1e-6, rtol=1e-6)
    # Without the rounding of float32, a network that is only nearly the same shows.
    torch.testing.assert_close(double, all_tokens(backbone.double(), images.double()), atol=1e-12, rtol=1e-12)


def test_a_run_exports_its_teacher_and_says_all_of_it(tiny):
    outcome = train(replace(tiny, max_steps=2))
    export = read_export(outcome.export_url)
    described = export.description
    assert (described["format"], described["format_version"]) == ("pera-export", 1)
    assert (described["image_px"], described["patch_px"], described["step"]) == (32, 8, 2)
    assert (described["samples_seen"], described["bands"]) == (20, ["red", "green", "blue"])
    version = read_version(tiny.data)
    assert described["mean"] == pytest.approx([band.mean / 255 for band in version.bands])
    assert described["std"] == pytest.approx([band.std / 255 for band in version.bands])
    assert described["weights_sha256"] == hashlib.sha256(export.weights).hexdigest()
    assert described["dataset_digest"] == version.digest
    assert len(described["config_sha256"]) == 64
    model = torch.load(outcome.checkpoint_url, weights_only=True)["model"]
    prefix = "teacher.backbone."
    teacher = {name.removeprefix(prefix): value for name, value in model.items() if name.startswith(prefix)}
    weights = read_weights(export)
    assert weights.keys() == teacher.keys()
    assert all(torch.equal(weights[name], teacher[name]) for name in teacher)


def read_weights(export):
    return safetensors.torch.load(export.weights)


def test_whoever_dies_while_writing_leaves_no_valid_export(backbone, description, tmp_path, monkeypatch):
    """The order of the files makes it so, also where an older export of the same step is replaced."""
    run = tmp_path / "run"
    folder = run / "exports" / "step_00000002"
    write = storage.write_bytes
    for dies_at in ("model.safetensors", "config.json", "model.json"):
        write_export(str(folder), backbone.state_dict(), description)
        assert list(list_exports(str(run))) == [2]

        def write_until(url, data, dies_at=dies_at):
            if url.endswith(dies_at):
                raise KeyboardInterrupt
            write(url, data)

        with monkeypatch.context() as patch:
            patch.setattr(storage, "write_bytes", write_until)
            with pytest.raises(KeyboardInterrupt):
                write_export(str(folder), backbone.state_dict(), description)
        assert list_exports(str(run)) == {}


def test_exports_are_listed_by_step_and_only_if_complete(backbone, description, tmp_path):
    run = tmp_path / "run"
    assert list_exports(str(run)) == {}
    for step in (90, 100, 110):
        write_export(str(run / "exports" / f"step_{step:08d}"), backbone.state_dict(), description)
    (run / "exports" / "step_00000110" / "model.json").unlink()
    assert list_exports(str(run)) == {step: f"{run}/exports/step_{step:08d}" for step in (90, 100)}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"other", "is damaged: its sha256"),
        ("model.json", b"{", "not JSON"),
        ("model.json", json.dumps({"format": "pera-export", "format_version": 7}).encode(), "version 1: found"),
        ("model.json", b"[]", "found None"),
    ],
)
def test_a_damaged_export_is_refused_by_name(backbone, description, tmp_path, name, content, message):
    folder = tmp_path / "e"
    write_export(str(folder), backbone.state_dict(), description)
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_export(str(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model.json"])
def test_a_missing_file_is_named(backbone, description, tmp_path, name):
    folder = tmp_path / "e"
    write_export(str(folder), backbone.state_dict(), description)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} does not exist"):
        read_export(str(folder))


def test_exports_of_steps_that_are_made_again_are_not_taken_for_the_runs(tiny, capsys):
    train(tiny)
    shutil.rmtree(f"{tiny.run}/checkpoints")
    stopped = train(replace(tiny, max_steps=2))
    assert list(list_exports(tiny.run)) == [2]
    told = (
        "pretrain: going on from step 0: exports of step 2, 4, 6 are set aside (their model.json is model.json.old now)"
    )
    assert told in capsys.readouterr().err
    aside = Path(tiny.run, "exports", "step_00000006")
    assert sorted(path.name for path in aside.iterdir()) == ["config.json", "model.json.old", "model.safetensors"]
    assert "model.json.old" not in [path.name for path in Path(stopped.export_url).iterdir()]
    train(tiny)
    assert list(list_exports(tiny.run)) == [2, 4, 6]
    assert "aside" not in capsys.readouterr().err
