import errno
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.__main__ import main, report
from pretrain.runs.checkpoint import Position, list_checkpoints
from pretrain.training.loop import Outcome, train
from pretrain.training.ranks import ToldElsewhereError
from shards import storage
from shards.cli import exit_with
from shards.errors import UserError

REPOSITORY = Path(__file__).parents[2]
SMALL = ["--model.image_px=32", "--views.local_px=16", "--model.width=48", "--model.depth=2"]
SMALL += ["--loader.batch=4", "--log_every=1"]


def test_help_is_quick_and_names_the_options(run_stage):
    result = run_stage("pretrain", "--help", check=True)
    assert "--model.patch_px" in result.stdout
    assert "loader.workers" in result.stdout


def test_a_run_ends_with_what_was_made_and_what_to_do_next(data_url, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["--data", data_url, "--run", str(run), "--max_steps", "2", *SMALL]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert f"export: {run}/exports/step_00000002" in told
    assert f"make eval RUN={run}" in told
    assert f"curves: {run}/curves.html" in told
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert f"{run}: 2 steps, 8 samples; nothing to do up to max_steps\n" in told
    assert "start again with a larger --max_steps" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.dept", "3"], "dept"),
        (["--loader.batch", "1"], "KoLeo"),
        (["--seed", "many"], "seed"),
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


def test_what_the_data_do_not_allow_is_one_line(data_url, tmp_path):
    with pytest.raises(UserError, match="448") as caught:
        main(["--data", data_url, "--run", str(tmp_path / "run"), "--model.image_px", "448"])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cuda"], "device cuda: this machine has 0 CUDA devices"),
        (["--bands", "[nir]"], "has no band nir"),
        ([], "is not empty and holds no run"),
    ],
)
def test_what_does_not_fit_is_one_line_and_exit_2(data_url, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    run = tmp_path / "run"
    if not arguments:
        run.mkdir()
        (run / "thesis.txt").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["pretrain", "--data", data_url, "--run", str(run), *arguments, *SMALL])
    with pytest.raises(SystemExit) as left:
        exit_with("pretrain", main)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pretrain: error: ")
    assert message in line
    assert sorted(tmp_path.rglob("*")) == before


def read_only(folder):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a disk")


def test_a_disk_that_takes_nothing_is_one_line_and_exit_1(data_url, tmp_path, capsys):
    read_only(tmp_path)
    try:
        code = main(["--data", data_url, "--run", str(tmp_path / "run"), "--max_steps", "1", *SMALL])
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"pretrain: error: {tmp_path}/run: the disk or store refuses .*Read-only.*", line)


@pytest.mark.parametrize("command", ["curves", "show"])
def test_a_page_on_a_read_only_disk_is_one_line_and_exit_1(tiny, monkeypatch, capsys, command):
    train(replace(tiny, max_steps=1))
    capsys.readouterr()
    refusal = OSError(errno.EROFS, "Read-only file system", "page.html")

    def refuse(*arguments):
        raise refusal

    monkeypatch.setattr(storage, "write_bytes", refuse)
    out = {"curves": [], "show": ["--out", "page.html", "--samples", "1"]}[command]
    assert main([command, "--run", tiny.run, *out]) == 1
    told = "pretrain: error: [Errno 30] Read-only file system: 'page.html': have the disk mounted for writing"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(told)
    # Another one is not known to be the user's.
    refusal = OSError(errno.EBADF, "Bad file descriptor", "page.html")
    with pytest.raises(OSError, match="Bad file"):
        main([command, "--run", tiny.run, *out])


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "model.safetensors"])
def test_a_write_that_is_refused_is_the_users(data_url, tmp_path, monkeypatch, name):
    write_bytes = storage.write_bytes

    def refuse(url, data):
        if url.endswith(name):
            raise PermissionError(errno.EACCES, "Permission denied", url)
        write_bytes(url, data)

    monkeypatch.setattr(storage, "write_bytes", refuse)
    with pytest.raises(UserError, match=r"no permission for .*/run: check its mode or your credentials"):
        main(["--data", data_url, "--run", str(tmp_path / "run"), "--max_steps", "2", *SMALL])


