"""Read the steps of a stream by several processes, and get them back in order.

Workers take the steps in turn and hold at most `STEPS_PER_WORKER` each. Their cost: see `shards.streaming.processes`.
"""

import contextlib
import hashlib
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, TypeVar

from shards.dataset import Sample
from shards.streaming.processes import Worker
from shards.streaming.room import STEPS_PER_WORKER
from shards.streaming.stream import Replacement, Stream

Result = TypeVar("Result")


class Report(NamedTuple):
    """What a rank got at a step."""

    step: int
    keys: Sequence[str]
    digest: str
    """64 hex digits, or empty if not asked for."""
    replaced: Sequence[Replacement]


def report_step(stream: Stream, with_digest: bool, step: int) -> Report:
    """Read a step of a stream and say what came, errors as `Stream.read`.

    The digest is the sha256 of, for each sample in order: a line "NUMBER KEY" (of the stream's samples from 0), then
    for each member a line "EXTENSION LENGTH" and its content.
    """
    read = stream.read(step, _content if with_digest else _key)
    digest = hashlib.sha256()
    for slot, (key, members) in zip(read.slots, read.items, strict=True):
        digest.update(f"{slot.number} {key}\n".encode())
        for extension, content in members.items():
            digest.update(f"{extension} {len(content)}\n".encode())
            digest.update(content)
    keys = [key for key, _ in read.items]
    return Report(step, keys, digest.hexdigest() if with_digest else "", read.replaced)


def _key(sample: Sample, _dataset: int) -> tuple[str, Mapping[str, bytes]]:
    return sample.key, {}


def _content(sample: Sample, _dataset: int) -> tuple[str, Mapping[str, bytes]]:
    return sample.key, sample.members


class _Failed(NamedTuple):
    """What a worker sends instead of a result."""

    error: Exception


def in_turn(make: Callable[[int], Result], steps: Iterable[int], num_workers: int) -> Generator[Result, None, None]:
    """Yield what `make` returns for each step, in order, made by so many worker processes (0: by this one).

    Args:
        make: can be pickled; what it raises is raised here, when its turn comes.
        steps: any number of them; taken when a worker is free.
        num_workers: at least 0.

    Raises:
        ProcessLostError: a worker was killed.
    """
    if not num_workers:
        yield from map(make, steps)
        return
    coming = iter(steps)
    with _workers(make, num_workers) as workers:
        asked: deque[Worker] = deque()
        for number, step in zip(range(num_workers * STEPS_PER_WORKER), coming, strict=False):
            workers[number % num_workers].ask(step)
            asked.append(workers[number % num_workers])
        while asked:
            worker = asked.popleft()
            result = worker.answer()
            if isinstance(result, _Failed):
                raise result.error
            for step in coming:
                worker.ask(step)
                asked.append(worker)
                break
            yield result


@contextlib.contextmanager
def _workers(make: Callable[[int], Any], count: int) -> Iterator[list[Worker]]:
    started: list[Worker] = []
    try:
        started.extend(Worker(partial(_work, make)) for _ in range(count))
        yield started
    finally:
        for worker in started:
            worker.stop()
        for worker in started:
            worker.join()


def _work(make: Callable[[int], Any], connection: Connection) -> None:
    while True:
        connection.send(_attempt(make, connection.recv()))


def _attempt(make: Callable[[int], Any], step: int) -> Any:
    try:
        return make(step)
    except Exception as error:
        error.add_note(traceback.format_exc())
        return _Failed(error)
