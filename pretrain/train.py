"""The training loop: fetch, forward and backward, clip, finite check, step, log, save.

Resuming is not a special case: every start begins at the newest checkpoint's position, which is 0 in a new run.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice

import torch

from pretrain.checkpoint import Position, list_checkpoints, load_checkpoint
from pretrain.config import Config
from pretrain.data import Batch, BatchMaker, choose_bands, stream_batches
from pretrain.metrics import Metrics, Row
from pretrain.pera import PeraOutput
from pretrain.plan import Plan, Rates
from pretrain.run import check_run, create_run, write_config
from pretrain.trainer import Trainer, build_trainer
from shards.dataset import open_dataset
from shards.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a start of a run did."""

    position: Position
    first_step: int
    """Where this start began: 0, or where the run was resumed."""
    length: int
    """Steps of the whole schedule."""
    seconds: float
    """In the loop."""
    figures: Row
    """The last row of metrics; empty where nothing was left to do."""
    export_url: str
    """Of the last save; empty as `figures`, likewise the next."""
    checkpoint_url: str


def train(config: Config) -> Outcome:
    """Start or go on with a run, up to the end of its schedule or to max_steps.

    Raises:
        UserError: the dataset, the device, the configuration or the run folder do not fit; nothing was written.
        NonFiniteError: training diverged.
    """
    dataset = open_dataset(config.data)
    bands = choose_bands(dataset, config)
    trainer = build_trainer(config, dataset, bands)
    if check_run(config, dataset.digest):
        write_config(config)
    else:
        create_run(config, dataset.digest)
    position = Position()
    checkpoints = list_checkpoints(config.run)
    if checkpoints:
        position = load_checkpoint(list(checkpoints.values())[-1], trainer.model, trainer.optimiser)
    if position.step >= trainer.plan.stop_step:
        return finished(trainer.plan, position)
    return run_loop(trainer, BatchMaker(dataset, config, bands), position)


def finished(plan: Plan, position: Position) -> Outcome:
    """Return the outcome of a start that finds nothing left to do."""
    return Outcome(
        position=position,
        first_step=position.step,
        length=plan.num_steps,
        seconds=0.0,
        figures={},
        export_url="",
        checkpoint_url="",
    )


def run_loop(trainer: Trainer, maker: BatchMaker, position: Position) -> Outcome:
    """Make all steps that are left, logging and saving on the way."""
    config, plan = trainer.config, trainer.plan
    first, row, urls = position.step, Row(), ("", "")
    begin_s = time.monotonic()
    metrics = Metrics(config.run, first)
    batches = TimedBatches(remaining_batches(trainer, maker, position))
    with Progress("pretrain", plan.stop_step, "steps", done=first) as progress:
        for step, batch in enumerate(batches, first):
            output, rates, grad_norm = trainer.step(step, batch)
            position = Position(step=step + 1, samples=position.samples + config.loader.batch)
            if position.step % config.log_every == 0 or plan.saves_after(position.step):
                row = make_row(position, maker.num_samples, output, rates, grad_norm)
                row |= batches.rates(config.loader.batch)
                metrics.append(row)
            if plan.saves_after(position.step):
                metrics.flush()
                urls = trainer.save(position)
            progress.update(position.step, line_figures(row) if row else "")
    return Outcome(
        position=position,
        first_step=first,
        length=plan.num_steps,
        seconds=time.monotonic() - begin_s,
        figures=row,
        export_url=urls[0],
        checkpoint_url=urls[1],
    )


def remaining_batches(trainer: Trainer, maker: BatchMaker, position: Position) -> Iterator[Batch]:
    """Return the batches from a position to where the run stops."""
    return stream_batches(
        maker,
        trainer.config,
        samples_consumed=position.samples,
        num_steps=trainer.plan.stop_step - position.step,
        pin_memory=trainer.device.type == "cuda",
    )


class TimedBatches:
    """Iterate over batches and measure samples per second and the share of time spent waiting for data."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._wait_s, self._num_batches, self._since_s = 0.0, 0, time.monotonic()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            begin_s = time.monotonic()
            batch = list(islice(self._batches, 1))
            self._wait_s += time.monotonic() - begin_s
            if not batch:
                return
            self._num_batches += 1
            yield batch[0]

    def rates(self, batch_size: int) -> Row:
        """Return samples_per_s and data_wait_share since the last call."""
        elapsed_s = max(time.monotonic() - self._since_s, 1e-9)
        figures = {
            "samples_per_s": self._num_batches * batch_size / elapsed_s,
            "data_wait_share": self._wait_s / elapsed_s,
        }
        self._wait_s, self._num_batches, self._since_s = 0.0, 0, time.monotonic()
        return {**figures}


def make_row(position: Position, num_samples: int, output: PeraOutput, rates: Rates, grad_norm: torch.Tensor) -> Row:
    """Return a row of metrics: this step's own figures, not a mean."""
    return {
        "step": position.step,
        "samples": position.samples,
        "epoch": position.samples / num_samples,
        **{name: float(value) for name, value in output.parts.items()},
        **asdict(rates),
        "grad_norm": float(grad_norm),
    }


def line_figures(row: Row) -> str:
    """Return what the progress line shows of a row."""
    # The loss holds the teacher's own entropy, which grows on the way: the divergence is the part that falls.
    return (
        f"loss {row['loss']:.3f} (divergence {row['divergence']:.3f}) · {row['samples_per_s']:.0f} samples/s · "
        f"waiting for data {row['data_wait_share']:.0%}"
    )
