"""Metrics of a run: one JSON line per row, and the same figures as TensorBoard events.

Both files are kept in memory and written whole, so that they reach a bucket as well as a local folder, and a
resumed run never shows rows of steps that it makes again.
"""

import io
import json
import time
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

from shards import storage

_FLUSH_SHARE = 0.01
"""Writing may take this share of the time."""

Row = dict[str, float | int]


class Metrics:
    """Append rows; `flush` makes them visible."""

    def __init__(self, run: str, resume_step: int) -> None:
        """Keep the earlier rows up to a step, drop what came after."""
        self._lines_url = storage.join(run, "metrics.jsonl")
        # TensorBoard merges all event files of a folder; a name per start keeps them apart.
        self._events_url = storage.join(run, "tensorboard", f"events.out.tfevents.{resume_step:010d}.pera")
        earlier = read_rows(run) if storage.exists(self._lines_url) else []
        self._lines = [json.dumps(row) for row in earlier if row["step"] <= resume_step]
        self._events = io.BytesIO()
        self._records = RecordWriter(self._events)
        self._next_flush_s = 0.0
        # START tells TensorBoard to forget what an earlier start wrote for later steps.
        self._write_event(resume_step + 1, session_log=SessionLog(status=SessionLog.START))

    def append(self, row: Row) -> None:
        """Add a row; it holds "step" and figures. Writes the files now and then."""
        self._lines.append(json.dumps(row))
        values = [Summary.Value(tag=name, simple_value=value) for name, value in row.items() if name != "step"]
        self._write_event(int(row["step"]), summary=Summary(value=values))
        if time.monotonic() >= self._next_flush_s:
            self.flush()

    def flush(self) -> None:
        """Write both files."""
        begin_s = time.monotonic()
        storage.write_bytes(self._lines_url, "".join(line + "\n" for line in self._lines).encode())
        storage.write_bytes(self._events_url, self._events.getvalue())
        end_s = time.monotonic()
        self._next_flush_s = end_s + (end_s - begin_s) / _FLUSH_SHARE

    def _write_event(self, step: int, **content: Any) -> None:
        self._records.write(Event(wall_time=time.time(), step=step, **content).SerializeToString())


def read_rows(run: str) -> list[Row]:
    """Read all rows of a run's metrics."""
    data = storage.read_bytes(storage.join(run, "metrics.jsonl"))
    return [json.loads(line) for line in data.decode().splitlines()]
