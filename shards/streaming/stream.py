"""The exact stream: a rank's samples step by step, each once per epoch, the same for any ranks and workers.

Step k of a stream that begins after `start` samples holds the samples [start + kG, start + (k+1)G) of an endless
sequence; a mixture says which dataset each comes from, the dataset's order which sample it is. Any process can read any
step: nothing is remembered between steps but what makes the next one fast.

Samples on a local disk are read in place. Those in a store are read block by block through a cache, a few steps ahead.
Cost per sample of 50 kB on one core: 2 µs for its place (many steps are located at once), 10 to 15 µs to read it from
the page cache and to check it, 2 to 3 µs to find the image in it.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from shards.dataset import CorruptSampleError, Dataset, Sample, is_whole
from shards.errors import UserError
from shards.images import Pixels, decode_image
from shards.keyed import hash64, permute
from shards.rows import Place
from shards.streaming.cache import BlockCache, Piece
from shards.streaming.mix import Mixture
from shards.streaming.order import Ints, Order, OrderSettings, cut_blocks, cut_for_rank
from shards.tar import BLOCK

Item = TypeVar("Item")
Places = Sequence[Place]
"""Of a sample's bytes: one for each series."""

AHEAD_STEPS = 8
_LOCATED_AT_ONCE, _MAX_LOCATED = 2**12, 2**16  # samples of a rank, of all: so many share what calls of numpy cost
_READ_AT_ONCE, _READ_BYTES = 64, 2**18  # samples, and what they may have: some of the second cache of a core
_FAR_NEIGHBOURS = 32  # rows on either side of a block whose samples are all bad


class Slot(NamedTuple):
    """One sample's place in the stream."""

    number: int
    """In the whole stream, counted from 0."""
    dataset: int
    epoch: int
    """Of its dataset."""
    row: int
    """Of its dataset's samples table."""
    first_row: int
    """Of the piece that the sample is read with, see `Piece`."""
    end_row: int
    end_position: int

    @property
    def piece(self) -> Piece:
        """What the sample is read with."""
        return Piece(self.dataset, self.first_row, self.end_row, self.end_position)


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """One entry of the ledger: a bad sample, and the one that was taken instead."""

    number: int
    """In the whole stream."""
    dataset: str
    epoch: int
    row: int
    name: str
    """Where the bad sample lies."""
    fault: str
    replaced_by: int
    """Row of the same dataset."""


@dataclass(frozen=True, kw_only=True)
class Step(Generic[Item]):
    """What a rank gets at a step."""

    slots: Sequence[Slot]
    items: Sequence[Item]
    """One for each slot."""
    replaced: Sequence[Replacement]


