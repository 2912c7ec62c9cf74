"""The state of a stream: all that must be kept to go on exactly, under 1 KB of JSON for a few datasets.

It counts samples, not steps, and knows nothing of ranks, workers or the global batch: all three may be others when the
stream goes on. It is the same on every rank. Going on costs no more than beginning: nothing is replayed.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from operator import index
from typing import Any

from shards.dataset import Dataset
from shards.errors import UserError
from shards.streaming.cache import BlockCache
from shards.streaming.mix import Mixture, proportional_weights, whole_weights
from shards.streaming.order import BLOCK_BYTES, WINDOW, OrderSettings, default_lanes
from shards.streaming.room import default_ahead_steps
from shards.streaming.stream import Stream

VERSION = 1
"""Of the stream's definition: which sample comes where. Another one means other streams, and other states."""

_MAX_SEED_BITS = 63


@dataclass(frozen=True, kw_only=True)
class DatasetState:
    """Which data a stream reads."""

    digest: str
    """Of the content."""
    layout: str
    """Of rows and shards, see `shards.dataset.layout_digest`."""


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """Where a stream stands."""

    consumed: int
    """Samples that training has used: counted by finished steps, never by what was read ahead."""
    settings: OrderSettings
    mixture: Mixture
    """The one that holds at this place."""
    datasets: tuple[DatasetState, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values: numbers, texts, lists and dicts."""
        settings = asdict(self.settings)
        return {
            "version": VERSION,
            "seed": settings.pop("seed"),
            "consumed": self.consumed,
            "order": settings,
            "mixture": {
                name: value if name == "start" else list(value) for name, value in asdict(self.mixture).items()
            },
            "datasets": [asdict(dataset) for dataset in self.datasets],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "StreamState":
        """Make it from what `to_json` returned.

        Raises:
            ValueError: it is of a version that this code does not know, or damaged.
        """
        known = values.get("version") if isinstance(values, Mapping) else None
        if known != VERSION:
            raise ValueError(
                f"a stream's state of version {known}, known is {VERSION}: go on with the code that made it"
            )
        try:
            return cls._from_values(values)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"a damaged state of a stream: {error!r}") from error

    @classmethod
    def _from_values(cls, values: Mapping[str, Any]) -> "StreamState":
        mixed = values["mixture"]
        weights, taken = tuple(mixed["weights"]), tuple(mixed["taken"])
        if not sum(taken) == mixed["start"] <= values["consumed"]:
            raise ValueError(f"counts do not agree: {mixed}, consumed {values['consumed']}")
        datasets = tuple(DatasetState(**dataset) for dataset in values["datasets"])
        if not len(weights) == len(taken) == len(datasets):
            raise ValueError(f"{len(datasets)} datasets, {len(weights)} weights, {len(taken)} counts")
        order = {name: index(values["order"][name]) for name in ("lanes", "block_bytes", "window")}
        return cls(
            consumed=index(values["consumed"]),
            settings=OrderSettings(seed=index(values["seed"]), **order),
            mixture=Mixture(weights=weights, start=mixed["start"], taken=taken),
            datasets=datasets,
        )


def begin(
    datasets: Sequence[Dataset],
    *,
    seed: int,
    global_batch: int,
    weights: Sequence[float] | None = None,
    lanes: int | None = None,
    block_bytes: int = BLOCK_BYTES,
    window: int = WINDOW,
) -> StreamState:
    """Return the state of a stream of which nothing was used yet.

    Args:
        datasets: at least one.
        seed: of the order.
        global_batch: G, from which the default number of lanes follows.
        weights: of each dataset; by default they are in proportion to the datasets' samples, so that epochs end
            together.
        lanes: see `OrderSettings`; by default the largest divisor of G up to 256.
        block_bytes: see `OrderSettings`.
        window: see `OrderSettings`.

    Raises:
        UserError: weights that are too many or too few, a dataset given twice, or a value that is out of its range.
    """
    if global_batch < 1:
        raise UserError(f"global batch {global_batch} is below 1")
    if seed.bit_length() > _MAX_SEED_BITS:
        raise UserError(f"seed {seed} is too large: {_MAX_SEED_BITS} bits are the limit")
    _require_distinct(datasets)
    lanes = default_lanes(global_batch) if lanes is None else lanes
    try:
        settings = OrderSettings(seed=seed, lanes=lanes, block_bytes=block_bytes, window=window)
    except ValueError as error:
        raise UserError(str(error)) from error
    if weights is None:
        chosen = proportional_weights([dataset.num_samples for dataset in datasets])
    else:
        chosen = _whole(weights, len(datasets))
    return StreamState(
        consumed=0, settings=settings, mixture=Mixture(weights=chosen), datasets=tuple(map(_known, datasets))
    )


def _require_distinct(datasets: Sequence[Dataset]) -> None:
    digests = Counter(dataset.digest for dataset in datasets)
    if twice := [dataset.url for dataset in datasets if digests[dataset.digest] > 1]:
        # They would have one order, so that a step held every sample of it twice.
        raise UserError(f"{', '.join(twice)} have the same content: give one of them, with a higher weight")


def check(state: StreamState, datasets: Sequence[Dataset]) -> None:
    """Make sure that a stream goes on with the data that it began with; further datasets may follow at the end.

    Raises:
        UserError: a dataset is missing, is another one, lies in other shards than before, or is given twice; names it.
    """
    told = f"the stream began with {len(state.datasets)} datasets"
    if len(datasets) < len(state.datasets):
        raise UserError(f"{told}, {len(datasets)} are given: give all in the same order (weight 0 pauses one)")
    digests = [dataset.digest for dataset in datasets]
    for number, (dataset, before) in enumerate(zip(datasets, state.datasets, strict=False)):
        name = f"{dataset.url} version {dataset.version.version}"
        if dataset.digest != before.digest and before.digest in digests:
            place = datasets[digests.index(before.digest)].url
            raise UserError(f"{told} in another order: number {number + 1} was {place}, now it is {name}")
        if dataset.digest != before.digest:
            raise UserError(
                f"{name} is not what the stream began with: its digest is {dataset.digest[:16]}…, not "
                f"{before.digest[:16]}…; give that dataset and version, or begin a new stream"
            )
        if dataset.layout != before.layout:
            raise UserError(
                f"{name} has the samples that the stream began with, but in other shards (rebuilt with another shard "
                "size?), which makes another order: give it as it was, or begin a new stream"
            )
    _require_distinct(datasets)


def open_stream(
    state: StreamState,
    datasets: Sequence[Dataset],
    *,
    global_batch: int,
    weights: Sequence[float] | None = None,
    rank: int = 0,
    world: int = 1,
    cache: BlockCache | None = None,
    ahead_steps: int | None = None,
    on_bad: str = "stop",
) -> Stream:
    """Return the stream that goes on from a state: its step 0 is the next one.

    Args:
        state: from `begin`, `state_at` or a checkpoint.
        datasets: those of the state, in its order; others may follow, then all weights must be given.
        global_batch: G, which may be another one than before.
        weights: from here on; by default they stay. The same ones again change nothing.
        rank: see `Stream`.
        world: see `Stream`.
        cache: see `Stream`.
        ahead_steps: see `Stream`; by default `default_ahead_steps`.
        on_bad: see `Stream`.

    Raises:
        UserError: the datasets are not those of the state (`check`), or weights or world do not fit.
    """
    check(state, datasets)
    mixture = _mixture(state, len(datasets), weights)
    if ahead_steps is None:
        ahead_steps = default_ahead_steps(datasets, mixture, global_batch, world)
    return Stream(
        datasets,
        state.settings,
        global_batch=global_batch,
        mixture=mixture,
        start=state.consumed,
        rank=rank,
        world=world,
        cache=cache,
        ahead_steps=ahead_steps,
        on_bad=on_bad,
    )


def state_at(stream: Stream, step: int) -> StreamState:
    """Return the state before a step of a stream: after step − 1 is finished."""
    return StreamState(
        consumed=stream.start + step * stream.global_batch,
        settings=stream.orders[0].settings,
        mixture=stream.mixture,
        datasets=tuple(map(_known, stream.datasets)),
    )


def _known(dataset: Dataset) -> DatasetState:
    return DatasetState(digest=dataset.digest, layout=dataset.layout)


def _whole(weights: Sequence[float], num_datasets: int) -> tuple[int, ...]:
    if len(weights) != num_datasets:
        raise UserError(f"{len(weights)} weights for {num_datasets} datasets: give one for each")
    try:
        return whole_weights(weights)
    except ValueError as error:
        raise UserError(str(error)) from error


def _mixture(state: StreamState, num_datasets: int, weights: Sequence[float] | None) -> Mixture:
    before = state.mixture
    num_new = num_datasets - len(before.weights)
    if weights is None:
        if num_new:
            raise UserError(f"{num_new} of {num_datasets} datasets are new to the stream: give weights for all")
        return before
    chosen = _whole(weights, num_datasets)
    if chosen == (*before.weights, *[0] * num_new):
        # Not `change`: where a mixture begins is seen in the order, and what was not changed must go on as it was.
        return replace(before, weights=chosen, taken=(*before.taken, *[0] * num_new))
    return before.change(state.consumed, chosen)
