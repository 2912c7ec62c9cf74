import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pretrain.config import LossConfig
from pretrain.runs.checkpoint import list_checkpoints, read_checkpoint
from pretrain.runs.metrics import read_rows
from pretrain.training.loop import train
from pretrain.training.trainer import NonFiniteError, Trainer
from shards.errors import UserError

LOSSES = ("loss", "global_cls", "local_cls", "koleo", "pixel", "teacher_entropy", "teacher_diversity")


def assert_same_training(left, right, rel):
    """Compare the figures of two runs step by step, and the weights that came out."""
    rows = [read_rows(run) for run in (left, right)]
    assert len(rows[0]) == len(rows[1]) > 1
    for ours, theirs in zip(*rows, strict=True):
        assert ours["samples"] == theirs["samples"]
        for name in LOSSES:
            assert ours[name] == pytest.approx(theirs[name], rel=rel, abs=rel), (name, ours["step"])
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=20 * rel), ours["step"]


def weights(outcome):
    return load_file(Path(outcome.export_url, "model.safetensors"))


@pytest.mark.parametrize("koleo_on_head", [False, True])
def test_micro_batches_give_the_update_of_the_large_batch(variant, tmp_path, koleo_on_head):
    config = variant(model__drop_path=0.0, loss=LossConfig(koleo_on_head=koleo_on_head))
    whole, parts = (replace(config, run=str(tmp_path / name)) for name in ("whole", "parts"))
    left, right = train(whole), train(replace(parts, accumulate=5))
    assert_same_training(whole.run, parts.run, rel=1e-4)
    for name, value in weights(left).items():
        torch.testing.assert_close(value, weights(right)[name], atol=2e-5, rtol=1e-3)


def test_a_run_may_go_on_with_other_micro_batches(variant):
    train(variant(max_steps=3))
    assert train(variant(accumulate=2)).first_step == 3


def test_micro_batches_draw_other_branches_of_stochastic_depth(variant):
    config = variant()
    train(replace(config, max_steps=1))
    alone = read_rows(config.run)[0]["global_cls"]
    other = replace(config, run=config.run + "2", accumulate=2, max_steps=1)
    train(other)
    assert read_rows(other.run)[0]["global_cls"] != alone


def test_koleo_may_be_off_and_is_a_figure_of_the_whole_batch_even_so(variant):
    config = variant(loss=LossConfig(koleo=0.0), accumulate=10, max_steps=1, model__drop_path=0.0)
    train(config)
    whole = replace(config, run=config.run + "2", accumulate=1)
    train(whole)
    assert read_rows(config.run)[0]["koleo"] == pytest.approx(read_rows(whole.run)[0]["koleo"], rel=1e-5)
    row = read_rows(config.run)[-1]
    total = row["global_cls"] + row["local_cls"] + 0.01 * row["pixel"]
    assert row["loss"] == pytest.approx(total, rel=1e-5)


def test_what_is_not_finite_stops_before_anything_is_changed(variant):
    config = variant(schedule__lr=1e30, schedule__lr_warmup="1 step", optimiser__clip=0.0)
    with pytest.raises(NonFiniteError, match=r"step \d+: .* is not finite \(loss .*lower schedule\.lr.*--init_from"):
        train(config)
    for url in list_checkpoints(config.run).values():
        assert all(torch.isfinite(tensor).all() for tensor in read_checkpoint(url).model.values())


def test_a_loss_that_is_not_finite_leaves_weights_teacher_and_centre_alone(variant, monkeypatch):
    config = variant(max_steps=2)
    before = {}
    forward = Trainer._forward

    def broken(self, step, number, part, temperature):
        output = forward(self, step, number, part, temperature)
        if step == 1:
            before.update({name: tensor.clone() for name, tensor in self.model.state_dict().items()})
            before["trainer"] = self
            return output._replace(loss=output.loss * math.nan)
        return output

    monkeypatch.setattr(Trainer, "_forward", broken)
    with pytest.raises(NonFiniteError, match="step 1"):
        train(config)
    trainer = before.pop("trainer")
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.model.state_dict().items())


def test_the_official_switches_are_read(variant, tmp_path):
    runs = [variant(run=str(tmp_path / "ours"), max_steps=2)]
    runs.append(replace(runs[0], run=str(tmp_path / "head"), loss=LossConfig(koleo_on_head=True)))
    runs.append(replace(variant(optimiser__decay_all=True), run=str(tmp_path / "decay"), max_steps=2))
    ours, head, decay = (weights(train(config)) for config in runs)
    assert not torch.equal(ours["cls_token"], head["cls_token"])
    assert not torch.equal(ours["cls_token"], decay["cls_token"])


def test_bfloat16_trains(variant):
    config = variant(precision="bfloat16", max_steps=2)
    train(config)
    assert math.isfinite(read_rows(config.run)[-1]["loss"])
    assert all(
        value.dtype == torch.float32 for value in read_checkpoint(list_checkpoints(config.run)[2]).model.values()
    )


@pytest.mark.long
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_train_as_others_do(variant, tmp_path, recompute):
    compiled = variant(compile=True, activation_checkpointing=recompute)
    plain = variant(run=str(tmp_path / "plain"))
    left, right = train(compiled), train(plain)
    assert_same_training(compiled.run, plain.run, rel=1e-4)
    for name, value in weights(left).items():
        torch.testing.assert_close(value, weights(right)[name], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 4}, r"loader\.batch 10 is not a multiple of 1 ranks × accumulate 4: take e\.g\. 8"),
        ({"shard": True}, "shard: there is one rank"),
        (
            {"loader__batch": 5000},
            r"loader\.batch 5000 is more than the \d+ samples that there are, .*: take at most \d+$",
        ),
    ],
)
def test_what_does_not_go_is_refused_before_anything_is_written(variant, changes, message):
    with pytest.raises(UserError, match=message):
        train(variant(**changes))
    assert not Path(variant().run).exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_refused(variant):
    with pytest.raises(UserError, match="device cuda: this machine has 0 CUDA devices"):
        train(variant(device="cuda"))