def make_order(dataset: Dataset, settings: OrderSettings) -> Order:
    """Return the order of a dataset's samples; a block holds up to `settings.block_bytes` of them, and one more."""
    units_P = dataset.rows.units_P
    if dataset.parts:
        units_P = sum((rows.units_P for rows in dataset.parts), start=units_P.astype(np.uint32))
    blocks = cut_blocks(dataset.rows.run_starts_R, units_P, max(1, settings.block_bytes // BLOCK))
    return Order(blocks, dataset.num_samples, settings, dataset.digest)


class Stream:
    """The steps of one rank; may be pickled to workers, each of which reads some of them."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        settings: OrderSettings,
        *,
        global_batch: int,
        mixture: Mixture | None = None,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        cache: BlockCache | None = None,
        ahead_steps: int = AHEAD_STEPS,
        on_bad: str = "stop",
    ) -> None:
        """Make the orders.

        Args:
            datasets: at least one.
            settings: of every dataset's order.
            global_batch: G, samples of a step over all ranks.
            mixture: of the datasets; by default they take turns.
            start: samples of the stream before step 0.
            rank: in [0, world).
            world: number of ranks; divides G.
            cache: for datasets in a store; without one every sample is a request.
            ahead_steps: how far the cache is filled ahead.
            on_bad: stop, or replace: by a neighbour, in the same block if one there is good.

        Raises:
            UserError: the number of ranks does not divide the global batch.
        """
        if global_batch % world:
            raise UserError(f"global batch {global_batch} is not divisible by {world} ranks: choose a multiple")
        assert on_bad in ("stop", "replace"), on_bad
        self.datasets = tuple(datasets)
        self.orders = tuple(make_order(dataset, settings) for dataset in datasets)
        self.mixture = mixture or Mixture(weights=tuple(1 for _ in datasets))
        self.global_batch, self.start, self.rank, self.world = global_batch, start, rank, world
        self.cache, self.ahead_steps, self._on_bad = cache, ahead_steps, on_bad
        self.is_fetched_apart = False
        """Another process looks ahead, see `shards.streaming.ahead`: here nothing is fetched before its step."""
        self.fetcher: Callable[[int], None] | None = None
        """Is told which step comes next, by `move_on`."""
        self._located: OrderedDict[int, Ints] = OrderedDict()
        self._asked = -1
        # Not more than an epoch, so that no later ones have to be made.
        num_samples = sum(order.num_samples for order in self.orders)
        self._steps_at_once = max(1, min(_LOCATED_AT_ONCE * world, _MAX_LOCATED, num_samples) // global_batch)
        self._needed: dict[int, list[Piece]] = {}
        self._refreshed: set[Piece] = set()

    def __getstate__(self) -> dict[str, Any]:
        # Who reads steps elsewhere does not say how far they are.
        return {**self.__dict__, "fetcher": None}

    def slots(self, step: int) -> list[Slot]:
        """Return this rank's places of a step, in order: the ranks' lists one after another are the global batch."""
        if step not in self._located:
            self._locate(step, step - self._asked)
        self._asked = step
        return list(map(Slot._make, self._located[step].T.tolist()))

    def cut(self, steps: Sequence[int], rank: int, world: int) -> tuple[Ints, Ints, Ints]:
        """Return what a rank takes of some steps: numbers in the stream, datasets, positions in these; [S, G / world].

        Cuts for more ranks are equal parts of those for fewer, one after another.
        """
        firsts = self.start + np.asarray(steps) * self.global_batch
        numbers = (firsts[:, None] + np.arange(self.global_batch)).ravel()
        datasets, positions = self.mixture.split(numbers)
        lanes = np.empty(len(numbers), np.float64)
        for dataset, order in enumerate(self.orders):
            mine = datasets == dataset
            lanes[mine] = order.lanes(positions[mine]) / order.settings.lanes
        shape = len(firsts), self.global_batch
        chosen = cut_for_rank(np.arange(len(numbers)).reshape(shape), lanes.reshape(shape), rank, world)
        return numbers[chosen], datasets[chosen], positions[chosen]

    def _locate(self, step: int, stride: int) -> None:
        """Find out what `slots` tells of a step, and of those that are asked for next if it goes on by this stride."""
        steps = range(step, step + self._steps_at_once, stride) if stride > 0 else (step,)
        numbers, datasets, positions = self.cut(steps, self.rank, self.world)
        columns = np.empty((7, *numbers.shape), np.int64)
        columns[:2] = numbers, datasets
        for dataset, order in enumerate(self.orders):
            mine = datasets == dataset
            columns[2:, mine] = order.locate(positions[mine])
        self._located |= zip(steps, columns.swapaxes(0, 1), strict=True)
        while len(self._located) > self.ahead_steps + self._steps_at_once:
            self._located.popitem(last=False)

    def consumed(self, step: int) -> tuple[int, ...]:
        """Return how many samples of each dataset come before a step."""
        return self.mixture.counts(self.start + step * self.global_batch)

    def move_on(self, step: int) -> None:
        """Let go of what lies in the cache for the steps before this one: all of them have been used, on this rank."""
        if self.cache is not None:
            self.cache.evict(self.consumed(step))
        if self.fetcher is not None:
            self.fetcher(step)

    def read(self, step: int, decode: Callable[[Sample, int], Item]) -> Step[Item]:
        """Read and decode this rank's samples of a step.

        Args:
            step: from 0; in any order, but rising ones are read ahead, here or by `shards.streaming.ahead`.
            decode: makes of a sample, and the number of its dataset, what is wanted; a ValueError says that it is bad.

        Raises:
            UserError: a shard is missing, has changed, or may not be read.
            CorruptSampleError: a sample is bad, and is not to be replaced, or so are all around it.
            StorageError: the store kept failing, or the local disk does.
        """
        slots = self.slots(step)
        if self.cache is not None:
            self.look_ahead(step, self.ahead_steps)
        items, replaced = [], []
        for some in _groups(self._placed(slots)):
            # Read, then decoded: code and tables stay in the processor's caches, and so do the samples.
            samples = self._samples(some)
            for (slot, _), sample in zip(some, samples, strict=True):
                try:
                    items.append(self._decoded(slot, slot.row, sample, decode))
                except CorruptSampleError as fault:
                    if self._on_bad == "stop":
                        raise
                    row, item = self._neighbour(slot, decode)
                    items.append(item)
                    replaced.append(self._replacement(slot, fault, row))
        return Step(slots=slots, items=items, replaced=replaced)

    def read_images(
        self, step: int, allocate: Callable[[tuple[int, ...], np.dtype[Any]], Pixels] = np.empty
    ) -> tuple[Pixels, Step[Sample]]:
        """Read this rank's images of a step, each decoded to its place in one array [samples, height, width, channels].

        Args:
            step: see `read`.
            allocate: makes the array from its shape and type, as in memory that processes share.

        Returns:
            The array, and the samples with all else that they have.

        Raises:
            UserError: images differ in shape or type: `read` takes a decoder that makes them alike.
            Otherwise as `read`.
        """
        made: list[Pixels] = []
        odd: list[str] = []
        place = 0

        def decode(sample: Sample, dataset: int) -> Sample:
            nonlocal place
            wanted = made[0][place] if made else None
            pixels = decode_image(sample.ext, sample.image, out=wanted)
            if wanted is None:
                made.append(allocate((self.global_batch // self.world, *pixels.shape), pixels.dtype))
                made[0][0] = pixels
            elif pixels is not wanted:
                odd.append(f"{self.datasets[dataset].url}: key {sample.key} is an image of {_form(pixels)}")
            place += 1  # only now: if it was bad, another one takes its place
            return sample

        read = self.read(step, decode)
        if odd:  # not before: to the step they are no bad samples, which might be replaced
            raise UserError(
                f"{odd[0]}, the first of step {step} has {_form(made[0][0])}: Stream.read takes a decoder of your own"
            )
        return made[0], read

    def _placed(self, slots: list[Slot]) -> Iterator[tuple[Slot, Places]]:
        """Return slots with the places of their samples."""
        found = [
            iter(dataset.places_of([slot.row for slot in slots if slot.dataset == number]))
            for number, dataset in enumerate(self.datasets)
        ]
        return ((slot, next(found[slot.dataset])) for slot in slots)

    def _samples(self, placed: Sequence[tuple[Slot, Places]]) -> list[Sample | CorruptSampleError]:
        """Read samples; in place of a bad one stands what is wrong with it."""
        samples: list[Sample | CorruptSampleError] = []
        for slot, places in placed:
            try:
                samples.append(self._sample(slot, slot.row, places))
            except CorruptSampleError as fault:
                samples.append(fault)
        return samples

    def look_ahead(self, step: int, num_steps: int) -> None:
        """Have fetched what a step and so many after it need from a store, by first use."""
        assert self.cache is not None
        steps = range(step, step + 1 + num_steps)
        self._needed = {each: self._needed[each] if each in self._needed else self._pieces(each) for each in steps}
        pieces = list(chain.from_iterable(self._needed.values()))
        self.cache.prefetch(self._needed[step] if self.is_fetched_apart else pieces, kept=pieces)

    def _pieces(self, step: int) -> list[Piece]:
        """Return the pieces in a store that a step needs."""
        return [piece for piece in dict.fromkeys(slot.piece for slot in self.slots(step)) if not self._is_local(piece)]

    def _is_local(self, piece: Piece) -> bool:
        dataset = self.datasets[piece.dataset]
        return dataset.is_local(dataset.places(piece.first_row))

    def _sample(self, slot: Slot, row: int, places: Places) -> Sample:
        """Read the sample of a slot, or of another row in its place."""
        return self.datasets[slot.dataset].parse(row, self._bytes(slot, row, places))

    def _decoded(
        self, slot: Slot, row: int, sample: Sample | CorruptSampleError, decode: Callable[[Sample, int], Item]
    ) -> Item:
        if isinstance(sample, CorruptSampleError):
            raise sample
        try:
            return decode(sample, slot.dataset)
        except ValueError as error:
            name = self.datasets[slot.dataset].name(row)
            raise CorruptSampleError(f"{name}, key {sample.key}: {error}") from error

    def _bytes(self, slot: Slot, row: int, places: Places) -> list[bytes]:
        """Return the bytes of a slot's sample, or of another row instead, one piece for each series, checked."""
        dataset = self.datasets[slot.dataset]
        if self.cache is None or dataset.is_local(places) or not slot.first_row <= row < slot.end_row:
            return dataset.read_places(row, places)
        piece = slot.piece
        data = self.cache.read(piece, row)
        if all(map(is_whole, data, places)):
            return data
        if piece not in self._refreshed:
            # Flipped on the way, perhaps. Once per process: a block of bad samples would be fetched for each of them.
            self._refreshed.add(piece)
            data = self.cache.read(piece, row, refresh=True)
            if all(map(is_whole, data, places)):
                return data
        # By itself, so that no other process's luck with the piece decides what is bad.
        return dataset.read_places(row, places)

    def _neighbour(self, slot: Slot, decode: Callable[[Sample, int], Item]) -> tuple[int, Item]:
        """Return a good sample near a bad one, the same in any process."""
        rows = list(self._neighbours(slot))
        for row in rows:
            try:
                sample = self._sample(slot, row, self.datasets[slot.dataset].places(row))
                return row, self._decoded(slot, row, sample, decode)
            except CorruptSampleError:
                continue
        name = self.datasets[slot.dataset].name(slot.row)
        raise CorruptSampleError(f"{name} is bad, and so are all {len(rows)} around it")

    def _neighbours(self, slot: Slot) -> Iterator[int]:
        """Yield rows of the same piece in an order that the bad one's key gives, then the nearest around it."""
        first, end = slot.first_row, slot.end_row
        key = hash64("replace", self.orders[slot.dataset].settings.seed, slot.epoch, slot.row)
        rows = first + permute(np.arange(end - first), end - first, key)
        around = chain.from_iterable((end + step, first - 1 - step) for step in range(_FAR_NEIGHBOURS))
        num_samples = self.datasets[slot.dataset].num_samples
        return (row for row in chain(rows.tolist(), around) if row != slot.row and 0 <= row < num_samples)

    def _replacement(self, slot: Slot, fault: CorruptSampleError, row: int) -> Replacement:
        dataset = self.datasets[slot.dataset]
        return Replacement(
            number=slot.number,
            dataset=dataset.url,
            epoch=slot.epoch,
            row=slot.row,
            name=dataset.name(slot.row),
            fault=str(fault),
            replaced_by=row,
        )


def _form(pixels: Pixels) -> str:
    return f"{' × '.join(map(str, pixels.shape))} {pixels.dtype}"


def _groups(placed: Iterable[tuple[Slot, Places]]) -> Iterator[list[tuple[Slot, Places]]]:
    """Yield samples in order, as many at a time as stay in a processor's cache; a large one by itself."""
    group: list[tuple[Slot, Places]] = []
    num_bytes = 0
    for slot, places in placed:
        for place in places:
            num_bytes += place.size
        group.append((slot, places))
        if num_bytes >= _READ_BYTES or len(group) == _READ_AT_ONCE:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group
