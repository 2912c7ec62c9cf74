"""The training loop: fetch, step, log, save; and what must be opened before it.

Resuming is not a special case: every start begins at the newest checkpoint's position, which is 0 in a new run. All
ranks run this; the first one alone writes and prints.
"""

import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from pretrain.batches.batch import Batch, BatchMaker
from pretrain.batches.colour import Colour
from pretrain.batches.loader import STEPS_PER_WORKER, Delivery, deliver
from pretrain.batches.sources import Sources, begin_stream, continued_stream, make_colour, open_sources
from pretrain.config import Config
from pretrain.model.flops import step_flops
from pretrain.model.losses import feature_rank, feature_spread
from pretrain.runs.checkpoint import Checkpoint, Position
from pretrain.runs.export import Origin
from pretrain.runs.metrics import Row
from pretrain.runs.record import (
    RunRecord,
    create_run,
    flatten,
    identity_sha256,
    read_run,
    require_same_data,
    versions,
    with_own_weights,
    write_config,
)
from pretrain.runs.refusals import refusals_told
from pretrain.training.agreement import account, require_alike
from pretrain.training.faults import FAULTS, stop_row
from pretrain.training.gauge import Gauge, Stretch, costs
from pretrain.training.network import shapes
from pretrain.training.newest import newest_checkpoint
from pretrain.training.peak import matmul_peak
from pretrain.training.ranks import Ranks, joined
from pretrain.training.stopping import StopRequest
from pretrain.training.trainer import StepOutcome, Trainer, build_trainer, choose_device
from pretrain.training.writer import Writer, writing
from shards.streaming.state import StreamState, state_at
from shards.streaming.stream import Replacement, Stream


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
    stopped: bool = False
    """Whether it was asked to stop, and has saved before it did."""
    is_first: bool = True
    """Whether this is the rank that writes and prints."""


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """What a start reads before anything is built."""

    config: Config
    """As given, with the weights that the run has already where none are."""
    record: RunRecord | None
    """None in a new run."""
    sources: Sources
    colour: Colour


def train(config: Config, stop: StopRequest | None = None) -> Outcome:
    """Start or go on with a run, up to the end of its schedule, to max_steps, or until it is asked to stop.

    Args:
        config: of the run.
        stop: asked at each step: whether to save and leave; by default never.

    Raises:
        UserError: the datasets, the device, the configuration or the run folder do not fit, or ranks were given
            different ones; nothing was written. Or a write to the run was refused.
        NonFiniteError: training diverged.
        CorruptSampleError: a sample is damaged or does not decode, and was not to be replaced.
        StorageError: a store kept failing.
        WorkerKilledError: a process that loads data was killed.
    """
    with joined(config.device) as ranks, ExitStack() as stack:
        device = ranks.agree(lambda: choose_device(config))
        opened = ranks.agree(lambda: _open(config))
        config, sources = opened.config, opened.sources
        own = account(config, sources, device, goes_on=opened.record is not None)
        require_alike(ranks, own, config.run)
        trainer, step, state = _start(opened, ranks, device)
        queued_steps = config.loader.workers * STEPS_PER_WORKER
        continued = continued_stream(
            config, sources, state, rank=ranks.rank, world=ranks.world, queued_steps=queued_steps
        )
        stream = ranks.agree(lambda: stack.enter_context(continued))
        ranks.agree(lambda: _begin(opened) if ranks.is_first else None)
        position = Position(step=step, samples=state.consumed)
        if step >= trainer.plan.stop_step:
            return _finished(trainer, position)
        return _run(trainer, BatchMaker(stream, config, sources.places), position, opened, stop or StopRequest())


def _open(config: Config) -> _Opened:
    record = read_run(config)
    if record:
        config = with_own_weights(config)
    sources = open_sources(config, record.dataset_versions if record else ())
    colour = make_colour(sources, config)
    if record:
        require_same_data(config, record, sources.digests)
        # The weights may be others by now; what the network is used to must not change with them.
        colour = replace(colour, mean=record.mean, std=record.std)
    return _Opened(config=config, record=record, sources=sources, colour=colour)


def _begin(opened: _Opened) -> None:
    """Write what says that this run is here."""
    config = opened.config
    with refusals_told(config.run, "nothing was begun"):
        if opened.record:
            write_config(config)
        else:
            create_run(config, _make_record(opened))


