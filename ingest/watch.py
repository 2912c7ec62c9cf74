"""Deadlines of tasks: each worker has a watchdog, and a note on the cluster tells the driver where the task runs.

The clock runs where the work is: the driver cannot tell a task that works from one that waits for a core. A worker
that is frozen (stopped, or in a read of a dead mount that holds its process) cannot end itself, so the driver finds
its process by the note and ends it. The notes lie in the key-value store of Ray's head: two small calls per task, and
one per look of the driver.
"""

import json
import os
import signal
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.experimental import internal_kv
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_NAMESPACE = "ingest"
_LATE_EXIT = 70  # of a worker that its watchdog ended

Result = TypeVar("Result")


class Board:
    """Notes of one run's attempts: where each runs, and whether its watchdog found it late."""

    def __init__(self) -> None:
        self._prefix = f"{uuid.uuid4().hex}/"

    def begin(self, ticket: str) -> None:
        """Note that this process works on an attempt."""
        self._put(ticket, {"node": ray.get_runtime_context().get_node_id(), "pid": os.getpid()})

    def mark_late(self, ticket: str) -> None:
        """Note that an attempt is over its deadline."""
        self._put(f"{ticket}/late", {})

    def remove(self, ticket: str) -> None:
        """Take the note of a finished attempt away."""
        internal_kv._internal_kv_del(self._prefix + ticket, namespace=_NAMESPACE)

    def is_late(self, ticket: str) -> bool:
        """Say whether an attempt's watchdog found it over its deadline."""
        return internal_kv._internal_kv_get(f"{self._prefix}{ticket}/late", namespace=_NAMESPACE) is not None

    def tickets(self) -> set[str]:
        """Return the attempts that are being worked on, or were when their workers died."""
        keys = internal_kv._internal_kv_list(self._prefix, namespace=_NAMESPACE)
        return {key.decode().removeprefix(self._prefix) for key in keys}

    def place(self, ticket: str) -> tuple[str, int] | None:
        """Return the node's id and the process's where an attempt runs; None if it has ended."""
        found = internal_kv._internal_kv_get(self._prefix + ticket, namespace=_NAMESPACE)
        if found is None:
            return None
        note = json.loads(found)
        return str(note["node"]), int(note["pid"])

    def clear(self) -> None:
        """Take all notes away."""
        internal_kv._internal_kv_del(self._prefix, del_by_prefix=True, namespace=_NAMESPACE)

    def _put(self, name: str, note: dict[str, Any]) -> None:
        internal_kv._internal_kv_put(self._prefix + name, json.dumps(note), namespace=_NAMESPACE)


def watched(task: Callable[..., Result], board: Board, deadline_s: float) -> Callable[..., Result]:
    """Return the task, called with a ticket first, with a watchdog that ends its worker at the deadline."""

    def end(ticket: str) -> None:
        # The note first, so that the driver knows a late worker from a dead one; a head that is gone must not save it.
        try:
            board.mark_late(ticket)
        finally:
            os._exit(_LATE_EXIT)

    def watched(ticket: str, *call: Any) -> Result:
        watchdog = threading.Timer(deadline_s, end, [ticket])
        watchdog.daemon = True
        watchdog.start()
        try:
            board.begin(ticket)
            return task(*call)
        finally:
            watchdog.cancel()
            board.remove(ticket)

    # What Ray calls the process; not functools.wraps, as the signature is another one.
    watched.__name__, watched.__qualname__ = task.__name__, task.__qualname__
    return watched


def end_worker(board: Board, ticket: str) -> None:
    """Have the process of an attempt killed by its node, if it is still there; returns at once."""
    place = board.place(ticket)
    if place is None:
        return
    node, pid = place
    # Ray's own way would ask the frozen process itself.
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    ray.remote(num_cpus=0, max_retries=0)(_kill).options(scheduling_strategy=there).remote(pid)


def _kill(pid: int) -> None:
    """Kill a worker of Ray's; another process that got its number meanwhile is left alone."""
    try:
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
            os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        return
