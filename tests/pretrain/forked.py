"""Ranks as processes that are forked from one that has loaded everything: starts of them take a second, not a minute.

As a program it reads {"starts": [[configuration files by rank], …], "prelude": code that each rank runs first} and
prints the exit codes of each start's ranks as JSON; what the ranks print goes to stderr.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import yaml

from tests.ports import free_ports

REPOSITORY = Path(__file__).parents[2]


def run_ranks(*starts, prelude=""):
    """Run starts one after another, each a list of configurations by rank; return their exit codes and all stderr."""
    asked = {"starts": [[_written(config, rank) for rank, config in enumerate(start)] for start in starts]}
    result = subprocess.run(
        [sys.executable, "-m", "tests.pretrain.forked"],
        input=json.dumps({**asked, "prelude": prelude}),
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), result.stderr


def _written(config, rank):
    text = yaml.safe_dump(json.loads(json.dumps(asdict(config))))
    file = Path(f"{config.run}-{rank}-{abs(hash(text)):x}.yaml")
    file.write_text(text)
    return str(file)


def _start(files, prelude):
    (port,) = map(str, free_ports(1))
    children = [_fork(file, rank, len(files), port, prelude) for rank, file in enumerate(files)]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _fork(file, rank, world, port, prelude):
    from pretrain.__main__ import main
    from shards.cli import exit_with

    child = os.fork()
    if child:
        return child
    os.dup2(2, 1)
    place = {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update(place, LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world))
    sys.argv = ["pretrain", "--config", file]
    code = 70  # a traceback
    try:
        exec(prelude, {"rank": rank})
        exit_with("pretrain", main)
    except SystemExit as left:
        code = left.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    # Not a thread is there before the forks: these import, and compute nothing.
    import pretrain.training.loop

    pretrain.training.loop.matmul_peak = lambda device, dtype: 1e11
    given = json.loads(sys.stdin.read())
    print(json.dumps([_start(files, given["prelude"]) for files in given["starts"]]))
