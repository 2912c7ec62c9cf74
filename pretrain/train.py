"""The training loop: fetch, forward and backward, clip, finite check, step, log, save.

Resuming is not a special case: every start begins at the newest checkpoint's position, which is 0 in a new run.
"""

import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace

import torch

from pretrain.checkpoint import Position, list_checkpoints, load_checkpoint
from pretrain.colour import Colour
from pretrain.config import Config
from pretrain.data import BatchMaker
from pretrain.loader import COUNTS, STEPS_PER_WORKER, Delivery, deliver
from pretrain.metrics import Metrics, Row
from pretrain.pera import PeraOutput
from pretrain.plan import Plan, Rates
from pretrain.run import RunRecord, create_run, read_run, require_same_data, write_config
from pretrain.sources import Sources, begin_stream, continued_stream, make_colour, open_sources
from pretrain.trainer import Trainer, build_trainer
from shards.progress import Progress
from shards.streaming.state import state_at


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
    num_bad: int = 0
    """Bad samples of the run so far, replaced by others and listed in the run."""


def train(config: Config) -> Outcome:
    """Start or go on with a run, up to the end of its schedule or to max_steps.

    Raises:
        UserError: the datasets, the device, the configuration or the run folder do not fit; nothing was written.
        NonFiniteError: training diverged.
        CorruptSampleError: a sample is damaged or does not decode, and was not to be replaced.
        StorageError: a store kept failing.
        WorkerKilledError: a process that loads data was killed.
    """
    record = read_run(config)
    sources = open_sources(config, record.dataset_versions if record else ())
    colour = make_colour(sources, config)
    if record:
        require_same_data(config, record, sources.digests)
        # The weights may be others by now; what the network is used to must not change with them.
        colour = replace(colour, mean=record.mean, std=record.std)
    trainer = build_trainer(config, sources, colour)
    step, state = 0, begin_stream(config, sources)
    checkpoints = list_checkpoints(config.run)
    if checkpoints:
        step, state = load_checkpoint(list(checkpoints.values())[-1], trainer.model, trainer.optimiser)
    queued_steps = config.loader.workers * STEPS_PER_WORKER
    with continued_stream(config, sources, state, queued_steps=queued_steps) as stream:
        if record:
            write_config(config)
        else:
            create_run(config, make_record(sources, colour))
        position = Position(step=step, samples=state.consumed)
        if position.step >= trainer.plan.stop_step:
            return finished(trainer.plan, position)
        return run_loop(trainer, BatchMaker(stream, config, sources.places), position, sources.num_samples)


def make_record(sources: Sources, colour: Colour) -> RunRecord:
    """Return what a new run keeps from its first start."""
    return RunRecord(
        digests=sources.digests,
        dataset_versions=tuple(dataset.version.version for dataset in sources.datasets),
        mean=colour.mean,
        std=colour.std,
    )


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


def run_loop(trainer: Trainer, maker: BatchMaker, position: Position, num_samples: int) -> Outcome:
    """Make all steps that are left, logging and saving on the way; `num_samples` are those of an epoch."""
    config, plan = trainer.config, trainer.plan
    first, row, urls = position.step, Row(), ("", "")
    begin_s = time.monotonic()
    metrics = Metrics(config.run, position)
    with (
        closing(remaining(trainer, maker, position)) as deliveries,
        Progress("pretrain", plan.stop_step, "steps", done=first) as progress,
    ):
        watched = Watched(deliveries)
        for step, delivery in enumerate(watched, first):
            metrics.add_bad(delivery.replaced)
            output, rates, grad_norm = trainer.step(step, delivery.batch)
            position = Position(step=step + 1, samples=position.samples + config.loader.batch)
            if position.step % config.log_every == 0 or plan.saves_after(position.step):
                row = make_row(position, num_samples, output, rates, grad_norm)
                row |= watched.figures(config.loader.batch)
                row["cache_bytes"] = maker.stream.cache.used_bytes() if maker.stream.cache else 0
                metrics.append(row)
            if plan.saves_after(position.step):
                metrics.flush()
                urls = trainer.save(position, state_at(maker.stream, position.step - first))
            progress.update(position.step, line_figures(row) if row else "")
    return Outcome(
        position=position,
        first_step=first,
        length=plan.num_steps,
        seconds=time.monotonic() - begin_s,
        figures=row,
        export_url=urls[0],
        checkpoint_url=urls[1],
        num_bad=metrics.num_bad,
    )


def remaining(trainer: Trainer, maker: BatchMaker, position: Position) -> Generator[Delivery, None, None]:
    """Return the deliveries from a position, where the maker's stream begins, to where the run stops."""
    return deliver(
        maker,
        num_steps=trainer.plan.stop_step - position.step,
        workers=trainer.config.loader.workers,
        pin_memory=trainer.device.type == "cuda",
    )


class Watched:
    """Iterate over deliveries and sum up what they cost."""

    def __init__(self, deliveries: Iterator[Delivery]) -> None:
        self._deliveries = deliveries
        self._begin()

    def _begin(self) -> None:
        self._wait_s, self._num_batches, self._since_s = 0.0, 0, time.monotonic()
        self._counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))

    def __iter__(self) -> Iterator[Delivery]:
        while True:
            begin_s = time.monotonic()
            delivery = next(self._deliveries, None)
            self._wait_s += time.monotonic() - begin_s
            if delivery is None:
                return
            self._num_batches += 1
            self._counts.update(delivery.counts)
            yield delivery

    def figures(self, batch_size: int) -> Row:
        """Return samples_per_s, data_wait_share and the counts of the deliveries since the last call."""
        elapsed_s = max(time.monotonic() - self._since_s, 1e-9)
        figures = {
            "samples_per_s": self._num_batches * batch_size / elapsed_s,
            "data_wait_share": self._wait_s / elapsed_s,
            **self._counts,
        }
        self._begin()
        return figures


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
