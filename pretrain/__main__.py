"""Command line of pretrain: a dataset in, a run with checkpoints and exports out; and commands that look at runs."""

from __future__ import annotations

import errno
import importlib
import os
import shlex
import sys
from typing import TYPE_CHECKING, NoReturn

from pretrain.batches.server import fork_server
from pretrain.config import Config
from shards import cli
from shards.errors import UserError
from shards.openmp import spin_shortly

if TYPE_CHECKING:
    from pretrain.training.loop import Outcome

_COMMANDS = {
    "show": "pretrain.pages.show",
    "curves": "pretrain.pages.curves",
    "export": "pretrain.runs.publish",
}
_DESCRIPTION = """Pre-train a vision transformer with PerA on a dataset that ingest made.
Starting again with the same --run goes on from its newest checkpoint, exactly. SIGTERM saves and leaves, with exit code
0. Under torchrun (see pretrain/launch/README.md) each process is a rank.

Other commands, each with its own --help: `python -m pretrain show` (a page of what training sees),
`python -m pretrain curves` (a run's metrics as a page), `python -m pretrain export` (a folder for a model hub)."""
_GO_ON = ", or go on with --loader.on_bad replace, which puts another sample in its place"


def main(argv: list[str]) -> int:
    """Run pre-training or a command; see `exit_with` for the exit codes."""
    spin_shortly()
    if argv and argv[0] in _COMMANDS:
        return look(*argv)
    try:
        config = cli.parse_config("pretrain", _DESCRIPTION, Config, argv)
    except UserError:
        # All ranks find the same, and the first one tells.
        if os.environ.get("RANK", "0") != "0":
            return 2
        raise
    return pretrain(config)


def look(command: str, *argv: str) -> int:
    """Run one of the commands that look at runs and data."""
    from shards.storage.retry import StorageError

    try:
        code: int = importlib.import_module(_COMMANDS[command]).main(list(argv))
    except StorageError as error:
        return failed(str(error))
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return failed(f"{error}: have the disk mounted for writing, or work on a copy on another")
    return code


def pretrain(config: Config) -> int:
    """Train as configured, and say what came of it."""
    if config.loader.workers:
        # Before torch is imported here: both take seconds, and pass at the same time.
        fork_server()
    from pretrain.batches.loader import WorkerKilledError
    from pretrain.training.loop import train
    from pretrain.training.ranks import LostRankError, ToldElsewhereError
    from pretrain.training.stopping import TooLateError, heeding_sigterm
    from pretrain.training.trainer import NonFiniteError
    from shards.dataset import CorruptSampleError
    from shards.storage.retry import StorageError

    try:
        with heeding_sigterm(config.checkpoint.deadline_s) as stop:
            outcome = train(config, stop)
    except CorruptSampleError as error:
        return failed(f"{error}: restore its shard" + _GO_ON * (config.loader.on_bad == "stop"))
    except (StorageError, WorkerKilledError, NonFiniteError, TooLateError, LostRankError) as error:
        return failed(str(error))
    except ToldElsewhereError as error:
        return 2 if error.is_users else 1
    if outcome.is_first:
        report(config, outcome)
    if outcome.stopped and not stop.asked:
        # Who starts ranks on other machines must not take this one for finished.
        return failed("another rank was asked to stop, and all have saved: start them again to go on")
    return 0


def failed(message: str) -> int:
    """Print why a run stopped and return the exit code of what is not the command's fault."""
    print(f"pretrain: error: {message}", file=sys.stderr)
    return 1


def report(config: Config, outcome: Outcome) -> None:
    """Print what was made, where, its figures and what to run next."""
    position = outcome.position
    made = position.step - outcome.first_step
    if made:
        resumed = f" (resumed at step {outcome.first_step})" if outcome.first_step else ""
        rate = made * config.loader.batch / outcome.seconds
        figures = outcome.figures
        print(f"{config.run}: {made} steps in {outcome.seconds:.0f} s{resumed}, {rate:.0f} samples/s")
        names = ("loss", "global_cls", "local_cls", "koleo", "pixel", "divergence", "teacher_entropy", "feature_spread")
        print("last step: " + ", ".join(f"{name} {figures[name]:.3f}" for name in names))
        print(f"checkpoint: {outcome.checkpoint_url}")
        print(f"export: {outcome.export_url}")
        # Who is asked to stop draws none.
        draw = f"python -m pretrain curves --run {shlex.quote(config.run)}"
        print(f"curves: {draw if outcome.stopped else f'{config.run}/curves.html'}")
    else:
        made_so_far = f"{position.step} steps, {position.samples} samples; nothing to do"
        if position.step >= outcome.length:
            print(f"{config.run} is finished: {made_so_far}")
        else:
            print(f"{config.run}: {made_so_far} up to max_steps")
    if outcome.num_bad:
        print(f"{outcome.num_bad} bad samples were replaced so far: {config.run}/bad_samples.jsonl")
    if outcome.stopped:
        print(f"stopped by SIGTERM at step {position.step} of {outcome.length}: the same command goes on")
    elif position.step < outcome.length:
        print(f"step {position.step} of {outcome.length}: start again with a larger --max_steps, or none, to go on")
    print(f"next: make eval RUN={config.run} DATA=name=<class folder>")


def leave(code: int) -> NoReturn:
    """End this process; a rank ends at once, without Python's own teardown.

    A network that is shared out keeps gloo's threads for as long as its process lives (torch caches the mesh). One that
    is slow to drop the tensors of its last message asks for Python's lock, which nobody gets in the teardown: abort.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(cli.exit_code("pretrain", main))
