import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint import list_checkpoints
from pretrain.config import Config
from pretrain.metrics import read_rows
from pretrain.train import train
from pretrain.trainer import NonFiniteError, Trainer
from shards.cli import parse_config
from shards.errors import UserError


def load(url):
    return torch.load(url, weights_only=True)


def assert_equal_state(left, right, path=""):
    assert type(left) is type(right), path
    if isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_equal_state(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, list):
        assert len(left) == len(right), path
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_equal_state(a, b, f"{path}[{i}]")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), path
    else:
        assert left == right, path


def rows_without_times(run):
    return [{k: v for k, v in row.items() if k not in ("samples_per_s", "data_wait_share")} for row in read_rows(run)]


def test_stopped_and_resumed_equals_uninterrupted(tiny, tmp_path):
    whole = train(replace(tiny, run=str(tmp_path / "whole")))
    parts = replace(tiny, run=str(tmp_path / "parts"))
    assert train(replace(parts, max_steps=3)).position.step == 3
    resumed = train(parts)
    assert (resumed.first_step, resumed.position) == (3, whole.position)
    left, right = load(whole.checkpoint_url), load(resumed.checkpoint_url)
    for name in ("model", "optimiser", "step", "samples"):
        assert_equal_state(left[name], right[name], name)
    assert rows_without_times(str(tmp_path / "whole")) == rows_without_times(str(tmp_path / "parts"))
    weights = [Path(outcome.export_url, "model.safetensors").read_bytes() for outcome in (whole, resumed)]
    assert weights[0] == weights[1]


def test_a_crash_between_checkpoints_is_made_good(tiny, tmp_path, monkeypatch):
    whole = train(replace(tiny, run=str(tmp_path / "whole")))
    step = Trainer.step

    def crash(self, number, batch):
        if number == 3:
            raise ConnectionError("the node is gone")
        return step(self, number, batch)

    monkeypatch.setattr(Trainer, "step", crash)
    with pytest.raises(ConnectionError):
        train(tiny)
    monkeypatch.undo()
    assert max(list_checkpoints(tiny.run)) == 2
    resumed = train(tiny)
    assert_equal_state(load(whole.checkpoint_url)["model"], load(resumed.checkpoint_url)["model"])
    assert rows_without_times(tiny.run) == rows_without_times(str(tmp_path / "whole"))


def test_a_run_leaves_what_it_promises(tiny):
    outcome = train(tiny)
    run = Path(tiny.run)
    # The resolved configuration can be given back as it is.
    assert parse_config("pretrain", "", Config, ["--config", str(run / "config.yaml")]) == tiny
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [
        "step_00000004.pt",
        "step_00000006.pt",
    ]
    assert [path.name for path in sorted((run / "exports").iterdir())][-1] == "step_00000006"
    rows = read_rows(tiny.run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["samples"] == outcome.position.samples == 60
    assert rows[-1]["ema"] == 1
    assert all(isinstance(value, int | float) for value in rows[-1].values())
    assert list((run / "tensorboard").iterdir())


def test_a_finished_run_is_left_alone(tiny):
    train(tiny)
    before = {path: path.stat().st_mtime_ns for path in Path(tiny.run).rglob("*.pt")}
    again = train(tiny)
    assert (again.first_step, again.position.step, again.figures) == (6, 6, {})
    assert {path: path.stat().st_mtime_ns for path in Path(tiny.run).rglob("*.pt")} == before


def test_training_learns(variant):
    train(variant(schedule__length="40 steps", schedule__lr=3e-3, schedule__ema=(0.9, 1.0)))
    rows = read_rows(variant().run)
    assert rows[-1]["pixel"] < 0.8 * rows[0]["pixel"]
    assert rows[-1]["feature_spread"] > 0.1


def test_another_dataset_is_refused(tiny, tmp_path, write_dataset):
    train(replace(tiny, max_steps=1))
    other = write_dataset(str(tmp_path / "other"), seed=5)
    with pytest.raises(UserError, match=r"made from other data: digest [0-9a-f]{64}, but .* has [0-9a-f]{64}"):
        train(replace(tiny, data=other))


def test_another_configuration_is_refused_by_key(variant):
    train(variant(max_steps=1))
    with pytest.raises(UserError, match=r"model\.depth 2 -> 4; seed 0 -> 1"):
        train(variant(model__depth=4, seed=1))


def test_what_does_not_change_the_result_may_change(variant):
    train(variant(max_steps=1))
    outcome = train(variant(max_steps=2, log_every=2, loader__workers=1, checkpoint__keep_last=1))
    assert outcome.first_step == 1


def test_a_folder_with_other_things_is_refused(tiny):
    Path(tiny.run).mkdir()
    (Path(tiny.run) / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="holds no run"):
        train(tiny)
    assert [path.name for path in Path(tiny.run).iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__image_px": 64, "views__local_px": 32}, "tiles of 32 px"),
        ({"schedule__length": "1 samples"}, "less than one step"),
        ({"bands": ("nir",)}, "no band nir"),
        ({"data": "/nowhere/at/all"}, "holds no dataset"),
    ],
)
def test_nothing_is_written_where_nothing_fits(variant, change, message):
    config = variant(**change)
    with pytest.raises(UserError, match=message):
        train(config)
    assert not Path(config.run).exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_an_error(variant):
    with pytest.raises(UserError, match="no CUDA device"):
        train(variant(device="cuda"))


def test_a_step_that_is_not_finite_changes_nothing(tiny, monkeypatch):
    train(replace(tiny, max_steps=2))
    saved = load(list_checkpoints(tiny.run)[2])
    forward = Trainer._forward

    def infinite(self, *arguments):
        output = forward(self, *arguments)
        return replace(output, loss=output.loss * float("inf"))

    monkeypatch.setattr(Trainer, "_forward", infinite)
    with pytest.raises(NonFiniteError, match="step 2"):
        train(tiny)
    assert_equal_state(load(list_checkpoints(tiny.run)[2]), saved)
    assert max(list_checkpoints(tiny.run)) == 2


def test_bfloat16_trains(variant):
    assert train(variant(precision="bfloat16", max_steps=2)).figures["loss"] > 0


def test_a_run_may_live_in_a_bucket(tiny, object_store):
    config = replace(tiny, run=f"{object_store}/runs/tiny", max_steps=2)
    train(config)
    assert train(replace(config, max_steps=4)).first_step == 2
    assert [row["step"] for row in read_rows(config.run)] == [1, 2, 3, 4]
    assert json.dumps(list(list_checkpoints(config.run))) == "[2, 4]"
