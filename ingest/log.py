"""`ingest.jsonl`: what a run did and how far it is, one JSON object per line, for machines to follow.

A local log grows line by line; a store cannot append, so there the file is written anew now and then and at the end.
"""

import json
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from shards import storage

_STORE_INTERVAL_S = 30.0
_PROGRESS_INTERVAL_S = 5.0


class EventLog:
    """Appends events to `<out>/ingest.jsonl`; use as a context manager."""

    def __init__(self, out: str) -> None:
        self._url = storage.join(out, "ingest.jsonl")
        self._lines: list[str] = []
        self._written_s = self._progress_s = time.monotonic() - _PROGRESS_INTERVAL_S
        self._before = storage.read_bytes(self._url) if storage.exists(self._url) else b""

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            try:
                self.add("stopped", error=" ".join(str(error).split()) or type(error).__name__)
                self._write()
            except OSError as fault:  # must not hide what went wrong before
                error.add_note(f"nor could the log be written: {fault}")
            return
        self._write()

    def progress(self, phase: str, **figures: Any) -> None:
        """Note how far a phase is; at most one event every five seconds is kept."""
        if time.monotonic() - self._progress_s >= _PROGRESS_INTERVAL_S:
            self._progress_s = time.monotonic()
            self.add("progress", phase=phase, **figures)

    def add(self, event: str, **values: Any) -> None:
        """Append one event."""
        moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._lines.append(json.dumps({"time": moment, "event": event, **values}, sort_keys=True))
        if storage.is_local(self._url) or time.monotonic() - self._written_s >= _STORE_INTERVAL_S:
            self._write()

    def _write(self) -> None:
        self._written_s = time.monotonic()
        data = "".join(f"{line}\n" for line in self._lines).encode()
        if not data:
            return
        if storage.is_local(self._url):
            path = storage.local_path(self._url)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(data)
            self._lines = []
        else:
            storage.write_bytes(self._url, self._before + data)
