"""What a stream comes to, before it runs: steps, blocks, requests, space on the disk, how well it is shuffled.

Cost: `shards.streaming.footprint`, and one pass over the column of the scenes (50 million samples: a few seconds).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from shards.columns import iter_columns
from shards.dataset import Dataset
from shards.keyed import generator
from shards.streaming.footprint import Footprint
from shards.streaming.order import Ints
from shards.streaming.room import STEPS_PER_WORKER, CacheNeed, bytes_text, is_remote, mean_bytes
from shards.streaming.stream import Stream

WORLDS = (1, 2, 4, 8, 16)
"""Numbers of ranks for which the read amplification is told, as far as they divide the global batch."""
_MAX_BATCHES, _MAX_LOOKED_AT = 32, 2**16


@dataclass(frozen=True, kw_only=True)
class DatasetPlan:
    """What one dataset is in the stream."""

    name: str
    weight: int
    num_samples: int
    num_bytes: int
    """Of the samples in their shards."""
    num_shards: int
    num_blocks: int
    num_windows: int
    steps_per_epoch: float
    """Infinite for weight 0."""
    num_requests: int
    """GETs of an epoch, all ranks together; 0 for local shards."""
    num_checks: int
    """HEADs of a run, at most: each process that fetches looks once at each shard whether it has changed. Those that
    read may have to, besides the one ahead of them."""


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Distinct scenes (blocks, of a dataset without scenes) in a global batch, the mean over some batches."""

    unit: str
    num_distinct: float
    num_uniform: float
    """The same if all samples were shuffled at once."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a stream comes to."""

    stream: Stream
    datasets: Sequence[DatasetPlan]
    node_ranks: int
    need: CacheNeed
    amplification: Mapping[int, float]
    """By number of ranks."""
    mixing: Mixing

    def lines(self) -> list[str]:
        """Return the table for people."""
        return [*_dataset_lines(self), "", *_stream_lines(self)]


def make_plan(stream: Stream, *, node_ranks: int | None = None, num_workers: int = 0) -> Plan:
    """Work out what a stream comes to.

    Args:
        stream: of any rank.
        node_ranks: ranks that share a disk; all by default.
        num_workers: processes that read for a rank, or 0: the rank itself reads.
    """
    footprint, queued_steps = Footprint(stream), STEPS_PER_WORKER * num_workers
    worlds = [world for world in sorted({*WORLDS, stream.world}) if stream.global_batch % world == 0]
    return Plan(
        stream=stream,
        datasets=[_dataset_plan(stream, footprint, number, num_workers) for number in range(len(stream.datasets))],
        node_ranks=min(node_ranks or stream.world, stream.world),
        need=footprint.cache_need(node_ranks=node_ranks, queued_steps=queued_steps),
        amplification={world: _amplification(stream, footprint, world) for world in worlds},
        mixing=measure_mixing(stream),
    )


def _dataset_plan(stream: Stream, footprint: Footprint, number: int, num_workers: int) -> DatasetPlan:
    dataset, order, weights = stream.datasets[number], stream.orders[number], stream.mixture.weights
    epoch = stream.consumed(0)[number] // order.num_samples
    drawn = stream.global_batch * weights[number] / sum(weights)
    num_remote = sum(not shard.local for shard in dataset.shards) if weights[number] else 0
    return DatasetPlan(
        name=f"{dataset.url} version {dataset.version.version}",
        weight=weights[number],
        num_samples=order.num_samples,
        num_bytes=round(mean_bytes(dataset) * order.num_samples),
        num_shards=len(dataset.shards),
        num_blocks=order.num_blocks,
        num_windows=int(np.count_nonzero(np.diff(order.pieces(epoch).first_positions, prepend=-1))),
        steps_per_epoch=order.num_samples / drawn if drawn else float("inf"),
        num_requests=footprint.traffic(number, stream.world).num_requests if num_remote else 0,
        num_checks=num_remote * stream.world * (1 + max(num_workers, 1)),
    )


def _amplification(stream: Stream, footprint: Footprint, world: int) -> float:
    """Return the read amplification of all datasets together, by the bytes that the stream takes of each."""
    read = used = 0.0
    for number, (dataset, weight) in enumerate(zip(stream.datasets, stream.mixture.weights, strict=True)):
        if weight:
            taken = weight * mean_bytes(dataset)
            used += taken
            read += taken * footprint.traffic(number, world).amplification
    return read / used


def measure_mixing(stream: Stream) -> Mixing:
    """Count distinct scenes in batches spread over the epoch that is the first to end.

    Raises:
        UserError: a samples table is missing or damaged.
    """
    steps = _spread_steps(stream)
    _, datasets_SG, positions_SG = stream.cut(steps, 0, 1)
    here, uniform, units = np.zeros(len(steps)), np.zeros(len(steps)), set()
    for number, order in enumerate(stream.orders):
        if not stream.mixture.weights[number]:
            continue
        rows = [
            order.locate(positions[datasets == number]).rows
            for datasets, positions in zip(datasets_SG, positions_SG, strict=True)
        ]
        others = [_uniform(number, batch, order.num_samples, len(each)) for batch, each in enumerate(rows)]
        codes, unit = _codes(stream, number, np.concatenate([*rows, *others]))
        units.add(unit)
        parts = np.split(codes, np.cumsum([len(each) for each in (*rows, *others)])[:-1])
        distinct = [len(set(part.tolist())) for part in parts]
        here += distinct[: len(steps)]
        uniform += distinct[len(steps) :]
    unit = units.pop() if len(units) == 1 else "scenes or blocks"
    return Mixing(unit=unit, num_distinct=float(here.mean()), num_uniform=float(uniform.mean()))


