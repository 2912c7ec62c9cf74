"""A stream's cache, and a process of its own that fills it ahead of the steps.

A request takes 4 to 5 ms of processor time, in which it mostly holds the interpreter: where samples are decoded, they
wait for it meanwhile (a sixth of their rate, with images of 400² px). So the processes that read fetch only what is not
there when they need it: before this process runs, or if a store is slower than the training.

Cost: a process of 100 MB per rank, and the fork server's if there are no workers; it comes to work a second or two
after its start.
"""

import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from shards import storage
from shards.storage import retry
from shards.storage.reading import count_traffic
from shards.streaming.cache import BlockCache
from shards.streaming.processes import ProcessLostError, Worker
from shards.streaming.stream import Stream

_REPORT_S = 0.25
_PATIENCE_S = 15.0
_MAX_LOST = 3
"""So many processes are replaced; then something is wrong with this machine."""

Counts = tuple[Counter[str], Counter[str]]
"""What was read from stores, and what was tried again: see `shards.storage.traffic` and `retries`."""


@contextmanager
def cached(
    stream: Stream, folder: Path, limit_bytes: int, *, first_step: int = 0, queued_steps: int = 0
) -> Iterator[None]:
    """Give a stream a cache, which is filled ahead of its steps: `Stream.move_on` says how far these are.

    Args:
        stream: before it is given to workers.
        folder: of the cache, on a local disk.
        limit_bytes: see `BlockCache`.
        first_step: that will be read.
        queued_steps: that are read before they are used, by workers.

    Raises:
        UserError: the folder cannot be written, or its disk is full.
    """
    with BlockCache(stream.datasets, folder, limit_bytes) as cache:
        stream.cache = cache
        try:
            # A daemon may have no processes of its own: what it reads it fetches ahead itself.
            if multiprocessing.current_process().daemon:
                yield
                return
            stream.is_fetched_apart = True
            fetcher = _Fetcher(stream, stream.ahead_steps + queued_steps)
            try:
                fetcher.follow(first_step)
                stream.fetcher = fetcher.follow
                yield
            finally:
                fetcher.stop()
        finally:
            stream.cache, stream.fetcher, stream.is_fetched_apart = None, None, False


class _Fetcher:
    """The process that fetches, as long as it is needed: one that was killed is replaced."""

    def __init__(self, stream: Stream, num_steps: int) -> None:
        self._stream, self._num_lost = stream, 0
        self._work = partial(_fetch, stream, num_steps)
        self._worker: Worker | None = Worker(self._work)

    def follow(self, step: int) -> None:
        """Have fetched what a step and those after it need; and take over what the process has counted."""
        try:
            self._take_counts()
        except ProcessLostError:
            retry.count_retry("lost_process")
            self._replace()
        if self._worker is not None:
            self._worker.ask(step)

    def _take_counts(self) -> None:
        for traffic, retries in self._worker.answers() if self._worker is not None else ():
            count_traffic(**traffic)
            for kind, number in retries.items():
                retry.count_retry(kind, number)

    def _replace(self) -> None:
        self.stop()
        self._num_lost += 1
        try:
            self._worker = Worker(self._work) if self._num_lost <= _MAX_LOST else None
        except (OSError, EOFError):
            self._worker = None
        if self._worker is None:
            self._stream.is_fetched_apart = False
            told = f"the process that fetches ahead was lost {self._num_lost} times: who reads fetches, which is slower"
            print(told, file=sys.stderr, flush=True)

    def stop(self) -> None:
        """End the process."""
        if self._worker is not None:
            self._worker.stop()
            self._worker.join()


def _fetch(stream: Stream, num_steps: int, connection: Connection) -> None:
    """Look ahead from each step that comes, and send what that took."""
    stream.is_fetched_apart = False
    # Who needs the piece waits for this process, and then tries with all patience.
    retry.DEADLINE_S = _PATIENCE_S
    sent = _counts()
    while True:
        if connection.poll(_REPORT_S):
            step = connection.recv()
            # What is past by now need not be fetched.
            while connection.poll():
                step = connection.recv()
            stream.look_ahead(step, num_steps)
        now = _counts()
        if now != sent:
            connection.send((now[0] - sent[0], now[1] - sent[1]))
            sent = now


def _counts() -> Counts:
    return Counter(storage.traffic), Counter(storage.retries)
