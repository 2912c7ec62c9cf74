"""Say how far long work is: one live line on a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

_PLAIN_INTERVAL_S = 5.0


class Progress:
    """A line with share done, rate, time left and any figures; use as a context manager.

    On a terminal the line is redrawn in place; elsewhere (logs, CI) a line is printed every five seconds and
    at the end. It writes to stderr, so that results on stdout stay clean.
    """

    def __init__(self, what: str, total: int, unit: str, done: int = 0) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._start_done = self._done = done
        self._figures = ""
        self._begin_s = self._printed_s = time.monotonic()
        self._live = Live(console=Console(stderr=True), transient=True) if sys.stderr.isatty() else None

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        print(self.line(), file=sys.stderr, flush=True)

    def update(self, done: int, figures: str = "") -> None:
        """Set how much is done, in units since the beginning of the work, and what else the line shows."""
        self._done, self._figures = done, figures
        now = time.monotonic()
        if self._live:
            self._live.update(Text(self.line()))
        elif now - self._printed_s >= _PLAIN_INTERVAL_S:
            self._printed_s = now
            print(self.line(), file=sys.stderr, flush=True)

    def skip(self, count: int) -> None:
        """Count units that are done as those of an earlier run: they say nothing of the rate and the time left."""
        self._start_done += count

    def tick(self) -> None:
        """Show the line again though nothing was done since, so that nobody takes long work for a dead one."""
        self.update(self._done, self._figures)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the work began, above 0."""
        return max(time.monotonic() - self._begin_s, 1e-9)

    def line(self) -> str:
        """Return the line as it stands."""
        elapsed_s = self.elapsed_s
        rate = (self._done - self._start_done) / elapsed_s
        share = self._done / self._total if self._total else 1.0
        left = f", {duration((self._total - self._done) / rate)} left" if rate and self._done < self._total else ""
        parts = [
            f"{self._what}: {self._done}/{self._total} {self._unit} ({share:.0%})",
            f"{duration(elapsed_s)}{left}",
            f"{rate:.3g} {self._unit}/s",
        ]
        return " · ".join([*parts, self._figures] if self._figures else parts)


def duration(seconds: float) -> str:
    """Return a time span for people: 8 s, 3:05 min, 2:30 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
