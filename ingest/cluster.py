"""The rim to Ray: a cluster for the time of a run, and a bounded window of retried tasks on it.

Ray gets a path and a number per task and gives back a few hundred bytes; pixels never pass its object store. Each
attempt notes where it runs on the cluster's notice board (`ingest.watch`): two calls of half a millisecond.
"""

import os
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from shards.errors import UserError

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
import ray

from ingest.watch import Board, end_worker, watched

_CORES_INTERVAL_S = 10.0
_LONGEST_PAUSE_S = 30.0
_LOOK_INTERVAL_S = 5.0  # at the notice board
_MARGIN_S = 30.0  # that a worker's own watchdog, or Ray's word on a dead node, has before the driver acts

Result = TypeVar("Result")


@contextmanager
def cluster(address: str, workers: int) -> Iterator[None]:
    """Join the Ray cluster at an address, or start a local one of so many workers (0: one per core).

    Without an address a process that is connected to a cluster already stays with that one, and connected afterwards.
    """
    if ray.is_initialized() and not address:
        yield
        return
    if address:
        _require_answer(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error")
        except (ConnectionError, ValueError) as error:
            hint = "" if os.environ.get("RAY_AUTH_MODE") else " (does it want a token? then set RAY_AUTH_MODE=token)"
            raise UserError(f"no Ray cluster answers at {address}: {error}{hint}") from error
    else:
        ray.init(
            address="local",  # also where RAY_ADDRESS names a cluster
            num_cpus=workers or os.cpu_count() or 1,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            object_store_memory=128 * 2**20,
        )
    try:
        yield
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Knock at HOST:PORT first: Ray itself would wait for minutes and then abort the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise UserError(f"no Ray cluster answers at {address}: {error}") from error


@dataclass(frozen=True)
class Failure:
    """A task that the run goes on without."""

    place: int
    """Of the call in the list of calls."""
    message: str
    lost: bool = False
    """The worker died or was late: the message cannot say what it worked on."""


@dataclass
class _Task:
    place: int
    tried: int = 0
    due_s: float = 0.0
    """Not before this moment."""
    seen_s: float | None = None
    """When its worker's notice was found; None: not yet."""

    @property
    def ticket(self) -> str:
        """The name of this attempt on the notice board."""
        return f"{self.place}-{self.tried}"


class _LostError(OSError):
    """A worker died, or a task was stopped at its deadline."""


def run_tasks(
    task: Callable[..., Result],
    calls: Sequence[tuple[Any, ...]],
    done: Callable[[int, Result], None],
    *,
    attempts: int,
    deadline_s: float,
    fatal: tuple[type[Exception], ...] = (UserError,),
    tick: Callable[[], None] = lambda: None,
) -> list[Failure]:
    """Run task(*call) on the cluster for each call; return the failures, empty if all went well.

    A dead worker, an OSError and a passed deadline are tried again, later and later, up to `attempts` in all; what
    fails for good does not stop the others. Attempts are counted here, since Ray retries some deaths for ever. A worker
    ends itself at the deadline; one that is frozen is ended by the driver half a minute later. So long after a node was
    counted as dead its tasks are tried again elsewhere.

    Args:
        task: a function that may run twice without harm.
        calls: its arguments, small.
        done: called with (place, result) in the order in which tasks finish.
        attempts: at least 1.
        deadline_s: of one attempt, from when it really begins.
        fatal: errors that stop the whole work and are raised as they are.
        tick: called about once a second, whether anything was done or not.
    """
    return _Runner(task, calls, done, attempts, deadline_s, fatal, tick).run()


class _Runner:
    def __init__(
        self,
        task: Callable[..., Result],
        calls: Sequence[tuple[Any, ...]],
        done: Callable[[int, Result], None],
        attempts: int,
        deadline_s: float,
        fatal: tuple[type[Exception], ...],
        tick: Callable[[], None],
    ) -> None:
        self._board = Board()
        self._remote = ray.remote(num_cpus=1, max_retries=0)(watched(task, self._board, deadline_s))
        self._tick = tick
        self._calls, self._done, self._fatal = calls, done, fatal
        self._attempts, self._deadline_s = attempts, deadline_s
        self._waiting = iter(range(len(calls)))
        self._again: list[_Task] = []
        self._running: dict[Any, _Task] = {}
        self._failures: list[Failure] = []
        self._cores, self._cores_asked_s = 1, -_CORES_INTERVAL_S
        self._looked_s = time.monotonic()
        self._dead_since_s: dict[str, float] = {}

    def run(self) -> list[Failure]:
        try:
            while self._submit() or self._again:
                # Tasks that wait for their next attempt are looked at every second.
                ready, _ = ray.wait(list(self._running), timeout=1.0) if self._running else ([], [])
                if not self._running:
                    time.sleep(0.2)
                for reference in ready:
                    self._finish(reference, self._running.pop(reference))
                self._look()
                self._tick()
        except BaseException:
            for reference in self._running:
                ray.cancel(reference, force=True)
            raise
        finally:
            self._board.clear()
        return sorted(self._failures, key=lambda failure: failure.place)

    def _submit(self) -> bool:
        """Keep each core busy and one task queued for it; return whether anything runs."""
        now_s = time.monotonic()
        if now_s - self._cores_asked_s >= _CORES_INTERVAL_S:
            self._cores, self._cores_asked_s = max(1, int(ray.cluster_resources().get("CPU", 1))), now_s
        while len(self._running) < 2 * self._cores and (task := self._next(now_s)):
            task.tried += 1
            task.seen_s = None
            self._running[self._remote.remote(task.ticket, *self._calls[task.place])] = task
        return bool(self._running)

    def _next(self, now_s: float) -> _Task | None:
        for task in self._again:
            if task.due_s <= now_s:
                self._again.remove(task)
                return task
        place = next(self._waiting, None)
        return None if place is None else _Task(place)

    def _finish(self, reference: Any, task: _Task) -> None:
        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            self._failed(task, error.cause if isinstance(error.cause, Exception) else error)
        except ray.exceptions.RayError as error:  # a worker that died, ran out of memory, or was stopped
            self._failed(task, self._late() if self._board.is_late(task.ticket) else _dead(error))
        else:
            self._done(task.place, result)

    def _late(self) -> _LostError:
        return _LostError(f"not done after {self._deadline_s:g} s: raise --group_deadline_s if it needs longer")

    def _look(self) -> None:
        """Give up on tasks of which nothing will be heard: see `_end_frozen` and `_leave_lost_nodes`."""
        now_s = time.monotonic()
        if now_s - self._looked_s < min(_LOOK_INTERVAL_S, self._deadline_s):
            return
        self._looked_s = now_s
        begun = self._board.tickets()
        for task in self._running.values():
            if task.seen_s is None and task.ticket in begun:
                task.seen_s = now_s
        self._end_frozen(now_s)
        self._leave_lost_nodes(now_s)

    def _end_frozen(self, now_s: float) -> None:
        """End tasks whose workers do not even end themselves: stopped, or in a read that never comes back."""
        for reference, task in list(self._running.items()):
            if task.seen_s is not None and now_s - task.seen_s > self._deadline_s + _MARGIN_S:
                del self._running[reference]
                end_worker(self._board, task.ticket)
                self._failed(task, self._late())

    def _leave_lost_nodes(self, now_s: float) -> None:
        """Give up on tasks of nodes that the head has counted as dead for a while.

        Ray tells of the tasks of a node whose processes end; of one that is frozen or cut off it says nothing more.
        """
        dead = {str(node["NodeID"]) for node in ray.nodes() if not node["Alive"]}
        for node in dead:
            self._dead_since_s.setdefault(node, now_s)
        lost = {node for node in dead if now_s - self._dead_since_s[node] > _MARGIN_S}
        if not lost:
            return
        for reference, task in list(self._running.items()):
            place = self._board.place(task.ticket) if task.seen_s is not None else None
            if place is not None and place[0] in lost:
                del self._running[reference]
                self._failed(task, _LostError("its machine does not answer any more"))

    def _failed(self, task: _Task, error: Exception) -> None:
        if isinstance(error, self._fatal):
            raise error
        if isinstance(error, OSError) and task.tried < self._attempts:
            task.due_s = time.monotonic() + min(_LONGEST_PAUSE_S, 2 ** (task.tried - 1)) * (0.5 + random.random())
            self._again.append(task)
            return
        told = " ".join(str(error).split()) or type(error).__name__
        tried = f" (tried {task.tried} times)" if task.tried > 1 else ""
        self._failures.append(Failure(task.place, f"{told[-500:]}{tried}", lost=isinstance(error, _LostError)))


def _dead(error: Exception) -> _LostError:
    return _LostError(f"the worker died ({type(error).__name__}): if memory is short, set fewer --workers")