def _spread_steps(stream: Stream) -> list[int]:
    num_batches = min(max(_MAX_LOOKED_AT // stream.global_batch, 1), _MAX_BATCHES)
    ends = [
        order.num_samples * sum(stream.mixture.weights) // (weight * stream.global_batch)
        for order, weight in zip(stream.orders, stream.mixture.weights, strict=True)
        if weight
    ]
    return [(2 * batch + 1) * min(ends) // (2 * num_batches) for batch in range(num_batches)]


def _uniform(number: int, batch: int, num_samples: int, count: int) -> Ints:
    rows: Ints = generator("uniform batch", number, batch).choice(num_samples, min(count, num_samples), replace=False)
    return rows


def _codes(stream: Stream, number: int, rows: Ints) -> tuple[Ints, str]:
    """Return a number for each row, [I], equal for rows of one scene; of one block where no row has a scene."""
    wanted, place = np.unique(rows, return_inverse=True)
    scenes = _scenes(stream.datasets[number], wanted)
    if scenes.null_count == len(scenes):
        return stream.orders[number].blocks(rows), "blocks"
    codes: Ints = scenes.dictionary_encode("encode").indices.to_numpy().astype(np.int64)
    return codes[place], "scenes"


def _scenes(dataset: Dataset, rows: Ints) -> pa.Array:
    """Return the scenes of rows, which ascend."""
    found, first = [pa.array([], pa.string())], 0
    for table in iter_columns(dataset.url, dataset.version, "samples", ["scene"]):
        low, high = np.searchsorted(rows, [first, first + table.num_rows])
        chosen = table["scene"].take(pa.array(rows[low:high] - first)).cast(pa.string())
        found.extend(chosen.chunks)
        first += table.num_rows
    return pa.concat_arrays(found)


def _dataset_lines(plan: Plan) -> list[str]:
    settings = plan.stream.orders[0].settings
    rows = [("", [each.name for each in plan.datasets])]
    if len(plan.datasets) > 1:
        rows.append(("weight", [f"{each.weight:,}" for each in plan.datasets]))
    rows += [
        ("samples", [f"{each.num_samples:,}" for each in plan.datasets]),
        ("bytes", [bytes_text(each.num_bytes) for each in plan.datasets]),
        ("shards", [f"{each.num_shards:,}" for each in plan.datasets]),
        (f"blocks of {settings.block_bytes / 2**20:g} MiB", [f"{each.num_blocks:,}" for each in plan.datasets]),
        (f"windows of {settings.window} blocks", [f"{each.num_windows:,}" for each in plan.datasets]),
        ("steps per epoch", [f"{each.steps_per_epoch:,.1f}" for each in plan.datasets]),
    ]
    if any(each.num_requests for each in plan.datasets):
        rows.append(("requests (GET) per epoch", [f"{each.num_requests:,}" for each in plan.datasets]))
        rows.append(("checks (HEAD) at most, once", [f"{each.num_checks:,}" for each in plan.datasets]))
    widths = [max(map(len, column)) for column in zip(*(values for _, values in rows), strict=True)]
    return [_line(title, "  ".join(map(str.ljust, values, widths))) for title, values in rows]


def _stream_lines(plan: Plan) -> list[str]:
    stream = plan.stream
    amplified = ", ".join(f"{world}: {factor:.2f}" for world, factor in plan.amplification.items())
    mixing = plan.mixing
    lines = [
        _line("samples of a step", f"{stream.global_batch}, from {stream.orders[0].settings.lanes} lanes"),
        _line(
            f"distinct {mixing.unit} per step",
            f"{mixing.num_distinct:.1f} ({mixing.num_uniform:.1f} if all samples were shuffled at once)",
        ),
        _line("read amplification by ranks", amplified),
    ]
    if not any(map(is_remote, stream.datasets)):
        return [*lines, _line("cache", "none: all shards are on a local disk and are read in place")]
    return [*lines, *_cache_lines(plan)]


def _cache_lines(plan: Plan) -> list[str]:
    stream, need = plan.stream, plan.need
    total = sum(each.weight for each in plan.datasets)
    requests = sum(each.weight * each.num_requests / each.num_samples for each in plan.datasets) / total
    return [
        _line("requests per 1,000 samples", f"{1000 * requests:.1f}"),
        _line("read ahead", f"{stream.ahead_steps} steps"),
        _line("before the first step", f"{bytes_text(need.first_bytes)} for a rank"),
        _line("cache of a rank", bytes_text(need.rank_bytes)),
        _line(f"caches of a node, {plan.node_ranks} ranks", bytes_text(need.node_bytes)),
    ]


def _line(title: str, value: str) -> str:
    return f"{title:<30}{value}".rstrip()
