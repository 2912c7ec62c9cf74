import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pretrain.pera import PerA
from pretrain.train import train
from shards.tables import read_version

IN_A_FRESH_PROCESS = """
import sys, timm, torch
torch.set_num_threads(1)
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
with torch.no_grad():
    torch.save(model(images), sys.argv[2])
assert "pretrain" not in sys.modules
"""


@pytest.fixture
def outcome(tiny):
    return train(replace(tiny, max_steps=2))


def test_timm_alone_gives_the_teachers_features(tiny, outcome, tmp_path):
    file = tmp_path / "features.pt"
    command = [sys.executable, "-c", IN_A_FRESH_PROCESS, outcome.export_url, str(file)]
    subprocess.run(command, check=True, cwd=tmp_path, env={"HF_HUB_OFFLINE": "1"})
    model = PerA(tiny, 3)
    model.load_state_dict(torch.load(outcome.checkpoint_url, weights_only=True)["model"])
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    everything = torch.arange(16).expand(2, 16)
    with torch.no_grad():
        features = model._encode(model.teacher.backbone, images, everything)
    torch.testing.assert_close(torch.load(file, weights_only=True), features, atol=1e-6, rtol=1e-5)


def test_the_description_says_all(tiny, outcome):
    folder = Path(outcome.export_url)
    description = json.loads((folder / "model.json").read_text())
    assert (description["format"], description["format_version"]) == ("pera-export", 1)
    assert (description["image_px"], description["patch_px"], description["step"]) == (32, 8, 2)
    assert (description["samples_seen"], description["bands"]) == (20, ["red", "green", "blue"])
    bands = read_version(tiny.data).bands
    assert description["mean"] == pytest.approx([band.mean / 255 for band in bands])
    assert description["std"] == pytest.approx([band.std / 255 for band in bands])
    weights = (folder / "model.safetensors").read_bytes()
    assert description["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert len(description["dataset_digest"]) == len(description["config_sha256"]) == 64
