"""Command line of pretrain: a dataset in, a run with checkpoints and exports out."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

from pretrain.config import Config
from shards import cli

if TYPE_CHECKING:
    from pretrain.train import Outcome

_DESCRIPTION = """Pre-train a vision transformer with PerA on a dataset that ingest made.
Starting again with the same --run goes on from its newest checkpoint, exactly."""
_GO_ON = ", or go on with --loader.on_bad replace, which puts another sample in its place"


def main(argv: list[str]) -> int:
    """Run pre-training; see `exit_with` for the exit codes."""
    config = cli.parse_config("pretrain", _DESCRIPTION, Config, argv)
    # Read when torch loads OpenMP. Threads that spin while they wait make a step ten times slower as soon as
    # one other process wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # As by Ctrl-C: workers and cache are cleared away.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    from pretrain.loader import WorkerKilledError
    from pretrain.train import train
    from pretrain.trainer import NonFiniteError
    from shards.dataset import CorruptSampleError
    from shards.storage.retry import StorageError

    try:
        outcome = train(config)
    except CorruptSampleError as error:
        return failed(f"{error}: restore its shard" + _GO_ON * (config.loader.on_bad == "stop"))
    except (StorageError, WorkerKilledError, NonFiniteError) as error:
        return failed(str(error))
    report(config, outcome)
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
    else:
        print(f"{config.run} is finished: {position.step} steps, {position.samples} samples; nothing to do")
    if outcome.num_bad:
        print(f"{outcome.num_bad} bad samples were replaced so far: {config.run}/bad_samples.jsonl")
    if position.step < outcome.length:
        print(f"step {position.step} of {outcome.length}: start again with a larger --max_steps, or none, to go on")
    print(f"next: make eval RUN={config.run} DATA=name=<class folder>")


if __name__ == "__main__":
    cli.exit_with("pretrain", main)
