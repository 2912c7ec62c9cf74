"""Processes that work for this one: started, asked, stopped.

They come from a server process that is started afresh (forkserver): forking this one would copy the locks that its
threads hold (OpenMP, Arrow, clients of object stores), and they would wait for them forever. Whatever ends the process
that asks, their pipe closes with it and they end too.

Cost: 0.5 s for the server, 20 ms for each process; of large tables all map the same memory, see `shards.rows`.
"""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM)
"""Signals that ask the process with the stream to stop, and that its other processes do not heed."""
_PRELOADED = ("shards.streaming.serve", "shards.streaming.ahead", "shards.cli")
_chosen: list[str] = []
"""What the server imports, as it was first asked for."""


class ProcessLostError(RuntimeError):
    """A process ended without an answer."""


def fork_server(preloaded: Sequence[str] = _PRELOADED) -> ForkServerContext:
    """Return the way to start processes, with their server running or about to.

    Args:
        preloaded: modules that the server imports, so that the processes need not; who is first chooses.
    """
    context = multiprocessing.get_context("forkserver")
    if not _chosen:
        # It frees the signals that are blocked below, in what the server forks.
        _chosen.extend([*preloaded, "shards.streaming.preloaded"])
    context.set_forkserver_preload(_chosen)
    # It unblocks signals when it begins, and the server would have it begin.
    resource_tracker.ensure_running()
    # The server begins with what this thread blocks, and stays so.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


class Worker:
    """A process that does one thing for whoever started it."""

    def __init__(self, work: Callable[[Connection], None]) -> None:
        """Start it.

        Args:
            work: what it does with its end of a pipe; can be pickled. It is over when the other end is closed, which
                is an EOFError or a ConnectionError.
        """
        context = fork_server()
        self._connection, theirs = context.Pipe()
        # The server may have begun before a store's credentials were set.
        given = work, theirs, dict(os.environ)
        self._process: ForkServerProcess = context.Process(target=_run, args=given, daemon=True)
        self._process.start()
        theirs.close()
        # Who forgets it would wait for it at the end: before that join it is killed.
        util.Finalize(self, self._process.kill, exitpriority=0)

    def ask(self, value: object) -> None:
        """Send a value."""
        # Who is gone says so when it is asked for the answer.
        with contextlib.suppress(OSError):
            self._connection.send(value)

    def answer(self) -> Any:
        """Wait for what it sends next.

        Raises:
            ProcessLostError: it is gone.
        """
        try:
            return self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            told = f"a worker process ended by itself, exit code {self._process.exitcode}"
            raise ProcessLostError(f"{told} (−9: killed, most likely because memory ran out)") from error

    def answers(self) -> Iterator[Any]:
        """Yield what it has sent so far; errors as `answer`."""
        while self._connection.poll():
            yield self.answer()

    def stop(self) -> None:
        """End it, whatever it does."""
        self._connection.close()
        # Its number may be another's by now.
        if self._process.is_alive():
            self._process.kill()

    def join(self) -> None:
        """Wait for its end."""
        self._process.join()


def _run(work: Callable[[Connection], None], connection: Connection, environ: Mapping[str, str]) -> None:
    for stop in STOPS:
        signal.signal(stop, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(environ)
    with contextlib.suppress(EOFError, ConnectionError):
        work(connection)
