"""The loader: processes that make the batches of the steps to come, a torch DataLoader.

Batches are those that PerA is trained on (`pretrain.batches.batch`), whole images (`pretrain.batches.images`), or what
else a maker makes.

Batches arrive in order and are the same for any number of processes; with none they are made where they are needed.
An error in a process is raised here as it was there, and whatever ends the training process ends the others too.
Signals that reach all processes, Ctrl-C's and a cluster's SIGTERM, are for the training process alone: it may need
batches until it has saved.

Cost: a second or two before the first batch; in each process the memory of a few batches and of the order of samples,
while tables of places are shared (`shards.rows`). Batches come over in shared memory, see `pretrain.batches.parcels`.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch.utils.data import DataLoader

from pretrain.batches.parcels import Empty, Packer, Parcel, forget
from pretrain.batches.server import STOPS, fork_server
from shards import storage
from shards.dataset import CorruptSampleError
from shards.errors import UserError
from shards.streaming.stream import Replacement, Stream

STEPS_PER_WORKER = 2
"""That a worker has under way or ready: one to deliver, one to make."""
COUNTS = ("gets", "heads", "bytes_fetched", "bytes_used", "retries", "bad_samples")
"""Keys of `Delivery.counts` that metrics always have; beside them retries_KIND for each kind of fault. Requests to
stores alone: their number, looks at whether a shard has changed, bytes of the answers, of them bytes of samples, and
how many were made again."""

_KNOWN_LATER_S = 2.0


class Pinnable(Protocol):
    """A batch."""

    def pin_memory(self) -> Self:
        """Return a copy in memory that can be sent to an accelerator while it computes."""
        ...


BatchT = TypeVar("BatchT", bound=Pinnable)
BatchT_co = TypeVar("BatchT_co", bound=Pinnable, covariant=True)


class Maker(Protocol[BatchT_co]):
    """Makes batches; may be pickled, and so may they."""

    @property
    def stream(self) -> Stream:
        """What they are made of."""
        ...

    def make(self, step: int, empty: Empty) -> tuple[BatchT_co, Sequence[Replacement]]:
        """Return the batch of a step, and which samples of it were replaced.

        Args:
            step: of the stream.
            empty: gives memory for tensors of the batch, where they need not be copied.
        """
        ...


class WorkerKilledError(RuntimeError):
    """A process of the loader is gone without an error of its own."""


@dataclass(frozen=True, kw_only=True)
class Delivery(Generic[BatchT]):
    """A step's batch, and what came up while it was made."""

    batch: BatchT
    replaced: Sequence[Replacement]
    """Bad samples of this step, and what was taken instead."""
    counts: Counter[str]
    """Since the last delivery of the process that made it, and what was fetched ahead for all; see COUNTS."""

    def pin_memory(self) -> "Delivery[BatchT]":
        """See Pinnable; torch calls it."""
        return replace(self, batch=self.batch.pin_memory())


def count_requests() -> Counter[str]:
    """Return what this process has asked of stores so far, see COUNTS."""
    kinds, traffic = Counter(storage.retries), Counter(storage.traffic)
    return Counter(
        gets=traffic["gets"],
        heads=traffic["heads"],
        bytes_fetched=traffic["bytes"],
        bytes_used=traffic["bytes_used"],
        retries=kinds.total(),
        **{f"retries_{kind}": number for kind, number in kinds.items()},
    )


class _Steps(Generic[BatchT]):
    """Map-style dataset whose items are the deliveries of steps; in a worker, parcels with them."""

    def __init__(self, maker: Maker[BatchT]) -> None:
        self._maker = maker
        self._counted = count_requests()
        self._packer: Packer | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A process that is just being started has asked for nothing.
        return {"_maker": self._maker, "_counted": Counter(), "_packer": Packer()}

    def __getitem__(self, step: int) -> Delivery[BatchT] | Parcel | Exception:
        try:
            if self._packer is None:
                return self._make(step, torch.empty)
            self._packer.begin()
            return self._packer.pack(self._make(step, self._packer.empty))
        except (UserError, CorruptSampleError, storage.StorageError) as error:
            # As a value: torch would raise another one, with a traceback for its text. Defects may have theirs.
            return error

    def _make(self, step: int, empty: Empty) -> Delivery[BatchT]:
        batch, replaced = self._maker.make(step, empty)
        return Delivery(batch=batch, replaced=replaced, counts=self._new_counts() + Counter(bad_samples=len(replaced)))

    def _new_counts(self) -> Counter[str]:
        counted, self._counted = self._counted, count_requests()
        return self._counted - counted


