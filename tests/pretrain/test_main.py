import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain.__main__ import main, report
from pretrain.checkpoint import Position
from pretrain.train import Outcome

REPOSITORY = Path(__file__).parents[2]
SMALL = ["--model.image_px=32", "--views.local_px=16", "--model.width=48", "--model.depth=2"]
SMALL += ["--loader.batch=4", "--log_every=1"]


@pytest.fixture(autouse=True)
def same_handler():
    """Commands that run in this process set a handler."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_help_is_quick_and_names_the_options(run_stage):
    result = run_stage("pretrain", "--help", check=True)
    assert "--model.patch_px" in result.stdout
    assert "loader.workers" in result.stdout


def test_a_run_ends_with_what_was_made_and_what_to_do_next(run_stage, data_url, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["--data", data_url, "--run", str(run), "--max_steps", "2", *SMALL]
    result = run_stage("pretrain", *arguments, check=True)
    assert f"export: {run}/exports/step_00000002" in result.stdout
    assert f"make eval RUN={run}" in result.stdout
    assert main(arguments) == 0
    assert "finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.dept", "3"], "dept"),
        (["--loader.batch", "1"], "KoLeo"),
        (["--seed", "many"], "seed"),
        (["--model.image_px", "448"], "448"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(run_stage, data_url, tmp_path, arguments, message):
    run = tmp_path / "run"
    result = run_stage("pretrain", "--data", data_url, "--run", run, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not run.exists()


@pytest.mark.parametrize(
    ("file", "number", "code", "told"),
    [
        ("run.json", signal.SIGINT, 130, "pretrain: interrupted"),  # workers are about to begin
        ("metrics.jsonl", signal.SIGTERM, 143, ""),
    ],
)
def test_who_stops_a_run_leaves_nothing_behind(data_url, tmp_path, wait_until_gone, file, number, code, told):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "pretrain", "--data", data_url, "--run", str(run), "--loader.workers", "2", *SMALL]
    process = subprocess.Popen(
        [*command, "--schedule.length", "100000 steps"],
        cwd=REPOSITORY,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (run / file).exists():
        assert process.poll() is None
        time.sleep(0.05)
    # Ctrl-C reaches all processes of a terminal.
    os.killpg(process.pid, number)
    _, errors = process.communicate()
    assert process.returncode == code
    assert told in errors.splitlines() or not told
    if file == "metrics.jsonl":
        lines = [line for line in errors.splitlines() if not re.match(r"pretrain: \d+/100000 steps", line)]
        assert lines == [told] * bool(told)
    wait_until_gone(process.pid)


def test_a_bad_sample_is_one_line_and_exit_1(write_dataset, tmp_path, capsys):
    data, run = write_dataset(str(tmp_path / "data")), tmp_path / "run"
    shard = sorted((Path(data) / "shards").iterdir())[0]
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    assert main(["--data", data, "--run", str(run), "--max_steps", "8", *SMALL]) == 1
    line = next(line for line in capsys.readouterr().err.splitlines() if "error" in line)
    assert re.fullmatch(rf"pretrain: error: sample \d+ \(byte 0 of {shard}\) .*--loader\.on_bad replace.*", line)


def test_replaced_samples_are_told(tiny, capsys):
    position = Position(step=6, samples=60)
    outcome = Outcome(
        position=position, first_step=6, length=6, seconds=0, figures={}, export_url="", checkpoint_url="", num_bad=3
    )
    report(tiny, outcome)
    assert f"3 bad samples were replaced so far: {tiny.run}/bad_samples.jsonl" in capsys.readouterr().out
