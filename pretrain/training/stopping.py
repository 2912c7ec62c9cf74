"""SIGTERM: a machine is about to be taken away. Training saves, leaves and exits 0; the same command goes on later."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TooLateError(RuntimeError):
    """The step under way was not done by the deadline."""


class StopRequest:
    """Whether SIGTERM came; `heeding_sigterm` makes one."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._came = False

    def __call__(self) -> bool:
        """Return whether to save and leave."""
        return self._came

    def heed(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: the first one asks, a second one ends the process at once."""
        if self._came:
            sys.exit(128 + number)
        self._came = True
        signal.setitimer(signal.ITIMER_REAL, self._deadline_s)
        told = f"pretrain: SIGTERM: saving after this step, within {self._deadline_s:g} s; once more ends it at once"
        print(told, file=sys.stderr, flush=True)

    def expire(self, number: int, frame: FrameType | None) -> None:
        """Handle the deadline."""
        raise TooLateError(
            f"SIGTERM, and {self._deadline_s:g} s later the step was not done (checkpoint.deadline_s): left without "
            "saving; the same command goes on from the newest checkpoint"
        )


@contextmanager
def heeding_sigterm(deadline_s: float) -> Iterator[StopRequest]:
    """Yield what training asks at each step; only for the main thread.

    Args:
        deadline_s: seconds from SIGTERM until a step that is still under way is given up.
    """
    request = StopRequest(deadline_s)
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, request.heed),
        signal.SIGALRM: signal.signal(signal.SIGALRM, request.expire),
    }
    try:
        yield request
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
