"""What a run tells: metrics as JSON lines and as TensorBoard events, and the list of bad samples.

A resumed run never shows what belongs to steps that it makes again. Cost: a start reads these files, and the first
`flush` writes them, with three times their size in memory; later ones write what is new (see `pretrain.runs.growing`).
No row stays in memory but the last ones. Appending takes some 50 µs; `flush` may be called in another thread.
"""

import io
import json
import re
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

from pretrain.runs.checkpoint import Position
from pretrain.runs.growing import GrowingFile, whole_lines
from shards import storage
from shards.streaming.stream import Replacement

STOPPED = "stopped_"
"""Begins the key that a row has whose run was stopped by a fault; the fault's kind follows."""
_FLUSH_SHARE = 0.01
"""Writing may take this share of the time."""
_ROWS_KEPT = 16
_EVENTS = re.compile(r"events\.out\.tfevents\.\d{10}\.pera")

Row = dict[str, float | int]


class Metrics:
    """Append rows and bad samples; `flush` makes them visible."""

    def __init__(self, run: str, position: Position) -> None:
        """Keep what was told up to a position, drop what came after, and rows that only say why a start ended."""
        told, bad = _lines(_rows_url(run)), _lines(bad_samples_url(run))
        rows = [line for line in told if _stays(json.loads(line), position)]
        kept = [line for line in bad if json.loads(line)["number"] < position.samples]
        self._last = deque(map(json.loads, rows[-_ROWS_KEPT:]), maxlen=_ROWS_KEPT)
        self._num_bad = len(kept)
        self._rows = GrowingFile(_rows_url(run), _joined(rows), replaces=bool(told))
        self._bad = GrowingFile(bad_samples_url(run), _joined(kept), replaces=len(kept) < len(bad))
        # TensorBoard merges all event files of a folder; a name per start keeps them apart.
        folder, events_name = storage.join(run, "tensorboard"), f"events.out.tfevents.{position.step:010d}.pera"
        # START tells TensorBoard to forget what an earlier start wrote for later steps.
        start = _event(position.step + 1, session_log=SessionLog(status=SessionLog.START))
        self._events = GrowingFile(storage.join(folder, events_name), start, replaces=True)
        # It reads them by name, and would take those of later starts for what comes after this one's.
        self._outdated = [storage.join(folder, name) for name in _listed(folder) if name > events_name]
        self._next_flush_s = 0.0

    def last_rows(self, number: int) -> list[Row]:
        """Return the newest rows, oldest first, at most 16."""
        assert number <= _ROWS_KEPT, number
        return list(self._last)[-number:]

    @property
    def num_bad(self) -> int:
        """Count of bad samples in the run so far, each as often as it came up."""
        return self._num_bad

    @property
    def is_due(self) -> bool:
        """Whether it is time to flush, so that writing takes a hundredth of it."""
        return time.monotonic() >= self._next_flush_s

    def append(self, row: Row) -> None:
        """Add a row; it holds "step" and figures."""
        self._last.append(row)
        self._rows.append(_text([row]))
        values = [Summary.Value(tag=name, simple_value=value) for name, value in row.items() if name != "step"]
        self._events.append(_event(int(row["step"]), summary=Summary(value=values)))

    def add_bad(self, replaced: Sequence[Replacement]) -> None:
        """Add bad samples to the list."""
        self._num_bad += len(replaced)
        if replaced:
            self._bad.append(_text([asdict(each) for each in replaced]))

    def flush(self) -> None:
        """Write what was told until now; in one thread at a time.

        Raises:
            OSError: the disk is full, or not writable.
            StorageError: the store kept failing.
        """
        begin_s = time.monotonic()
        for url in self._outdated:
            storage.remove(url)
        self._outdated = []
        for file in (self._rows, self._events, self._bad):
            file.flush()
        end_s = time.monotonic()
        self._next_flush_s = end_s + (end_s - begin_s) / _FLUSH_SHARE


def stop_kinds(row: Row) -> list[str]:
    """Return which faults stopped a run, as a row tells; none in the rows of steps."""
    return [name.removeprefix(STOPPED) for name in row if name.startswith(STOPPED)]


def bad_samples_url(run: str) -> str:
    """Return where a run lists its bad samples; there is no such file where there are none."""
    return storage.join(run, "bad_samples.jsonl")


def read_rows(run: str) -> list[Row]:
    """Read all rows of a run's metrics; none where there are none yet."""
    return _read_lines(_rows_url(run))


def read_bad_samples(run: str) -> list[dict[str, Any]]:
    """Read a run's list of bad samples: the fields of `shards.streaming.stream.Replacement`."""
    return _read_lines(bad_samples_url(run))


def _rows_url(run: str) -> str:
    return storage.join(run, "metrics.jsonl")


def _stays(row: Row, position: Position) -> bool:
    return row["step"] <= position.step and not stop_kinds(row)


def _read_lines(url: str) -> list[Any]:
    return list(map(json.loads, _lines(url)))


def _listed(folder: str) -> list[str]:
    """Return the names of this module's event files in a folder."""
    names = [info.path for info in storage.list_files(folder)] if storage.exists(folder) else []
    return [name for name in names if _EVENTS.fullmatch(name)]


def _lines(url: str) -> list[bytes]:
    return whole_lines(storage.read_bytes(url)) if storage.exists(url) else []


def _joined(lines: Sequence[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _text(entries: Sequence[Any]) -> bytes:
    return _joined([json.dumps(entry).encode() for entry in entries])


def _event(step: int, **content: Any) -> bytes:
    """Return a record of an event file: each stands by itself."""
    file = io.BytesIO()
    RecordWriter(file).write(Event(wall_time=time.time(), step=step, **content).SerializeToString())
    return file.getvalue()
