import json
import re
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml

from pretrain.config import Config, MixConfig
from pretrain.model.backbone import SparseBackbone
from pretrain.runs.checkpoint import Position
from pretrain.runs.export import Origin, describe, write_export
from pretrain.runs.exports import export_url
from pretrain.runs.publish import ExportConfig, count_parameters, main, publish
from pretrain.runs.record import RunRecord, create_run, identity, versions
from pretrain.training.loop import train
from shards import storage
from shards.cli import parse_config
from shards.errors import UserError
from shards.tables import read_version
from tests.pretrain.patches import gather

BANDS, MEAN, STD = ("red", "nir"), (0.25, 0.5), (0.125, 0.25)
STEPS = (2, 4)


def row(step):
    return {"step": step, "samples": 10 * step, "epoch": 10 * step / 160, "loss": 9.0 - step, "divergence": 0.5 / step}


def make_run(config, steps=STEPS):
    """Everything that `publish` reads of a run, as a run writes it; returns the backbones by step."""
    record = RunRecord(digests=("d" * 64,) * (1 + len(config.mix)), dataset_versions=(1,) * (1 + len(config.mix)),
                       mean=MEAN, std=STD)  # fmt: skip
    create_run(config, record)
    lines = "".join(json.dumps(row(step)) + "\n" for step in range(1, 6))
    storage.write_bytes(storage.join(config.run, "metrics.jsonl"), lines.encode())
    origin = Origin(bands=BANDS, dtype="uint8", dataset_digest="d" * 64, config_sha256="c" * 64, versions=versions())
    backbones = {}
    for step in steps:
        torch.manual_seed(step)
        backbones[step] = SparseBackbone(config.model, len(BANDS))
        position = Position(step=step, samples=10 * step)
        description = describe(config.model, origin, position, mean=MEAN, std=STD)
        write_export(export_url(config.run, step), backbones[step].state_dict(), description)
    return backbones


@pytest.fixture
def backbones(tiny):
    return make_run(tiny)


@pytest.fixture
def out(tmp_path, tiny, backbones):
    folder = tmp_path / "hub" / "model"
    publish(ExportConfig(run=tiny.run, out=str(folder), license="cc-by-4.0"))
    return folder


def code_block(folder):
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return code


def test_the_folder_has_what_a_hub_wants(out, tiny):
    names = {"model.safetensors", "config.json", "model.json", "README.md", "curves.png", "pretrain.yaml"}
    assert {path.name for path in out.iterdir()} == names
    newest = Path(export_url(tiny.run, 4))
    for name in ("model.safetensors", "config.json", "model.json"):
        assert (out / name).read_bytes() == (newest / name).read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["model"]