def _make_record(opened: _Opened) -> RunRecord:
    return RunRecord(
        digests=opened.sources.digests,
        dataset_versions=tuple(dataset.version.version for dataset in opened.sources.datasets),
        mean=opened.colour.mean,
        std=opened.colour.std,
    )


def _start(opened: _Opened, ranks: Ranks, device: torch.device) -> tuple[Trainer, int, StreamState]:
    """Build the trainer and go to the newest checkpoint; return the steps made and where the stream stands."""
    config = opened.config
    checkpoint = newest_checkpoint(ranks, config)
    trainer = build_trainer(config, opened.sources, opened.colour, ranks, device, starts=checkpoint is None)
    if checkpoint is None:
        return trainer, 0, ranks.agree(lambda: begin_stream(config, opened.sources))
    trainer.load(checkpoint)
    return trainer, checkpoint.step, StreamState.from_json(checkpoint.stream)


def _finished(trainer: Trainer, position: Position) -> Outcome:
    """Return the outcome of a start that finds nothing left to do."""
    return Outcome(
        position=position,
        first_step=position.step,
        length=trainer.plan.num_steps,
        seconds=0.0,
        figures={},
        export_url="",
        checkpoint_url="",
        is_first=trainer.ranks.is_first,
    )


def _run(trainer: Trainer, maker: BatchMaker, position: Position, opened: _Opened, stop: StopRequest) -> Outcome:
    """Make all steps that are left, logging and saving on the way."""
    config, plan, first = trainer.config, trainer.plan, position.step
    scale = Scale.of(trainer, opened.sources)
    row, stopped, writer, begin_s = Row(), False, None, time.monotonic()
    with ExitStack() as stack:
        deliveries = stack.enter_context(closing(_remaining(trainer, maker, position)))
        if trainer.ranks.is_first:
            origin = make_origin(config, opened.sources)
            writer = stack.enter_context(writing(config, plan, origin, opened.colour, position))
        gauge = Gauge(trainer.device)
        watched = _watched(gauge, deliveries, position, scale, writer)
        for step, delivery in enumerate(watched, first):
            outcome = trainer.step(step, delivery.batch, lambda: stop.asked)
            position = Position(step=step + 1, samples=position.samples + config.loader.batch)
            # Who is alone need not agree with anybody.
            asked = outcome.stop or (trainer.ranks.world == 1 and stop.asked)
            stopped = asked and position.step < plan.stop_step
            if stopped or position.step == plan.stop_step:
                stop.leaving()
            saves = stopped or plan.saves_after(position.step)
            if saves or position.step % config.log_every == 0:
                row, replaced = _tell(trainer, scale, position, outcome, gauge.take(), maker.stream)
                if writer:
                    writer.tell(row, replaced)
            if saves:
                # After the row, which must be told when the checkpoint appears: the next row tells what it cost.
                with gauge.saving():
                    _save(trainer, writer, position, state_at(maker.stream, position.step - first))
            elif step == first and writer:
                writer.prepare(_shapes(trainer, position))
            if writer:
                writer.show(position.step, row)
            if stopped:
                break
        if writer and not stopped:
            writer.finish()
    saved = writer.saved if writer else None
    return Outcome(
        position=position,
        first_step=first,
        length=plan.num_steps,
        seconds=time.monotonic() - begin_s,
        figures=row,
        export_url=saved.export_url if saved else "",
        checkpoint_url=saved.checkpoint_url if saved else "",
        num_bad=writer.num_bad if writer else 0,
        stopped=stopped,
        is_first=trainer.ranks.is_first,
    )


def _watched(
    gauge: Gauge, deliveries: Iterator[Delivery[Batch]], position: Position, scale: "Scale", writer: Writer | None
) -> Iterator[Delivery[Batch]]:
    """Yield deliveries from a position on; where a fault ends them, tell it as the last row of metrics."""
    step = position.step
    try:
        for delivery in gauge.watch(deliveries):
            yield delivery
            step += 1
    except FAULTS as error:
        samples = position.samples + (step - position.step) * scale.batch
        stretch = gauge.take()
        # What stops a run before its first step is told by nothing but its message: rows belong to steps.
        if writer and step:
            row = stop_row(error, Position(step=step, samples=samples), stretch, num_samples=scale.num_samples)
            writer.tell_stop(row, stretch.replaced)
        raise


