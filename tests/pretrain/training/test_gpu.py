"""Training on a CUDA device against the same run on the CPU, and its options against none."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pretrain.runs.checkpoint import list_checkpoints
from pretrain.runs.metrics import read_rows
from pretrain.training.loop import train
from tests.gpu import needs_gpu

pytestmark = [needs_gpu, pytest.mark.filterwarnings("ignore:This DataLoader will create")]

TERMS = ("loss", "global_cls", "local_cls", "koleo", "pixel", "teacher_entropy", "teacher_diversity", "feature_rank")


@pytest.fixture
def run(variant, tmp_path):
    """A function that trains the tiny configuration, changed, in a run of its own, on the GPU by default."""

    def start(name, **changes):
        outcome = train(variant(run=str(tmp_path / name), **{"device": "cuda", **changes}))
        return read_rows(str(tmp_path / name)), load_file(Path(outcome.export_url, "model.safetensors"))

    return start


def assert_alike(ours, theirs, rel):
    (rows, weights), (other_rows, other_weights) = ours, theirs
    assert len(rows) == len(other_rows) > 1
    for row, other in zip(rows, other_rows, strict=True):
        assert row["samples"] == other["samples"]
        for name in TERMS:
            assert row[name] == pytest.approx(other[name], rel=rel, abs=rel), (name, row["step"])
    for name, value in weights.items():
        # AdamW makes of a gradient near 0 a step of the learning rate, in either direction.
        torch.testing.assert_close(value, other_weights[name], atol=20 * rel, rtol=20 * rel)


def test_the_gpu_trains_as_the_cpu_does(run):
    assert_alike(run("gpu"), run("cpu", device="cpu"), rel=1e-4)


def test_auto_takes_the_gpu_and_figures_tell_of_its_memory(run):
    rows, _ = run("auto", device="auto")
    # The process itself has more than 256 MiB.
    assert 0 < rows[-1]["memory_bytes"] < 128 * 2**20


def test_batches_pinned_by_worker_processes_are_the_same(run):
    assert_alike(run("workers", loader__workers=2), run("alone"), rel=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"activation_checkpointing": True}, {"compile": True}, {"compile": True, "activation_checkpointing": True}],
)
def test_options_that_cost_or_save_time_change_nothing(run, changes):
    assert_alike(run("with", **changes), run("without"), rel=1e-4)


def test_micro_batches_give_the_update_of_the_large_batch(run):
    assert_alike(run("parts", accumulate=5, model__drop_path=0.0), run("whole", model__drop_path=0.0), rel=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
def test_bfloat16_is_close_and_keeps_weights_in_float32(run, compiled):
    rows, weights = run("half", precision="bfloat16", compile=compiled)
    exact, _ = run("whole")
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert rows[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.02)
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_stopped_and_resumed_goes_on_as_if_nothing_had_been(run):
    run("stopped", max_steps=3)
    assert_alike(run("stopped"), run("whole"), rel=1e-5)


def test_a_run_moves_between_devices(run):
    run("moved", max_steps=2)
    run("moved", max_steps=4, device="cpu")
    assert_alike(run("moved"), run("whole"), rel=1e-4)


def test_a_checkpoint_can_be_read_where_there_is_no_gpu(run, tmp_path):
    run("run")
    newest = list_checkpoints(str(tmp_path / "run"))[6]

    def devices(value):
        if isinstance(value, torch.Tensor):
            yield value.device.type
        elif isinstance(value, dict):
            for item in value.values():
                yield from devices(item)

    assert set(devices(torch.load(newest, weights_only=True))) == {"cpu"}


def test_so_many_prototypes_that_scores_are_made_in_chunks(run, variant):
    head = replace(variant().head, prototypes=131_072)
    assert_alike(run("gpu", head=head, max_steps=2), run("cpu", head=head, max_steps=2, device="cpu"), rel=1e-4)