def start(*arguments):
    """Start training in a process group of its own, as a terminal or a job does."""
    return subprocess.Popen(
        [sys.executable, "-m", "pretrain", *arguments, *SMALL],
        cwd=REPOSITORY,
        start_new_session=True,
        # Who runs tests in the background of a shell has them ignore Ctrl-C, and so what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(file, process):
    while not file.exists():
        assert process.poll() is None
        time.sleep(0.05)


def without_progress(errors):
    return [line for line in errors.splitlines() if not re.match(r"pretrain: \d+/\d+ steps", line)]


# Workers are about to begin; they are there, as below.
@pytest.mark.parametrize("file", ["run.json", pytest.param("metrics.jsonl", marks=pytest.mark.long)])
def test_ctrl_c_leaves_nothing_behind(data_url, tmp_path, wait_until_gone, file):
    run = tmp_path / "run"
    arguments = ["--data", data_url, "--run", str(run), "--loader.workers", "2"]
    process = start(*arguments, "--schedule.length", "100000 steps")
    wait_for(run / file, process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert without_progress(errors) == ["pretrain: interrupted"]
    wait_until_gone(process.pid)


def test_sigterm_saves_and_the_same_command_goes_on(data_url, tmp_path, wait_until_gone):
    arguments = ["--data", data_url, "--run", str(tmp_path / "run"), "--loader.workers", "2"]
    arguments += ["--schedule.length", "100000 steps"]
    process = start(*arguments)
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    # All processes get it, as from SLURM, and the first one twice, as from coreutils' timeout.
    process.send_signal(signal.SIGTERM)
    os.killpg(process.pid, signal.SIGTERM)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert without_progress(errors) == [
        "pretrain: SIGTERM: saving after this step, due in 25 s; once more ends it at once"
    ]
    (step,) = list_checkpoints(str(tmp_path / "run"))
    assert f"stopped by SIGTERM at step {step} of 100000: the same command goes on" in output
    assert f"curves: python -m pretrain curves --run {tmp_path}/run\n" in output
    wait_until_gone(process.pid)
    assert main([*arguments, "--max_steps", str(step + 1), *SMALL]) == 0
    assert list_checkpoints(str(tmp_path / "run")).keys() == {step, step + 1}


STUCK = """
import sys, time
from pretrain.__main__ import main
from pretrain.runs import saver
from pretrain.training import stopping
from pretrain.training.trainer import Trainer

def stuck(*arguments):
    print("stuck", flush=True)
    time.sleep(600)

stopping._ECHO_S = 0.0
if sys.argv[1] == "step":
    Trainer.step = stuck
else:
    saver.write_checkpoint = stuck
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("where", "times", "deadline", "code"), [("step", 1, "0.9", 1), ("save", 2, "500", 143)])
def test_what_does_not_end_is_given_up(data_url, tmp_path, where, times, deadline, code):
    arguments = ["--data", data_url, "--run", str(tmp_path / "run"), "--checkpoint.deadline_s", deadline, *SMALL]
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, where, *arguments, "--checkpoint.every", "1 step"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "stuck\n"
    process.send_signal(signal.SIGTERM)
    if times == 2:
        while "once more" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == code
    assert ("0.9 s later the step was not done (checkpoint.deadline_s)" in errors) == (times == 1)


def test_a_bad_sample_is_one_line_and_exit_1(write_dataset, tmp_path, capsys):
    data, run = write_dataset(str(tmp_path / "data")), tmp_path / "run"
    shard = sorted((Path(data) / "shards").iterdir())[0]
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    assert main(["--data", data, "--run", str(run), "--max_steps", "8", *SMALL]) == 1
    line = next(line for line in capsys.readouterr().err.splitlines() if "error" in line)
    assert re.fullmatch(rf"pretrain: error: sample \d+ \(byte 0 of {shard}\) .*--loader\.on_bad replace.*", line)


@pytest.mark.parametrize(("is_users", "code"), [(True, 2), (False, 1)])
def test_what_the_first_rank_tells_is_not_told_again(tiny, monkeypatch, capsys, is_users, code):
    def train(config, stop):
        raise ToldElsewhereError("told", is_users=is_users)

    monkeypatch.setattr("pretrain.training.loop.train", train)
    assert main(["--data", tiny.data, "--run", tiny.run]) == code
    assert capsys.readouterr().err == ""


def test_replaced_samples_are_told(tiny, capsys):
    position = Position(step=6, samples=60)
    outcome = Outcome(
        position=position, first_step=6, length=6, seconds=0, figures={}, export_url="", checkpoint_url="", num_bad=3
    )
    report(tiny, outcome)
    told = capsys.readouterr().out
    assert f"{tiny.run} is finished: 6 steps, 60 samples; nothing to do" in told
    assert f"3 bad samples were replaced so far: {tiny.run}/bad_samples.jsonl" in told
