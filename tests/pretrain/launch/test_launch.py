import configparser
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pretrain.config import Config
from shards.cli import parse_config
from tests.ports import free_ports

LAUNCH = Path(__file__).parents[3] / "pretrain" / "launch"
SCRIPTS = [LAUNCH / "torchrun.sh", LAUNCH / "slurm.sbatch"]

RANK = """
import os, signal, sys, time
from pathlib import Path
name, mode = os.environ["RANK"], sys.argv[-1]
told = []
signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
place = Path(f"place-{name}")
told_of = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANKS")
place.write_text(" ".join(os.environ[key] for key in told_of if key in os.environ))
place.rename(f"rank-{name}")  # only now: whoever waits for the file reads it at once
while mode == "train" and not told:
    time.sleep(0.05)
time.sleep(0.5)  # to save; a second signal would be seen
Path(f"end-{name}").write_text(str(len(told)))
sys.exit(mode == "fail")
"""


def read_kubernetes():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    return service, job, job["spec"]["template"]["spec"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_shell(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("file", sorted(LAUNCH.iterdir()), ids=lambda file: file.name)
def test_options_are_real(file):
    text = re.sub(r" *\\\n[# ]*", " ", file.read_text())
    found = re.findall(r"(?<!\S)(--data [^\n`]+)", text)
    assert found
    for options in found:
        config = parse_config("pretrain", "", Config, shlex.split(options))
        assert config.checkpoint.deadline_s < 110  # that torchrun.sh waits


def test_numbers_of_machines_agree():
    service, job, pod = read_kubernetes()
    (container,) = pod["containers"]
    env = {each["name"]: each["value"] for each in container["env"]}
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(env["NODES"])
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert env["MASTER_ADDR"] == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert f"MASTER_PORT:-{service['spec']['ports'][0]['port']}" in (LAUNCH / "torchrun.sh").read_text()
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}


def test_time_to_save_fits_in_all_that_wait():
    _, _, pod = read_kubernetes()
    torchrun_s = int(re.search(r"SHUTDOWN_TIMEOUT:-(\d+)", (LAUNCH / "torchrun.sh").read_text())[1])
    unit = configparser.ConfigParser(interpolation=None)
    unit.read(LAUNCH / "pera.service")
    slurm_s = int(re.search(r"--signal=B:USR1@(\d+)", (LAUNCH / "slurm.sbatch").read_text())[1])
    others_s = [pod["terminationGracePeriodSeconds"], int(unit["Service"]["TimeoutStopSec"]), slurm_s]
    assert Config(data="d", run="r").checkpoint.deadline_s < torchrun_s < min(others_s)


@pytest.fixture
def ranks(tmp_path):
    """A folder where `python -m pretrain` is a stand-in that notes how it was started and ended."""
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain/__init__.py").touch()
    (tmp_path / "pretrain/__main__.py").write_text(RANK)
    return tmp_path


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def start(folder, script, *arguments, **environment):
    return subprocess.Popen(
        ["bash", script, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": "", **environment},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_torchrun_ends_with_0_only_if_the_run_does(ranks):
    begun = [(mode, start(ranks, LAUNCH / "torchrun.sh", mode, RANKS_PER_NODE="1")) for mode in ("finish", "fail")]
    assert [process.wait() for _, process in begun] == [0, 1]


def has_gpu():
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists() or Path("/dev/dxg").exists()


@pytest.mark.skipif(has_gpu(), reason="a GPU is here")
def test_torchrun_without_a_gpu_says_what_to_set(ranks):
    process = start(ranks, LAUNCH / "torchrun.sh", "finish")
    output, errors = process.communicate()
    told = "torchrun.sh: no GPU here: set RANKS_PER_NODE, as to 2 for two processes on the CPU\n"
    assert (process.returncode, output, errors.rpartition("/")[2]) == (2, "", told)


def test_torchrun_takes_the_environment_that_lies_where_it_is_started(ranks):
    (ranks / ".venv" / "bin").mkdir(parents=True)
    (ranks / ".venv" / "bin" / "python").symlink_to(shutil.which("true"))  # ends with 0, and starts nothing
    assert start(ranks, LAUNCH / "torchrun.sh", "finish", RANKS_PER_NODE="1", PYTHON="").wait() == 0
    assert not (ranks / "rank-0").exists()


def test_torchrun_passes_sigterm_on_once_and_ends_with_1(ranks):
    process = start(ranks, LAUNCH / "torchrun.sh", "train", RANKS_PER_NODE="2")
    wait_for(ranks / "rank-0", process)
    wait_for(ranks / "rank-1", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 1, process.communicate()
    assert [(ranks / f"end-{rank}").read_text() for rank in (0, 1)] == ["1", "1"]


def test_two_machines_meet(ranks):
    (port,) = map(str, free_ports(1))
    place = {"NODES": "2", "RANKS_PER_NODE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    first = start(ranks, LAUNCH / "torchrun.sh", "finish", **place, IS_HOST="true")
    second = start(ranks, LAUNCH / "torchrun.sh", "finish", **place, IS_HOST="false")
    assert (first.wait(), second.wait()) == (0, 0), first.communicate()[1] + second.communicate()[1]
    assert {(ranks / f"rank-{rank}").read_text() for rank in (0, 1)} == {"0 0 2", "1 0 2"}


CLUSTER = {
    # Two tasks of one node; the code is the highest of theirs.
    "srun": """while [ "${1#--}" != "$1" ]; do shift; done
export SLURM_NTASKS=2
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank bash -c 'echo $$ > task-$SLURM_PROCID; exec "$@"' task "$@" &
done
wait -n || exit; wait -n""",
    "scancel": 'echo "$@" > cancelled; kill -TERM $(cat task-0 task-1)',
    "scontrol": 'case $1 in show) echo node0; echo node1;; *) echo "$@" > requeued;; esac',
}


@pytest.fixture
def cluster(ranks, monkeypatch):
    """The folder of `ranks`, with stand-ins for what SLURM has."""
    for name, text in CLUSTER.items():
        (ranks / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (ranks / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{ranks}:{os.environ['PATH']}")
    return ranks


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "node[0-1]",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_CPUS_PER_TASK": "1",
}


def test_slurm_requeues_what_was_stopped(cluster):
    process = start(cluster, LAUNCH / "slurm.sbatch", "train", **SLURM)
    wait_for(cluster / "rank-0", process)
    wait_for(cluster / "rank-1", process)
    assert {(cluster / f"rank-{rank}").read_text() for rank in (0, 1)} == {"0 0 2 2", "1 1 2 2"}
    process.send_signal(signal.SIGUSR1)
    assert process.wait() == 0, process.communicate()
    assert [(cluster / f"end-{rank}").read_text() for rank in (0, 1)] == ["1", "1"]
    assert (cluster / "requeued").read_text() == "requeue 7\n"


@pytest.mark.parametrize(("mode", "code"), [("finish", 0), ("fail", 1)])
def test_slurm_leaves_what_ended_by_itself(cluster, mode, code):
    assert start(cluster, LAUNCH / "slurm.sbatch", mode, **SLURM).wait() == code
    assert not (cluster / "requeued").exists()
