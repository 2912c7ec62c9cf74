"""The rim to Ray: a cluster for the time of a run, and a bounded window of retried tasks on it.

Ray gets a path and a number per task and gives back a few hundred bytes; pixels never pass its object store.
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from shards.errors import UserError

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
import ray

_QUEUED_PER_WORKER = 3
_ATTEMPTS = 3

Result = TypeVar("Result")


@contextmanager
def cluster(address: str, workers: int) -> Iterator[None]:
    """Join the Ray cluster at an address, or start a local one of so many workers (0: one per core)."""
    if address:
        _require_answer(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error")
        except (ConnectionError, ValueError) as error:
            raise UserError(f"no Ray cluster answers at {address}: {error}") from error
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


def run_tasks(
    task: Callable[..., Result], calls: list[tuple[Any, ...]], progress: Callable[[int, Result], None]
) -> list[Result]:
    """Run task(*call) on the cluster for each call; return the results in the order of the calls.

    A dead worker or an I/O error is retried; any other error stops the work and is raised as it is.
    """
    remote = ray.remote(num_cpus=1, max_retries=_ATTEMPTS, retry_exceptions=[OSError])(task)
    window = _QUEUED_PER_WORKER * max(1, int(ray.cluster_resources().get("CPU", 1)))
    results: dict[int, Result] = {}
    running: dict[Any, int] = {}
    waiting = iter(enumerate(calls))
    while len(results) < len(calls):
        while len(running) < window and (following := next(waiting, None)):
            place, call = following
            running[remote.remote(*call)] = place
        done, _ = ray.wait(list(running), timeout=1.0)
        for reference in done:
            place = running.pop(reference)
            try:
                results[place] = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            progress(len(results), results[place])
    return [results[place] for place in range(len(calls))]
