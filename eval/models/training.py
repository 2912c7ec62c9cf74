"""What training cost, from a run's `metrics.jsonl`: a row of figures every so many steps.

The file is a contract: a row has `step` and, where they were measured, `samples_per_s` (over all ranks) and
`memory_bytes` (the most that a rank had so far). Costs one reading of the file, some 10 µs and 24 bytes a row.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards import storage
from shards.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a run had cost by some step; None where nothing was measured."""

    samples_per_s: float | None
    """Median over the rows, over all ranks."""
    memory_bytes: int | None
    """The most that a rank had: of the GPU's memory, on a CPU of the process's."""


@dataclass(frozen=True, kw_only=True)
class TrainingLog:
    """The rows of a run's metrics, NaN where a row lacks a figure."""

    steps: NDArray[np.int64]
    """[R]."""
    samples_per_s: NDArray[np.float64]
    """[R]."""
    memory_bytes: NDArray[np.float64]
    """[R]."""

    def until(self, step: int | None) -> Training | None:
        """Return what the run had cost by a step, None: in all; None if no row is as early."""
        told = slice(None) if step is None else self.steps <= step
        if not self.steps[told].size:
            return None
        rates, memory = (values[told][~np.isnan(values[told])] for values in (self.samples_per_s, self.memory_bytes))
        return Training(
            samples_per_s=float(np.median(rates)) if rates.size else None,
            memory_bytes=int(memory.max()) if memory.size else None,
        )


def read_training_log(run: str) -> TrainingLog | None:
    """Read a run's metrics; None where it has none.

    Raises:
        UserError: the file is damaged.
    """
    url = storage.join(run, "metrics.jsonl")
    if not storage.exists(url):
        return None
    try:
        rows = [json.loads(line) for line in whole_lines(storage.read_bytes(url))]
        return TrainingLog(
            steps=np.array([row["step"] for row in rows], np.int64),
            samples_per_s=_column(rows, "samples_per_s"),
            memory_bytes=_column(rows, "memory_bytes"),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{url} is damaged ({type(error).__name__}: {error}): restore it, or move it away and do without its costs"
        ) from error


def _column(rows: list[dict[str, Any]], name: str) -> NDArray[np.float64]:
    return np.array([row.get(name, np.nan) for row in rows], np.float64)


def whole_lines(content: bytes) -> list[bytes]:
    """Return the lines of a file that is being written; the last one counts when its end is there."""
    return content[: content.rfind(b"\n") + 1].splitlines()
