"""What the ranks of a stream will hold on the disk and ask of the store, known from the order alone.

Between the ends of epochs every rank takes the samples of its own lanes, so what its cache holds follows from the
windows of these lanes. In the batches where an epoch ends lanes are shared out otherwise: there it is looked at sample
by sample. Counted are windows (all of a window's pieces are taken to be needed as long as any is), from now to the end
of each dataset's epoch and as far into the next as is read ahead; later epochs differ little. Of several datasets the
largest sums are added, though they may not fall together.

Cost: 3 µs per block, a few ms per end of an epoch (many, where an epoch is shorter than a step); memory 200 bytes per
block, nothing per sample.

Sizes: L lanes, R ranks, G samples of a global batch, U uses.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, gcd
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.dataset import Dataset
from shards.rows import Rows
from shards.storage.reading import GAP_BYTES
from shards.streaming.order import Ints, Pieces
from shards.streaming.room import CacheNeed, is_remote
from shards.streaming.stream import Stream

LaneRanks = NDArray[np.bool_]

_LOOKED_AT_STEPS = 256


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What all ranks together read of one epoch of a dataset."""

    amplification: float
    """Bytes read / bytes of the epoch: above 1 where several ranks need the same piece."""
    num_requests: int
    """GETs, if the shards lie in a store."""


class _Uses(NamedTuple):
    """Who needs what from when to when: int64 arrays [U], one element for each window (or piece) and rank."""

    datasets: Ints
    ranks: Ints
    first_steps: Ints
    last_steps: Ints
    num_bytes: Ints


