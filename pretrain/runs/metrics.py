"""What a run tells: metrics as JSON lines and as TensorBoard events, and the list of bad samples.

All files are kept in memory and written whole, so that they reach a bucket as well as a local folder, and a resumed
run never shows what belongs to steps that it makes again.
"""

import io
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

from pretrain.runs.checkpoint import Position
from shards import storage
from shards.streaming.stream import Replacement

_FLUSH_SHARE = 0.01
"""Writing may take this share of the time."""

Row = dict[str, float | int]


class Metrics:
    """Append rows and bad samples; `flush` makes them visible."""

    def __init__(self, run: str, position: Position) -> None:
        """Keep what was told up to a position, drop what came after."""
        self._run = run
        self._lines = [json.dumps(row) for row in read_rows(run) if row["step"] <= position.step]
        told = read_bad_samples(run)
        self._bad = [json.dumps(entry) for entry in told if entry["number"] < position.samples]
        self._bad_changed = len(self._bad) < len(told)
        # TensorBoard merges all event files of a folder; a name per start keeps them apart.
        self._events_name = f"events.out.tfevents.{position.step:010d}.pera"
        self._events = io.BytesIO()
        self._records = RecordWriter(self._events)
        self._next_flush_s = 0.0
        # START tells TensorBoard to forget what an earlier start wrote for later steps.
        self._write_event(position.step + 1, session_log=SessionLog(status=SessionLog.START))

    def last_rows(self, number: int) -> list[Row]:
        """Return the newest rows, oldest first."""
        return [json.loads(line) for line in self._lines[-number:]]

    @property
    def num_bad(self) -> int:
        """Count of bad samples in the run so far, each as often as it came up."""
        return len(self._bad)

    def append(self, row: Row) -> None:
        """Add a row; it holds "step" and figures. Writes the files now and then."""
        self._lines.append(json.dumps(row))
        values = [Summary.Value(tag=name, simple_value=value) for name, value in row.items() if name != "step"]
        self._write_event(int(row["step"]), summary=Summary(value=values))
        if time.monotonic() >= self._next_flush_s:
            self.flush()

    def add_bad(self, replaced: Sequence[Replacement]) -> None:
        """Add bad samples to the list."""
        self._bad += [json.dumps(asdict(each)) for each in replaced]
        self._bad_changed |= bool(replaced)

    def flush(self) -> None:
        """Write the files."""
        begin_s = time.monotonic()
        storage.write_bytes(_lines_url(self._run), _text(self._lines))
        storage.write_bytes(storage.join(self._run, "tensorboard", self._events_name), self._events.getvalue())
        if self._bad_changed:
            storage.write_bytes(bad_samples_url(self._run), _text(self._bad))
            self._bad_changed = False
        end_s = time.monotonic()
        self._next_flush_s = end_s + (end_s - begin_s) / _FLUSH_SHARE

    def _write_event(self, step: int, **content: Any) -> None:
        self._records.write(Event(wall_time=time.time(), step=step, **content).SerializeToString())


def bad_samples_url(run: str) -> str:
    """Return where a run lists its bad samples; there is no such file where there are none."""
    return storage.join(run, "bad_samples.jsonl")


def read_rows(run: str) -> list[Row]:
    """Read all rows of a run's metrics; none where there are none yet."""
    return _read_lines(_lines_url(run))


def read_bad_samples(run: str) -> list[dict[str, Any]]:
    """Read a run's list of bad samples: the fields of `shards.streaming.stream.Replacement`."""
    return _read_lines(bad_samples_url(run))


def _lines_url(run: str) -> str:
    return storage.join(run, "metrics.jsonl")


def _read_lines(url: str) -> list[Any]:
    if not storage.exists(url):
        return []
    return [json.loads(line) for line in storage.read_bytes(url).decode().splitlines()]


def _text(lines: list[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode()