def _remaining(trainer: Trainer, maker: BatchMaker, position: Position) -> Generator[Delivery[Batch], None, None]:
    """Return the deliveries from a position, where the maker's stream begins, to where the run stops."""
    return deliver(
        maker,
        num_steps=trainer.plan.stop_step - position.step,
        workers=trainer.config.loader.workers,
        pin_memory=trainer.device.type == "cuda",
    )


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What the figures of a step are held against."""

    num_samples: int
    """Of an epoch."""
    batch: int
    """Samples of a step, over all ranks."""
    step_flops: int
    """Of a step on one rank."""
    peak_flops_per_s: float
    """Of a large matrix product on one rank."""

    @classmethod
    def of(cls, trainer: Trainer, sources: Sources) -> "Scale":
        """Count and measure for a run."""
        config, dtype = trainer.config, torch.bfloat16 if trainer.config.precision == "bfloat16" else torch.float32
        batch = config.loader.batch // trainer.ranks.world
        return cls(
            num_samples=sources.num_samples,
            batch=config.loader.batch,
            step_flops=step_flops(config, len(sources.bands), batch).total,
            peak_flops_per_s=matmul_peak(trainer.device, dtype),
        )


def _tell(
    trainer: Trainer, scale: Scale, position: Position, outcome: StepOutcome, stretch: Stretch, stream: Stream
) -> tuple[Row, list[Replacement]]:
    """Return a row of metrics, and the bad samples since the last one, of all ranks; all must call.

    The losses are this step's own, not a mean; what is counted and timed is that of all steps since the last row.
    """
    ranks = trainer.ranks
    stretches = ranks.collected(stretch)
    cache_bytes = ranks.collected(stream.cache.used_bytes() if stream.cache else 0)
    features_NW = ranks.concatenated(outcome.features_NW, dim=0)
    row: Row = {
        "step": position.step,
        "samples": position.samples,
        "epoch": position.samples / scale.num_samples,
        **{name: float(value) for name, value in outcome.figures.items()},
        "feature_spread": float(feature_spread(features_NW)),
        "feature_rank": float(feature_rank(features_NW)),
        **asdict(outcome.rates),
        **costs(
            stretches,
            batch=scale.batch,
            step_flops=scale.step_flops,
            peak_flops_per_s=scale.peak_flops_per_s,
        ),
        "cache_bytes": sum(cache_bytes),
    }
    replaced = [each for stretch in stretches for each in stretch.replaced]
    return row, sorted(replaced, key=lambda each: each.number)


def _save(trainer: Trainer, writer: Writer | None, position: Position, stream: StreamState) -> None:
    """Put together what the rest of the run depends on, and hand it to the writer; all ranks must call."""
    network, ranks = trainer.network, trainer.ranks
    model, moments = network.state(ranks), network.moments(trainer.optimiser, ranks)
    if writer:
        checkpoint = Checkpoint(
            step=position.step, model=model, optimiser=moments, stream=stream.to_json(), record=_record(trainer.config)
        )
        writer.save(checkpoint, position.samples)


def _shapes(trainer: Trainer, position: Position) -> Checkpoint:
    """Return a checkpoint without values, of the size of all that will be saved."""
    parameters = trainer.model.trainable().items()
    return Checkpoint(
        step=position.step,
        model=shapes(trainer.model.state_dict()),
        optimiser={name: shapes(trainer.optimiser.state[parameter]) for name, parameter in parameters},
        stream={},
        record={},
    )


def _record(config: Config) -> dict[str, Any]:
    """Return what a checkpoint says of itself; what data it belongs to says the stream's state."""
    return {"config": flatten(config), "config_sha256": identity_sha256(config), "versions": versions()}


def make_origin(config: Config, sources: Sources) -> Origin:
    """Return what a run's weights are made from."""
    return Origin(
        bands=sources.bands,
        dtype=sources.datasets[0].dtype,
        dataset_digest=sources.digest,
        config_sha256=identity_sha256(config),
        versions=versions(),
    )