def test_the_code_in_the_card_works_without_this_package(out, backbones, monkeypatch):
    """Run as it stands, where nothing of ours can be imported; see test_export for a fresh process."""
    names = {}
    with monkeypatch.context() as patch:
        patch.chdir(out)
        for stage in ("pretrain", "shards", "ingest", "eval"):
            patch.setitem(sys.modules, stage, None)
        exec(code_block(out), names)
    images, features, tokens = (names[name] for name in ("images", "features", "tokens"))
    expected = torch.zeros(1, 2, 32, 32) - torch.tensor([2.0, 2.0])[:, None, None]
    assert torch.equal(images, expected)
    everything, backbone = torch.arange(16)[None], backbones[4]
    with torch.no_grad():
        embedded = backbone.embed(gather(images, 8, everything), everything, backbone.positions(4))
        ours = backbone.norm(backbone.run_blocks(embedded, range(backbone.depth)))
    torch.testing.assert_close(tokens, ours, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(features, ours[:, 0], atol=1e-6, rtol=1e-6)


def test_the_card_is_filled_in_from_the_run(out, tiny, backbones):
    text = (out / "README.md").read_text()
    card = huggingface_hub.ModelCard(text)
    assert (card.data.library_name, card.data.license) == ("timm", "cc-by-4.0")
    assert card.data.to_dict()["dataset_digests"] == ["d" * 64]
    num_parameters = sum(parameter.numel() for parameter in backbones[4].parameters())
    assert f"{num_parameters / 1e6:.1f} M parameters" in text
    for told in (
        "4 optimiser steps, 40 samples, 0.25 epochs",
        "160 samples in all",
        "| 2 | nir | 0.5000 | 0.2500 |",
        "`uint8`, divided by 255",
        "Figures of step 4",
        "| `loss` | 5 |",
        "| `divergence` | 0.125 |",
        "lr_warmup: 10 %",
        f"torch {version('torch')}",
        "](curves.png)",
    ):
        assert told in text, told
    # Where data and run lie is nobody else's business.
    assert not [place for place in (tiny.data, tiny.run, str(Path.home())) if place in text]
    assert "None" not in text.replace(code_block(out), "")


def test_rows_that_say_why_a_start_ended_are_none_of_the_cards(tiny, backbones, tmp_path):
    metrics = Path(tiny.run, "metrics.jsonl")
    stop = {"step": 4, "samples": 40, "epoch": 0.25, "stopped_server": 1}
    metrics.write_text("".join(json.dumps(each) + "\n" for each in [row(2), row(4), stop]))
    publish(ExportConfig(run=tiny.run, out=str(tmp_path / "hub")))
    assert "| `loss` | 5 |" in (tmp_path / "hub" / "README.md").read_text()


def test_the_configuration_makes_the_same_run_again(out, tiny):
    text = (out / "README.md").read_text()
    (command,) = re.findall(r"^python -m pretrain (--.*)$", text, re.MULTILINE)
    words = command.replace("pretrain.yaml", str(out / "pretrain.yaml")).split()
    config = parse_config("pretrain", "", Config, words)
    assert identity(config) == identity(tiny)
    assert (config.data, config.run, config.max_steps) == ("DATASET1", "RUN", 4)


def test_what_decides_the_last_bits_is_part_of_it(tiny, tmp_path):
    config = replace(tiny, accumulate=5, activation_checkpointing=True)
    make_run(config)
    publish(ExportConfig(run=config.run, out=str(tmp_path / "hub")))
    words = ["--config", str(tmp_path / "hub" / "pretrain.yaml"), "--data", "d", "--run", "r"]
    again = parse_config("pretrain", "", Config, words)
    assert (again.accumulate, again.activation_checkpointing, again.compile) == (5, True, False)


def test_a_mixture_and_starting_weights_are_named_but_not_where_they_lie(tiny, tmp_path):
    mix = (MixConfig(data="s3://secret/other", weight=1.0),)
    config = replace(tiny, weight=3.0, mix=mix, init_from="s3://secret/place/start.pth")
    make_run(config)
    out = tmp_path / "hub"
    publish(ExportConfig(run=config.run, out=str(out)))
    text = (out / "README.md").read_text() + (out / "pretrain.yaml").read_text()
    assert "secret" not in text
    assert (
        "--data DATASET1 --weight 3.0 --mix '[{data: DATASET2, weight: 1.0}]' --run RUN --init_from start.pth" in text
    )
    assert [share for share in ("0.75", "0.25") if f"| 1 | {share} |" not in text] == []


def test_a_run_without_licence_and_metrics(tiny, backbones, tmp_path):
    (Path(tiny.run) / "metrics.jsonl").unlink()
    out = tmp_path / "hub"
    publish(ExportConfig(run=tiny.run, out=str(out), step=2))
    text = (out / "README.md").read_text()
    assert not (out / "curves.png").exists()
    assert "curves.png" not in text
    assert "2 optimiser steps, 20 samples." in text
    assert "Not chosen yet" in text
    assert "license" not in yaml.safe_load(text.split("---")[1])
    assert (out / "model.safetensors").read_bytes() == (
        Path(export_url(tiny.run, 2)) / "model.safetensors"
    ).read_bytes()


def test_a_run_that_was_trained_is_published(tiny, tmp_path):
    train(replace(tiny, max_steps=2))
    publish(ExportConfig(run=tiny.run, out=str(tmp_path / "hub")))
    text = (tmp_path / "hub" / "README.md").read_text()
    version = read_version(tiny.data)
    assert f"{version.num_samples} samples in all" in text
    assert f"| `{version.digest}` | 1 | all |" in text
    figures = re.findall(r"^\| `(\w+)` \| [-\d.,e]+ \|", text, re.MULTILINE)
    assert {"loss", "divergence", "koleo", "pixel", "feature_spread"} <= set(figures)


def test_a_run_in_a_bucket_is_published(object_store, tiny, tmp_path):
    make_run(replace(tiny, run=f"{object_store}/{tmp_path.name}"))
    assert publish(ExportConfig(run=f"{object_store}/{tmp_path.name}", out=str(tmp_path / "hub"))) == 4
    assert (tmp_path / "hub" / "curves.png").exists()


def test_the_command_says_where_the_folder_is_and_an_empty_one_is_filled(tiny, backbones, tmp_path, capsys):
    out = tmp_path / "hub"
    out.mkdir()
    assert main(["--run", tiny.run, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert f"{out}: step 4 of {tiny.run}" in told
    assert f"hf upload USER/NAME {out}" in told


def test_wrong_use_is_one_line_and_exit_2(run_stage, tiny, tmp_path):
    for arguments, message in ([["--run", "nowhere"], "holds no run"], [["--run", tiny.run, "--stp", "3"], "stp"]):
        result = run_stage("pretrain", "export", *arguments, "--out", tmp_path / "hub")
        assert (result.returncode, len(result.stderr.strip().splitlines())) == (2, 1)
        assert message in result.stderr


def test_help_is_there_without_torch():
    code = "import sys\nfrom pretrain.runs.publish import main\ntry:\n    main(['--help'])\nfinally:\n"
    code += "    assert 'torch' not in sys.modules\n"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--license" in result.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": "nowhere"}, "nowhere holds no run"),
        ({"step": 3}, "has no export of step 3: it has those of 2, 4"),
        ({"out": "full"}, "--out full is not an empty folder"),
        ({"out": "full/file"}, "--out full/file is not an empty folder"),
        ({"out": "s3://bucket/hub"}, "s3://bucket/hub is not on a local disk"),
    ],
)
def test_what_cannot_be_done_is_refused(tiny, backbones, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(UserError, match=message):
        publish(ExportConfig(**{"run": tiny.run, "out": "hub", **changes}))
    assert not (tmp_path / "hub").exists()


def test_a_run_without_an_export_or_with_a_damaged_one_is_refused(tiny, tmp_path):
    make_run(tiny, steps=())
    out = tmp_path / "hub"
    with pytest.raises(UserError, match="has no export yet"):
        publish(ExportConfig(run=tiny.run, out=str(out)))
    write_wrong_weights(tiny)
    with pytest.raises(UserError, match="is damaged: its sha256"):
        publish(ExportConfig(run=tiny.run, out=str(out)))
    record = Path(tiny.run) / "run.json"
    record.write_text(record.read_text().replace("pera-run", "other"))
    with pytest.raises(UserError, match="holds a run of format other"):
        publish(ExportConfig(run=tiny.run, out=str(out)))
    assert not out.exists()


def write_wrong_weights(config):
    make_run(config, steps=(2,))
    weights = Path(export_url(config.run, 2)) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")


def test_who_dies_on_the_way_leaves_no_folder(tiny, backbones, tmp_path, monkeypatch):
    write = storage.write_bytes

    def write_until(url, data):
        if url.endswith("README.md"):
            raise KeyboardInterrupt
        write(url, data)

    out = tmp_path / "new" / "hub"
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", write_until)
        with pytest.raises(KeyboardInterrupt):
            publish(ExportConfig(run=tiny.run, out=str(out)))
    assert list(out.parent.iterdir()) == []
    publish(ExportConfig(run=tiny.run, out=str(out)))
    assert list(out.parent.iterdir()) == [out]


def test_parameters_are_counted_by_the_header(tiny, backbones):
    weights = (Path(export_url(tiny.run, 2)) / "model.safetensors").read_bytes()
    assert count_parameters(weights) == sum(parameter.numel() for parameter in backbones[2].parameters())
