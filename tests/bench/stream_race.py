"""Candidates in processes of their own, which take short turns: a machine's speed drifts, neighbours in time share it.

A candidate yields batches without end. A turn is a number of batches from its process, timed there. With worker
processes the queue is full when a turn begins: those batches come first and are not counted, so the workers make in the
time exactly what is counted; after the turn it rests until they have filled the queue again, or the next one's would
not be alone.
"""

import contextlib
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Self

BATCH = 64
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_MMAP_THRESHOLD_": str(2**30)}
PREFETCH = 2
"""Batches of each worker that wait to be taken: torch's own default."""

Rates = Mapping[str, Sequence[float]]
"""Samples/s of each candidate's turns: equal places are neighbours in time."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A candidate: a function that opens it, and what the function takes."""

    name: str
    batches: Callable[..., Iterator[object]]
    arguments: Mapping[str, Any]
    workers: int


class Candidate:
    """An entry in its process; a context manager."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        context = multiprocessing.get_context("spawn")
        self._connection, self._others_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(entry, self._others_end))

    def __enter__(self) -> Self:
        self._process.start()
        self._others_end.close()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # it failed, and has said why
            self._connection.send(0)
        self._process.join(20)
        self._process.kill()

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process.pid
        return self._process.pid

    def turn(self, num_batches: int) -> float:
        """Take batches; return the seconds that they took."""
        self._connection.send(num_batches)
        seconds: float = self._connection.recv()
        if self.entry.workers:
            # The first turn has the start of the processes in it.
            time.sleep(min(2.0, 1.5 * seconds / num_batches * PREFETCH * self.entry.workers + 0.05))
        return seconds


def _serve(entry: Entry, connection: Connection) -> None:
    in_queue = entry.workers * PREFETCH
    batches = entry.batches(**entry.arguments, workers=entry.workers)
    while num_batches := connection.recv():
        begin = time.perf_counter()
        for _ in range(in_queue + num_batches):
            next(batches)
        connection.send(time.perf_counter() - begin)


def race(entries: Sequence[Entry], *, turns: int, batches: Mapping[str, int] | int, heats: int = 1) -> Rates:
    """Let candidates take turns, after one that warms them up; every other round in reverse.

    Args:
        entries: the candidates.
        turns: how often each is timed, in each heat.
        batches: of a turn, for all or for each.
        heats: how often all processes are started anew: two of the same program differ by a tenth for as long as they
            live, by where their memory happens to lie.
    """
    os.environ |= _KEEP_MEMORY  # for processes that are started from here on
    rates: dict[str, list[float]] = {entry.name: [] for entry in entries}
    for _ in range(heats):
        _run_heat(entries, turns, batches, rates)
    return rates


def _run_heat(
    entries: Sequence[Entry], turns: int, batches: Mapping[str, int] | int, rates: Mapping[str, list[float]]
) -> None:
    with ExitStack() as stack:
        candidates = [stack.enter_context(Candidate(entry)) for entry in entries]
        for number in range(turns + 1):
            for candidate in candidates if number % 2 else candidates[::-1]:
                name = candidate.entry.name
                count = batches if isinstance(batches, int) else batches[name]
                seconds = candidate.turn(count)
                if number:
                    rates[name].append(count * BATCH / seconds)


def print_rates(title: str, rates: Rates, *, ours: str, asked: Mapping[str, float]) -> None:
    """Print median rates, and ours as a ratio to each other candidate: the median of the pairs' ratios.

    Args:
        title: of the table.
        rates: of the turns.
        ours: name of the candidate that is compared with the others.
        asked: the least ratio wanted, by name of the other.
    """
    print(f"\n{title}\n{'':26}{'samples/s':>12}{'ours / it':>12}{'middle half':>15}{'asked':>9}{'turns':>7}")
    for name, values in rates.items():
        cells = f"{name:26}{statistics.median(values):>12,.0f}"
        if name != ours:
            ratios = sorted(mine / other for mine, other in zip(rates[ours], values, strict=True))
            middle = f"{ratios[len(ratios) // 4]:.2f}…{ratios[-1 - len(ratios) // 4]:.2f}"
            wanted = f"≥ {asked[name]:g}" if name in asked else "–"
            cells += f"{statistics.median(ratios):>12.2f}{middle:>15}{wanted:>9}{len(values):>7}"
        print(cells, flush=True)


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has taken, seconds; its children that have ended not counted."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def own_cpu_seconds() -> float:
    """Return the processor time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


_TICKS_PER_S = 100
