"""A stream's cache, and a process of its own that fills it ahead of the steps.

A request takes 4 to 5 ms of processor time, in which it mostly holds the interpreter: where samples are decoded, they
wait for it meanwhile (a sixth of their rate, with images of 400² px). So the processes that read fetch only what is not
there when they need it: before this process runs, or if a store is slower than the training.

Cost: a process of 100 MB per rank; it comes to work a second or two after its start.
"""

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
        stream.cache, stream.is_fetched_apart = cache, True
        fetcher = _Fetcher(stream, stream.ahead_steps + queued_steps)
        try:
            fetcher.follow(first_step)
            stream.fetcher = fetcher.follow
            yield
        finally:
            stream.cache = stream.fetcher = None
            fetcher.stop()


class _Fetcher:
    """The process that fetches, as long as it is needed: one that was killed is replaced."""

    def __init__(self, stream: Stream, num_steps: int) -> None:
        self._work = partial(_fetch, stream, num_steps)
        self._worker = Worker(self._work)

    def follow(self, step: int) -> None:
        """Have fetched what a step and those after it need; and take over what the process has counted."""
        try:
            for traffic, retries in self._worker.answers():
                count_traffic(**traffic)
                for kind, number in retries.items():
                    retry.count_retry(kind, number)
        except ProcessLostError:
            retry.count_retry("lost_process")
            self._worker.stop()
            self._worker = Worker(self._work)
        self._worker.ask(step)

    def stop(self) -> None:
        """End the process."""
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
            stream.look_ahead(connection.recv(), num_steps)
        now = _counts()
        if now != sent:
            connection.send((now[0] - sent[0], now[1] - sent[1]))
            sent = now


def _counts() -> Counts:
    return Counter(storage.traffic), Counter(storage.retries)
