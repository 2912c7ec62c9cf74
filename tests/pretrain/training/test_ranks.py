"""Real ranks, started by torchrun, that talk over gloo."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pretrain.runs.checkpoint import list_checkpoints, read_checkpoint
from pretrain.runs.metrics import read_bad_samples, read_rows
from pretrain.training.loop import train
from pretrain.training.ranks import Ranks, ToldElsewhereError
from shards.errors import UserError
from shards.storage.retry import StorageError
from tests.pretrain.forked import run_ranks
from tests.pretrain.training.test_trainer import assert_same_training

REPOSITORY = Path(__file__).parents[3]


def start(config, world=2, **environment):
    """Start ranks of a configuration; they are a process group of their own."""
    file = Path(config.run).with_suffix(".yaml")
    file.write_text(yaml.safe_dump(json.loads(json.dumps(asdict(config)))))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(world)]
    torchrun += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    return subprocess.Popen(
        [*torchrun, "-m", "pretrain", "--config", str(file)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    output, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def ranks_of(process):
    """Return the process ids of torchrun's ranks by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (folder / "environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if parent == process.pid:
            found |= {int(entry[5:]): int(folder.name) for entry in environment if entry.startswith(b"RANK=")}
    return found


def wait_for_rows(process, config, number):
    while len(read_rows(config.run)) < number:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.fixture
def config(variant):
    config = variant(model__drop_path=0.0, schedule__length="20 steps", loader__batch=16)
    return replace(config, checkpoint=replace(config.checkpoint, every="20 steps"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"accumulate": 2}, marks=pytest.mark.long),
        pytest.param({"shard": True, "accumulate": 2}, marks=pytest.mark.long),
    ],
)
def test_two_ranks_with_half_the_batch_each_give_the_losses_of_one(config, tmp_path, changes):
    alone, both = (replace(config, run=str(tmp_path / name)) for name in ("alone", "both"))
    outcome = train(alone)
    result = finish(start(replace(both, loader=replace(config.loader, workers=1), **changes)))
    assert result.returncode == 0, result.stderr
    assert_same_training(alone.run, both.run, rel=1e-5)
    weights = load_file(Path(outcome.export_url, "model.safetensors"))
    ours = load_file(Path(both.run, "exports", "step_00000020", "model.safetensors"))
    assert max(float((ours[name] - weights[name]).abs().max()) for name in weights) < 1e-4
    # One rank tells, once.
    assert result.stdout.count("export: ") == 1
    left, right = (read_checkpoint(list_checkpoints(run)[20]) for run in (alone.run, both.run))
    assert left.stream == right.stream
    assert left.model.keys() == right.model.keys()
    assert left.optimiser.keys() == right.optimiser.keys()


TORN_DOWN = """
import atexit, os

if "RANK" in os.environ:
    atexit.register(os._exit, 9)
"""


def test_a_run_goes_on_with_other_ranks_shared_out_or_not_and_lists_the_same_bad_samples(
    config, tmp_path, write_dataset
):
    data = write_dataset(str(tmp_path / "data"))
    shard = sorted(Path(data, "shards").iterdir())[0]
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    config = replace(config, data=data, loader=replace(config.loader, on_bad="replace"))
    alone, both = (replace(config, run=str(tmp_path / name)) for name in ("alone", "both"))
    train(alone)
    train(replace(both, max_steps=7))
    # gloo's threads live on where a model is shared out, and can abort a rank that Python tears down.
    (tmp_path / "sitecustomize.py").write_text(TORN_DOWN)
    # A start of ranks takes half a minute: this one shows, too, how they share the model out.
    result = finish(start(replace(both, shard=True, accumulate=2, max_steps=14), PYTHONPATH=str(tmp_path)))
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    assert "resumed at step 7" in result.stdout
    assert train(both).first_step == 14
    assert_same_training(alone.run, both.run, rel=1e-4)
    assert read_bad_samples(both.run) == read_bad_samples(alone.run) != []


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.long), 3])
def test_ranks_that_stop_and_go_on_equal_those_that_do_not_bit_by_bit(variant, tmp_path, world):
    config = variant(schedule__length="5 steps", loader__batch=12, checkpoint__every="5 steps")
    whole, parts = (replace(config, run=str(tmp_path / name)) for name in ("whole", "parts"))
    codes, errors = run_ranks([whole] * world, [replace(parts, max_steps=3)] * world, [parts] * world)
    assert codes == [[0] * world] * 3, errors
    assert "Warning" not in errors
    left, right = (read_checkpoint(list_checkpoints(run)[5]) for run in (whole.run, parts.run))
    assert max(list_checkpoints(whole.run)) == 5
    assert all(torch.equal(value, right.model[name]) for name, value in left.model.items())
    for name, moments in left.optimiser.items():
        assert all(torch.equal(value, right.optimiser[name][key]) for key, value in moments.items()), name


