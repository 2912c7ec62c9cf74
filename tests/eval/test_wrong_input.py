"""Wrong input on the command line: one line on stderr that names thing and remedy, exit code 2, nothing written."""

import hashlib
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.__main__ import main
from shards import cli


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run the command as a shell does; return the one line that it says."""

    def run(models, data, *flags):
        argv = ["eval", "--models", *map(str, models), "--data", f"d={data}", "--out", str(tmp_path / "out"), *flags]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as caught:
            cli.exit_with("eval", main)
        assert caught.value.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("eval: error:")]
        (line,) = lines
        return line

    return run


@pytest.fixture
def classes(tmp_path: Path, write_classes) -> Path:
    return write_classes(tmp_path / "d")


def test_an_empty_class_folder(fails, classes: Path, tmp_path: Path):
    (classes / "empty").mkdir()
    line = fails(["floor:image_stats"], classes)
    assert "class folder 'empty' of d" in line
    assert "fill or remove it" in line
    assert not (tmp_path / "out").exists()


def test_a_class_in_test_that_train_lacks(fails, classes: Path, tmp_path: Path):
    for part, labels in (("train", (0, 1)), ("test", (0, 1, 2))):
        names = [f"class_{label}/image_{n}" for label in labels for n in range(10 if part == "train" else 5)]
        (classes / f"{part}.txt").write_text("\n".join(name if part == "train" else _later(name) for name in names))
    line = fails(["floor:image_stats"], classes)
    assert "class 'class_2' is in test, but not in train in the given split of d: mend the split files" in line
    assert not (tmp_path / "out").exists()


def _later(name: str) -> str:
    stem, _, number = name.rpartition("_")
    return f"{stem}_{int(number) + 10}"


def test_a_mask_of_another_size_among_hundreds(fails, write_masks, tmp_path: Path):
    root = write_masks(tmp_path / "m", num_images=150)
    Image.fromarray(np.ones((31, 32), np.uint8)).save(root / "masks" / "7.png")
    line = fails(["floor:image_stats"], root)
    assert "images/7.png is 32×32, masks/7.png is 32×31 (1 such samples)" in line
    assert "mend or remove" in line
    assert not (tmp_path / "out").exists()


def test_a_model_for_other_bands(fails, classes: Path, write_export, tmp_path: Path):
    line = fails([write_export(tmp_path / "e", bands=("red", "green", "blue", "nir"))], classes)
    assert "e step 100 takes red,green,blue,nir, but d has no nir" in line
    assert "evaluate it on data with these bands" in line
    assert not (tmp_path / "out").exists()


def test_a_corrupt_export(fails, classes: Path, write_export, tmp_path: Path):
    weights = write_export(tmp_path / "e") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    line = fails([tmp_path / "e"], classes)
    assert f"{weights} is corrupt: its sha256 is not the one in model.json; export it again" in line
    assert not (tmp_path / "out").exists()


def test_a_pickle_where_safetensors_belong(fails, classes: Path, write_export, tmp_path: Path):
    folder = write_export(tmp_path / "e")
    data = pickle.dumps({"weights": [1.0]})
    (folder / "model.safetensors").write_bytes(data)
    fields = json.loads((folder / "model.json").read_text()) | {"weights_sha256": hashlib.sha256(data).hexdigest()}
    (folder / "model.json").write_text(json.dumps(fields))
    line = fails([folder], classes)
    assert "model.safetensors is a pickle, not safetensors, and is never loaded" in line
    assert "export it again" in line
    assert not (tmp_path / "out").exists()


def test_more_than_one_unreadable_image_in_a_hundred(fails, write_classes, tmp_path: Path):
    root = write_classes(tmp_path / "many", num_images=50)
    for number in range(2):
        (root / "class_0" / f"image_{number}.png").write_bytes(b"no image")
    line = fails(["floor:image_stats"], root, "--floors", "false")
    assert "more than 1% of its 150 images are unreadable" in line
    assert "class_0/image_0.png" in line
    assert "mend or remove them" in line


def test_metrics_that_are_damaged(fails, classes: Path, write_export, tmp_path: Path):
    write_export(tmp_path / "run" / "exports" / "step_00000100")
    (tmp_path / "run" / "metrics.jsonl").write_text("no json\n")
    line = fails([tmp_path / "run"], classes)
    assert f"{tmp_path}/run/metrics.jsonl is damaged" in line
    assert "restore it" in line
    assert not (tmp_path / "out").exists()


def test_a_baseline_that_is_no_model(fails, classes: Path, tmp_path: Path):
    line = fails(["floor:image_stats"], classes, "--baseline", "floor:random_conv")
    assert line == "eval: error: --baseline floor:random_conv is none of --models: give one of floor:image_stats"
    assert not (tmp_path / "out").exists()


def test_a_damaged_export_that_is_the_baseline(fails, classes: Path, write_export, tmp_path: Path):
    """Passed over as one of many, it would leave nothing to compare with."""
    for step in (1, 2):
        write_export(tmp_path / "run" / "exports" / f"step_{step:08d}", step=step)
    (tmp_path / "run" / "exports" / "step_00000002" / "model.safetensors").write_bytes(b"?")
    word = f"{tmp_path / 'run'}@all"
    assert "step_00000002/model.safetensors is corrupt" in fails([word], classes, "--baseline", word)