class Footprint:
    """Of a stream that goes on from its step 0; what was found out is kept for further questions."""

    def __init__(self, stream: Stream) -> None:
        """Take the stream of any rank."""
        self._stream = stream
        self._used = [dataset for dataset, weight in enumerate(stream.mixture.weights) if weight]
        self._lane_ranks: dict[int, dict[int, LaneRanks]] = {}
        self._sized = lru_cache(maxsize=2)(self._make_sized)

    def cache_need(self, *, node_ranks: int | None = None, queued_steps: int = 0) -> CacheNeed:
        """Return what the ranks' caches hold.

        Args:
            node_ranks: ranks that share a disk; all by default.
            queued_steps: steps that workers have read and training has not used yet, besides those looked ahead.
        """
        world = self._stream.world
        node_ranks = min(node_ranks or world, world)
        held_steps = self._stream.ahead_steps + queued_steps
        ranks, nodes = np.zeros(world, np.int64), np.zeros(-(-world // node_ranks), np.int64)
        for dataset in self._remote():
            uses = self._uses(dataset, world, held_steps)
            ranks += _peaks(uses, uses.ranks, world, held_steps)
            nodes += _peaks(uses, uses.ranks // node_ranks, len(nodes), held_steps)
        first = self._first_bytes(world)
        return CacheNeed(rank_bytes=int(ranks.max()), node_bytes=int(nodes.max()), first_bytes=first)

    def traffic(self, dataset: int, world: int) -> Traffic:
        """Return what so many ranks read of the epoch of a dataset that is under way, its end included.

        Upper bounds where ranks share a lane: all of them are taken to need all of its pieces.
        """
        pieces, sizes, num_reads = self._sized(dataset, self._epoch(dataset))
        num_ranks = self._shares(world)[dataset].sum(1)[pieces.lanes]
        others = self._at_ends(dataset, world, 1)
        mine = others.datasets == dataset
        read_bytes = (sizes * num_ranks).sum() + others.num_bytes[mine].sum()
        num_requests = (num_reads * num_ranks).sum() + mine.sum()
        return Traffic(amplification=float(read_bytes / sizes.sum()), num_requests=int(num_requests))

    def _shares(self, world: int) -> dict[int, LaneRanks]:
        """Return for each dataset which ranks draw from which lanes between the ends of epochs, [L + 1, R]."""
        if world not in self._lane_ranks:
            self._lane_ranks[world] = shares = {dataset: self._expected(dataset, world) for dataset in self._used}
            for step in self._looked_at() if world > 1 else []:
                drawn = _Drawn(self._stream, step, world)
                if not drawn.at_end:
                    for dataset, lane_ranks_LR in shares.items():
                        mine = drawn.datasets == dataset
                        lane_ranks_LR[drawn.lanes[mine], drawn.ranks[mine]] = True
        return self._lane_ranks[world]

    def _remote(self) -> list[int]:
        return [dataset for dataset in self._used if is_remote(self._stream.datasets[dataset])]

    def _epoch(self, dataset: int) -> int:
        return self._stream.consumed(0)[dataset] // self._stream.orders[dataset].num_samples

    def _expected(self, dataset: int, world: int) -> LaneRanks:
        """Return the shares as they are where all numbers fit; what is left over at an epoch's end is nobody's."""
        lanes = self._stream.orders[dataset].settings.lanes
        lane_ranks_LR = np.zeros((lanes + 1, world), bool)
        lane_ranks_LR[np.arange(lanes), np.arange(lanes) * world // lanes] = True
        return lane_ranks_LR

    def _looked_at(self) -> list[int]:
        """Return steps that show how ranks share the lanes: of one dataset all kinds there are, of several some."""
        if len(self._used) > 1:
            return list(range(_LOOKED_AT_STEPS))
        dataset = self._used[0]
        lanes = self._stream.orders[dataset].settings.lanes
        begins = (self._epoch(dataset) + np.arange(2)) * self._stream.orders[dataset].num_samples
        period = np.arange(lanes // gcd(lanes, self._stream.global_batch))
        steps: list[int] = np.unique(self._steps(dataset, begins)[:, None] + 1 + period).tolist()
        return steps

    def _make_sized(self, dataset: int, epoch: int) -> tuple[Pieces, Ints, Ints]:
        """Return the pieces of an epoch, the bytes and the requests of each."""
        pieces, data = self._stream.orders[dataset].pieces(epoch), self._stream.datasets[dataset]
        by_row = np.argsort(pieces.first_rows)
        num_reads = np.zeros(len(by_row), np.int64)
        for rows in _series(data):
            num_reads[by_row] += rows.num_reads(pieces.first_rows[by_row], GAP_BYTES)
        return pieces, piece_bytes(data, pieces.first_rows, pieces.end_rows), num_reads

    def _steps(self, dataset: int, positions: Ints) -> Ints:
        """Return the steps of samples of a dataset; −1 of those that came before."""
        taken = self._stream.consumed(0)[dataset]
        numbers = self._stream.mixture.numbers(dataset, np.maximum(positions, taken))
        return np.where(positions < taken, -1, (numbers - self._stream.start) // self._stream.global_batch)

    def _uses(self, dataset: int, world: int, held_steps: int) -> _Uses:
        """Return what is needed of a store in this epoch, and in all of the next ones that are read ahead of it."""
        stream, first = self._stream, self._epoch(dataset)
        num_samples, weights = stream.orders[dataset].num_samples, stream.mixture.weights
        drawn = (held_steps + 2) * stream.global_batch * weights[dataset] / sum(weights)
        num_epochs = 1 + ceil(drawn / num_samples)
        epochs = [self._of_epoch(dataset, epoch, world) for epoch in range(first, first + num_epochs)]
        uses = _joined([*epochs, self._at_ends(dataset, world, num_epochs)])
        end = self._steps(dataset, np.array([(first + num_epochs) * num_samples]))
        # Not what has ended, nor what comes with the next epoch, of which the rest is not known here.
        keep = (uses.last_steps >= 0) & (uses.first_steps <= end) & np.isin(uses.datasets, self._remote())
        return _Uses(*(column[keep] for column in uses))

    def _of_epoch(self, dataset: int, epoch: int, world: int) -> _Uses:
        """Return the uses by the ranks whose lanes they are."""
        pieces, sizes, _ = self._sized(dataset, epoch)
        windows = np.flatnonzero(np.diff(pieces.first_positions, prepend=-1))
        use, ranks = np.nonzero(self._shares(world)[dataset][pieces.lanes[windows]])
        first_steps = self._steps(dataset, pieces.first_positions[windows])[use]
        last_steps = self._steps(dataset, pieces.end_positions[windows] - 1)[use]
        return _Uses(np.full_like(use, dataset), ranks, first_steps, last_steps, np.add.reduceat(sizes, windows)[use])

    def _at_ends(self, dataset: int, world: int, num_epochs: int) -> _Uses:
        """Return the uses, of any dataset, by other ranks in the steps where epochs of this dataset end."""
        order = self._stream.orders[dataset]
        num_samples, lanes = order.num_samples, order.settings.lanes
        last_places = np.arange(min(num_samples // lanes * lanes, num_samples - 1), num_samples + 1)
        ends = (self._epoch(dataset) + np.arange(num_epochs))[:, None] * num_samples + last_places
        steps = np.unique(self._steps(dataset, ends))
        parts = []
        for step in steps[steps >= 0].tolist():
            drawn = _Drawn(self._stream, step, world)
            parts += [self._touched(drawn, each, ~ranks_LR) for each, ranks_LR in self._shares(world).items()]
        return self._of_pieces(parts)

    def _touched(self, drawn: "_Drawn", dataset: int, wanted_LR: LaneRanks) -> Ints:
        """Return dataset, rank, first and end row, end position, step of the samples in these lanes for these ranks."""
        mine = np.flatnonzero(drawn.datasets == dataset)
        mine = mine[wanted_LR[drawn.lanes[mine], drawn.ranks[mine]]]
        found = self._stream.orders[dataset].locate(drawn.positions[mine])
        constants = np.full((2, len(mine)), [[dataset], [drawn.step]])
        rows = (constants[0], drawn.ranks[mine], found.first_rows, found.end_rows, found.end_positions, constants[1])
        return np.stack(rows, 1)

    def _of_pieces(self, touched: list[Ints]) -> _Uses:
        """Return the uses of single pieces: from the step on that touched them first."""
        keys = np.concatenate([np.empty((0, 6), np.int64), *touched])
        _, index = np.unique(keys[:, :5], axis=0, return_index=True)
        datasets, ranks, first_rows, end_rows, end_positions, steps = keys[index].T
        uses = _Uses(datasets, ranks, steps, np.empty_like(steps), np.empty_like(steps))
        for dataset in np.unique(datasets).tolist():
            mine = datasets == dataset
            uses.last_steps[mine] = self._steps(dataset, end_positions[mine] - 1)
            uses.num_bytes[mine] = piece_bytes(self._stream.datasets[dataset], first_rows[mine], end_rows[mine])
        return uses

    def _first_bytes(self, world: int) -> int:
        """Return the most that any rank fetches for its first step."""
        drawn, shares = _Drawn(self._stream, 0, world), self._shares(world)
        fetched = self._of_pieces([self._touched(drawn, each, shares[each] | True) for each in self._remote()])
        return int(np.bincount(fetched.ranks, fetched.num_bytes, 1).max())


class _Drawn:
    """The samples of a step: int64 arrays [G]."""

    def __init__(self, stream: Stream, step: int, world: int) -> None:
        self.step = step
        _, (self.datasets,), (self.positions,) = stream.cut([step], 0, 1)
        self.ranks = np.arange(len(self.positions)) // (len(self.positions) // world)
        self.lanes = np.empty_like(self.positions)
        self.at_end = False
        """Some epoch's."""
        for dataset, order in enumerate(stream.orders):
            mine = self.datasets == dataset
            self.lanes[mine] = order.lanes(self.positions[mine])
            left_over = (self.lanes[mine] == order.settings.lanes).any()
            self.at_end |= bool(left_over or len(np.unique(self.positions[mine] // order.num_samples)) > 1)


def piece_bytes(dataset: Dataset, first_rows: Ints, end_rows: Ints) -> Ints:
    """Return the size of runs of rows in a cache, int64 [I]."""
    sizes = np.zeros(len(first_rows), np.int64)
    for rows in _series(dataset):
        sizes += rows.num_bytes(first_rows, end_rows)
    return sizes


def _series(dataset: Dataset) -> list[Rows]:
    return [dataset.rows, *dataset.parts]


def _joined(parts: list[_Uses]) -> _Uses:
    none = _Uses(*[np.empty(0, np.int64)] * 5)
    return _Uses(*(np.concatenate(columns) for columns in zip(none, *parts, strict=True)))


def _peaks(uses: _Uses, owners_U: Ints, num_owners: int, held_steps: int) -> Ints:
    """Return the most that each owner holds at a time, bytes, int64 [num_owners]."""
    by_owner = np.argsort(owners_U, kind="stable")
    bounds = np.searchsorted(owners_U[by_owner], np.arange(num_owners + 1))
    peaks = np.zeros(num_owners, np.int64)
    for owner in range(num_owners):
        mine = by_owner[bounds[owner] : bounds[owner + 1]]
        sizes = uses.num_bytes[mine]
        # It goes when the step after its last one is done. At equal times what goes makes room for what comes.
        times = np.concatenate([uses.last_steps[mine] + 2, uses.first_steps[mine] - held_steps])
        changes = np.concatenate([-sizes, sizes])[np.argsort(times, kind="stable")]
        peaks[owner] = np.cumsum(changes).max(initial=0)
    return peaks