ODD_SECOND_RANK = """
import math, signal
from pretrain.training.trainer import Trainer

forward = Trainer._forward

def odd(self, step, number, part, temperature):
    output = forward(self, step, number, part, temperature)
    if rank == 1 and step == 2:
        signal.raise_signal(signal.SIGTERM)
    return output._replace(loss=output.loss * math.nan) if rank == 1 and step == 4 else output

Trainer._forward = odd
"""


def test_what_befalls_one_rank_in_a_step_all_of_them_leave_by_together(variant):
    config = variant(schedule__length="9 steps", loader__batch=12, checkpoint__every="9 steps")
    codes, errors = run_ranks([config] * 2, [config] * 2, prelude=ODD_SECOND_RANK)
    # Who starts ranks elsewhere must not take the first one for finished; then it is no number for both.
    assert codes == [[1, 0], [1, 1]], errors
    assert list(list_checkpoints(config.run)) == [3]
    assert "stopped by SIGTERM at step 3 of 9" in errors
    assert errors.count("pretrain: error: step 4: a loss or the gradient is not finite") == 2
    assert [row["step"] for row in read_rows(config.run)] == [1, 2, 3, 4]


def test_sigterm_to_torchrun_saves_and_the_same_command_goes_on(config, wait_until_gone):
    checkpoint = replace(config.checkpoint, every="100000 steps")  # however late the signal comes
    config = replace(config, schedule=replace(config.schedule, length="100000 steps"), checkpoint=checkpoint)
    process = start(config)
    wait_for_rows(process, config, 3)
    process.send_signal(signal.SIGTERM)
    result = finish(process)
    wait_until_gone(process.pid)
    steps = list(list_checkpoints(config.run))
    assert len(steps) == 1
    assert f"stopped by SIGTERM at step {steps[0]} of 100000" in result.stdout
    assert train(replace(config, max_steps=steps[0] + 1)).first_step == steps[0]


def test_a_rank_that_is_killed_ends_all(config, wait_until_gone):
    config = replace(config, schedule=replace(config.schedule, length="100000 steps"))
    process = start(config)
    wait_for_rows(process, config, 2)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    result = finish(process)
    wait_until_gone(process.pid)
    assert result.returncode == 1
    assert "pretrain: error: rank 0: another rank is gone" in result.stderr
    assert "Traceback" not in result.stderr.partition("torch/distributed")[0]


def agree_in_threads(*prepares):
    """Return what `Ranks.agree` returns or raises on each of some ranks, which are threads here."""
    told, all_told = [b""] * len(prepares), threading.Barrier(len(prepares))

    class Seat(Ranks):
        def collected(self, value):
            told[self.rank] = pickle.dumps(value)
            all_told.wait()
            return [pickle.loads(each) for each in told]

    def agree(rank):
        try:
            return Seat(rank=rank, world=len(prepares)).agree(prepares[rank])
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(prepares)) as pool:
        return list(pool.map(agree, range(len(prepares))))


def failing(error):
    def prepare():
        raise error

    return prepare


def test_ranks_agree_where_all_goes_well():
    assert agree_in_threads(lambda: "first", lambda: "second") == ["first", "second"]


@pytest.mark.parametrize(
    ("error", "is_users"), [(UserError("no such band"), True), (StorageError("s3://b: 5 times 503", "server"), False)]
)
def test_a_problem_of_any_rank_is_told_by_the_first(error, is_users):
    first, second = agree_in_threads(lambda: "well", failing(error))
    assert (type(first), str(first)) == (type(error), f"rank 1: {error}")
    assert vars(first) == vars(error)
    assert (type(second), second.is_users) == (ToldElsewhereError, is_users)
    first, second = agree_in_threads(failing(error), failing(UserError("another")))
    assert (type(first), str(first)) == (type(error), str(error))
    assert (type(second), second.is_users) == (ToldElsewhereError, is_users)


@pytest.mark.long
def test_what_ranks_find_wrong_one_tells_and_all_leave_with_2(tmp_path):
    script = [
        "bash",
        "pretrain/launch/torchrun.sh",
        "--data",
        str(tmp_path / "nothing"),
        "--run",
        str(tmp_path / "run"),
    ]
    environment = {**os.environ, "RANKS_PER_NODE": "2", "PYTHON": sys.executable}
    result = subprocess.run(
        [*script, "--device", "cpu"], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("pretrain: error: ")]
    assert str(tmp_path / "nothing") in line
    assert "exitcode  : 2" in result.stderr
    assert not (tmp_path / "run").exists()
