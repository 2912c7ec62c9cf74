"""What the ranks of a stream will hold on the disk and ask of the store, known from the order alone.

Between the ends of epochs every rank takes the samples of its own lanes, so what its cache holds follows from the
windows of these lanes. In the batches where an epoch ends lanes are shared out otherwise: there it is looked at sample
by sample. Counted are windows (all of a window's pieces are taken to be needed as long as any is), from now to the end
of each dataset's epoch and as far into the next as is read ahead; later epochs differ little. Who opens a stream looks
at some windows of each lane alone, see `opening_need`. Of several datasets the largest sums are added, though they may
not fall together.

Cost: 2 µs per block that is looked at, a few ms per end of an epoch (many, where an epoch is shorter than a step);
memory 200 bytes per block, nothing per sample. `traffic` in addition: 1 µs per stretch of rows, see `shards.rows`.

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
from shards.streaming.order import Ints
from shards.streaming.requests import PieceTraffic, piece_traffic
from shards.streaming.room import CacheNeed, is_remote
from shards.streaming.stream import Stream

LaneRanks = NDArray[np.bool_]

WINDOWS_AHEAD = 16
"""Of each lane, that `opening_need` looks at."""
_LOOKED_AT_STEPS = 256


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What all ranks together read of one epoch of a dataset."""

    amplification: float
    """Bytes read / bytes of the epoch: above 1 where several ranks need the same piece, or gaps are read in a store."""
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

    def __init__(self, stream: Stream, windows_ahead: int | None = None) -> None:
        """Take the stream of any rank.

        Args:
            stream: of any rank.
            windows_ahead: of each lane, that `cache_need` looks at; by default all to the end of the epoch.
        """
        self._stream, self._windows_ahead = stream, windows_ahead
        self._used = [dataset for dataset, weight in enumerate(stream.mixture.weights) if weight]
        self._remote = [dataset for dataset in self._used if is_remote(stream.datasets[dataset])]
        self._lane_ranks: dict[int, dict[int, LaneRanks]] = {}
        self._traffic = lru_cache(maxsize=None)(self._make_traffic)

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
        for dataset in self._remote:
            uses = self._uses(dataset, world, held_steps)
            ranks += _peaks(uses, uses.ranks, world, held_steps)
            nodes += _peaks(uses, uses.ranks // node_ranks, len(nodes), held_steps)
        first = self._first_bytes(world)
        return CacheNeed(rank_bytes=int(ranks.max()), node_bytes=int(nodes.max()), first_bytes=first)

    def traffic(self, dataset: int, world: int) -> Traffic:
        """Return what so many ranks read of the epoch of a dataset that is under way, its end included.

        Upper bounds where ranks share a lane: all of them are taken to need all of its pieces.
        """
        lanes, sizes, asked = self._traffic(dataset, self._epoch(dataset))
        num_ranks = self._shares(world)[dataset].sum(1)[lanes]
        other_bytes, other_requests = self._taken_at_ends(dataset, world)
        read_bytes = (asked.num_bytes * num_ranks).sum() + other_bytes
        num_requests = (asked.num_requests * num_ranks).sum() + other_requests
        return Traffic(amplification=float(read_bytes / sizes.sum()), num_requests=int(num_requests))

    def _make_traffic(self, dataset: int, epoch: int) -> tuple[Ints, Ints, PieceTraffic]:
        """Return lane, bytes and traffic of each piece of an epoch, by its rows."""
        pieces, data = self._stream.orders[dataset].pieces(epoch), self._stream.datasets[dataset]
        by_row = np.argsort(pieces.first_rows)
        first_rows, end_rows = pieces.first_rows[by_row], pieces.end_rows[by_row]
        sizes = piece_bytes(data, first_rows, end_rows)
        if dataset not in self._remote:
            # In place, sample by sample: no gap is read.
            return pieces.lanes[by_row], sizes, PieceTraffic(sizes, np.zeros_like(sizes))
        return pieces.lanes[by_row], sizes, piece_traffic(data, first_rows, end_rows)

    def _taken_at_ends(self, dataset: int, world: int) -> tuple[int, int]:
        """Return bytes and requests of other ranks than the lanes' own where the epoch ends."""
        touched, data = self._touched_at_ends(dataset, world, 1), self._stream.datasets[dataset]
        # Where an epoch is shorter than a step, other epochs begin and end in the same one.
        epochs = (touched[:, 4] - 1) // self._stream.orders[dataset].num_samples
        mine = (touched[:, 0] == dataset) & (epochs == self._epoch(dataset))
        by_rank = np.unique(touched[mine, :5], axis=0)
        if dataset not in self._remote:
            return int(piece_bytes(data, by_rank[:, 2], by_rank[:, 3]).sum()), 0
        runs, counts = np.unique(by_rank[:, 2:4], axis=0, return_counts=True)
        taken = piece_traffic(data, runs[:, 0], runs[:, 1])
        return int((taken.num_bytes * counts).sum()), int((taken.num_requests * counts).sum())

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

    def _steps(self, dataset: int, positions: Ints) -> Ints:
        """Return the steps of samples of a dataset; −1 of those that came before."""
        taken = self._stream.consumed(0)[dataset]
        numbers = self._stream.mixture.numbers(dataset, np.maximum(positions, taken))
        return np.where(positions < taken, -1, (numbers - self._stream.start) // self._stream.global_batch)

    def _uses(self, dataset: int, world: int, held_steps: int) -> _Uses:
        """Return what is needed of a store from now to where is looked."""
        num_samples, first = self._stream.orders[dataset].num_samples, self._epoch(dataset)
        end_position = self._end_position(dataset, held_steps)
        epochs = [
            self._of_epoch(dataset, each, end_position, world) for each in range(first, -(-end_position // num_samples))
        ]
        uses = _joined([*epochs, self._at_ends(dataset, world, end_position // num_samples - first)])
        end = self._steps(dataset, np.array([end_position]))
        # Not what has ended, nor what comes later, of which the rest is not known here.
        keep = (uses.last_steps >= 0) & (uses.first_steps <= end) & np.isin(uses.datasets, self._remote)
        return _Uses(*(column[keep] for column in uses))

    def _end_position(self, dataset: int, held_steps: int) -> int:
        """Return the position up to which is looked: the epoch's end, or less, and what is read ahead of it."""
        stream, order = self._stream, self._stream.orders[dataset]
        weights, taken = stream.mixture.weights, stream.consumed(0)[dataset]
        ahead = ceil((held_steps + 2) * stream.global_batch * weights[dataset] / sum(weights)) + 1
        end = (self._epoch(dataset) + 1) * order.num_samples
        if self._windows_ahead is not None:
            rows = self._windows_ahead * order.settings.window * -(-order.num_samples // order.num_blocks)
            end = min(end, taken + rows * order.settings.lanes)
        return end + ahead

    def _of_epoch(self, dataset: int, epoch: int, end_position: int, world: int) -> _Uses:
        """Return the uses, up to a position, by the ranks whose lanes they are."""
        order, begin = self._stream.orders[dataset], epoch * self._stream.orders[dataset].num_samples
        first_place = max(0, self._stream.consumed(0)[dataset] - begin)
        pieces = order.pieces(epoch, first_place, min(end_position - begin, order.num_samples))
        sizes = piece_bytes(self._stream.datasets[dataset], pieces.first_rows, pieces.end_rows)
        windows = np.flatnonzero(np.diff(pieces.first_positions, prepend=-1))
        use, ranks = np.nonzero(self._shares(world)[dataset][pieces.lanes[windows]])
        first_steps = self._steps(dataset, pieces.first_positions[windows])[use]
        last_steps = self._steps(dataset, pieces.end_positions[windows] - 1)[use]
        return _Uses(np.full_like(use, dataset), ranks, first_steps, last_steps, np.add.reduceat(sizes, windows)[use])

    def _at_ends(self, dataset: int, world: int, num_epochs: int) -> _Uses:
        """Return the uses, of any dataset, by other ranks in the steps where epochs of this dataset end."""
        return self._of_pieces(self._touched_at_ends(dataset, world, num_epochs))

    def _touched_at_ends(self, dataset: int, world: int, num_epochs: int) -> Ints:
        """Return what other ranks than the lanes' own touch in these steps, as `_touched`."""
        order = self._stream.orders[dataset]
        num_samples, lanes = order.num_samples, order.settings.lanes
        last_places = np.arange(min(num_samples // lanes * lanes, num_samples - 1), num_samples + 1)
        ends = (self._epoch(dataset) + np.arange(num_epochs))[:, None] * num_samples + last_places
        steps = np.unique(self._steps(dataset, ends.ravel()))
        parts = [np.empty((0, 6), np.int64)]
        for step in steps[steps >= 0].tolist():
            drawn = _Drawn(self._stream, step, world)
            parts += [self._touched(drawn, each, ~ranks_LR) for each, ranks_LR in self._shares(world).items()]
        return np.concatenate(parts)

    def _touched(self, drawn: "_Drawn", dataset: int, wanted_LR: LaneRanks) -> Ints:
        """Return dataset, rank, first and end row, end position, step of the samples in these lanes for these ranks."""
        mine = np.flatnonzero(drawn.datasets == dataset)
        mine = mine[wanted_LR[drawn.lanes[mine], drawn.ranks[mine]]]
        found = self._stream.orders[dataset].locate(drawn.positions[mine])
        constants = np.full((2, len(mine)), [[dataset], [drawn.step]])
        rows = (constants[0], drawn.ranks[mine], found.first_rows, found.end_rows, found.end_positions, constants[1])
        return np.stack(rows, 1)

    def _of_pieces(self, touched: Ints) -> _Uses:
        """Return the uses of single pieces: from the step on that touched them first."""
        _, index = np.unique(touched[:, :5], axis=0, return_index=True)
        datasets, ranks, first_rows, end_rows, end_positions, steps = touched[index].T
        uses = _Uses(datasets, ranks, steps, np.empty_like(steps), np.empty_like(steps))
        for dataset in np.unique(datasets).tolist():
            mine = datasets == dataset
            uses.last_steps[mine] = self._steps(dataset, end_positions[mine] - 1)
            uses.num_bytes[mine] = piece_bytes(self._stream.datasets[dataset], first_rows[mine], end_rows[mine])
        return uses

    def _first_bytes(self, world: int) -> int:
        """Return the most that any rank fetches for its first step."""
        drawn, shares = _Drawn(self._stream, 0, world), self._shares(world)
        touched = [self._touched(drawn, each, shares[each] | True) for each in self._remote]
        fetched = self._of_pieces(np.concatenate([np.empty((0, 6), np.int64), *touched]))
        return int(np.bincount(fetched.ranks, fetched.num_bytes, 1).max())


def opening_need(stream: Stream, *, node_ranks: int, queued_steps: int) -> CacheNeed:
    """Return what a stream that is being opened needs, by the next windows alone: some 10 ms, however long an epoch is.

    Lanes change windows in turn, so that a later peak is hardly higher; where it is, less is read ahead for a while.

    Args:
        stream: of any rank.
        node_ranks: see `Footprint.cache_need`.
        queued_steps: see `Footprint.cache_need`.
    """
    return Footprint(stream, WINDOWS_AHEAD).cache_need(node_ranks=node_ranks, queued_steps=queued_steps)


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
