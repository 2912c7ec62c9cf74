"""Read the steps of a stream by several processes, and get them back in order.

Workers come from a server process that is started afresh (forkserver): they inherit no thread, lock or client of a
store. They take the steps in turn and hold at most `STEPS_PER_WORKER` each. Whatever ends the process that asks, their
pipe closes with it and they end too.

Cost: 0.5 s for the server, 20 ms for each worker; of large tables all map the same memory, see `shards.rows`.
"""

import contextlib
import hashlib
import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any, NamedTuple, TypeVar

from shards.dataset import Sample
from shards.streaming.room import STEPS_PER_WORKER
from shards.streaming.stream import Replacement, Stream

Result = TypeVar("Result")


class WorkerLostError(RuntimeError):
    """A worker process ended without an answer."""


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
        WorkerLostError: a worker was killed.
    """
    if not num_workers:
        yield from map(make, steps)
        return
    coming = iter(steps)
    with _workers(make, num_workers) as workers:
        asked: deque[_Worker] = deque()
        for number, step in zip(range(num_workers * STEPS_PER_WORKER), coming, strict=False):
            workers[number % num_workers].ask(step)
            asked.append(workers[number % num_workers])
        while asked:
            worker = asked.popleft()
            result = worker.answer()
            for step in coming:
                worker.ask(step)
                asked.append(worker)
                break
            yield result


class _Worker:
    def __init__(self, context: Any, make: Callable[[int], Any]) -> None:
        self._connection, theirs = context.Pipe()
        self._process: ForkServerProcess = context.Process(target=_work, args=(make, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, step: int) -> None:
        # Who is gone says so when it is asked for the answer.
        with contextlib.suppress(OSError):
            self._connection.send(step)

    def answer(self) -> Any:
        try:
            result = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            told = f"a worker process ended by itself, exit code {self._process.exitcode}"
            raise WorkerLostError(f"{told} (−9: killed, most likely because memory ran out)") from error
        if isinstance(result, _Failed):
            raise result.error
        return result

    def stop(self) -> None:
        self._connection.close()
        self._process.terminate()

    def join(self) -> None:
        self._process.join()


@contextlib.contextmanager
def _workers(make: Callable[[int], Any], count: int) -> Iterator[list[_Worker]]:
    context = multiprocessing.get_context("forkserver")
    # What workers need is loaded once, in the server: this module, and what the main module imports.
    context.set_forkserver_preload(["shards.streaming.serve", "shards.cli"])
    with _interrupts_ignored():
        forkserver.ensure_running()
    started: list[_Worker] = []
    try:
        started.extend(_Worker(context, make) for _ in range(count))
        yield started
    finally:
        for worker in started:
            worker.stop()
        for worker in started:
            worker.join()


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Start processes that a Ctrl-C does not reach: it is for this process to end them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(make: Callable[[int], Any], connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            connection.send(_attempt(make, connection.recv()))


def _attempt(make: Callable[[int], Any], step: int) -> Any:
    try:
        return make(step)
    except Exception as error:
        error.add_note(traceback.format_exc())
        return _Failed(error)