def deliver(
    maker: Maker[BatchT], *, num_steps: int, workers: int = 0, pin_memory: bool = False
) -> Generator[Delivery[BatchT], None, None]:
    """Yield the first steps of the maker's stream, in order. Close it to end the workers.

    Args:
        maker: of the batches.
        num_steps: batches to yield.
        workers: processes; 0 makes the batches here.
        pin_memory: for an accelerator.

    Raises:
        UserError: a shard is missing, has changed, or may not be read; or a worker got no shared memory.
        CorruptSampleError: a sample is damaged or does not decode, and was not to be replaced.
        StorageError: the store kept failing.
        WorkerKilledError: a worker was killed.
    """
    others = multiprocessing.active_children()
    loader: DataLoader[Delivery[BatchT] | Parcel | Exception] = DataLoader(
        _Steps(maker),  # type: ignore[arg-type]  # torch wants its own base class, needs only __getitem__
        sampler=range(num_steps),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=fork_server() if workers else None,
        worker_init_fn=_begin_worker if workers else None,
        prefetch_factor=STEPS_PER_WORKER if workers else None,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
    )
    deliveries: Iterator[Delivery[BatchT] | Parcel | Exception] | None = None
    processes: list[BaseProcess] = []
    try:
        # A signal between two processes that begin would leave torch with half an iterator.
        with _stops_deferred():
            deliveries = iter(loader)
            processes += [process for process in multiprocessing.active_children() if process not in others]
        yield from _delivered(deliveries, maker.stream, processes)
    finally:
        # torch ends the workers when nobody holds their iterator; an error on its way may do so for long.
        del deliveries, loader
        for process in processes:
            process.kill()
            process.join()
        forget([process.pid for process in processes])


@contextmanager
def _stops_deferred() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the end of the block.

    Blocking them would not do: another thread takes the signal, and Python handles it in the main one all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # no signal is handled here
        return
    came: list[int] = []
    before = {stop: signal.signal(stop, lambda number, _: came.append(number)) for stop in STOPS}
    try:
        yield
    finally:
        for stop, handler in before.items():
            signal.signal(stop, handler)
        for number in came:
            handler = before[signal.Signals(number)]
            if callable(handler):
                # Not raised again: `pretrain.training.stopping` counts what comes, not what is handled.
                handler(number, None)
            else:
                signal.raise_signal(number)


def _delivered(
    deliveries: Iterator[Delivery[BatchT] | Parcel | Exception], stream: Stream, processes: Sequence[BaseProcess]
) -> Generator[Delivery[BatchT], None, None]:
    """Yield deliveries, raise what was sent as a value, and clear away what is behind the stream."""
    step = 0
    while True:
        try:
            delivery = next(deliveries, None)
        except (RuntimeError, OSError, EOFError) as error:
            # Whatever torch makes of a process that is gone. Its end may be known a moment later.
            if not processes or not wait([process.sentinel for process in processes], _KNOWN_LATER_S):
                raise
            raise WorkerKilledError(_killed(len(processes))) from error
        if isinstance(delivery, Parcel):
            delivery = delivery.open()
        if isinstance(delivery, Exception):
            raise delivery
        if delivery is None:
            return
        step += 1
        before = count_requests()
        stream.move_on(step)
        if processes:
            # What the process that fetches ahead has told; without workers it comes with the next delivery.
            delivery = replace(delivery, counts=delivery.counts + (count_requests() - before))
        yield delivery
        del delivery  # its memory is free for the next but one


def _begin_worker(worker: int) -> None:
    """Tie a worker's life to the training process's, and to nothing else."""
    for stop in STOPS:
        signal.signal(stop, signal.SIG_IGN)
    sys.excepthook = _told_unless_left
    threading.Thread(target=_end_with_parent, name=f"end_with_parent_{worker}", daemon=True).start()


def _told_unless_left(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Tell of what nobody caught, unless it is that the training process left while it took a batch.

    multiprocessing's thread that hands over shared memory ends up here; errors of batches go to the training process.
    """
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, traceback)


def _end_with_parent() -> None:
    # torch looks for a change of the parent's id, but a fork server lives as long as the workers that it forked.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _killed(workers: int) -> str:
    return (
        f"one of {workers} processes that load data was killed, as a rule by the system for want of memory (or of "
        "space in /dev/shm): lower loader.workers; the same command goes on from the newest checkpoint"
    )
