"""SIGTERM: a machine is about to be taken away. Training saves, leaves and exits 0; the same command goes on later."""

import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TooLateError(RuntimeError):
    """The step under way was not done by the deadline."""


class StopRequest:
    """Whether training is asked to save and leave; `heeding_sigterm` makes one that SIGTERM asks through."""

    asked: bool = False

    def __init__(self, deadline_s: float = math.inf) -> None:
        self._deadline_s = deadline_s

    def heed(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: the first one asks, a second one ends the process at once."""
        if self.asked:
            # Not by an exception, which would wait for a save. Checkpoints appear when they are whole, and the loader's
            # workers end with this process.
            os._exit(128 + number)
        self.asked = True
        signal.setitimer(signal.ITIMER_REAL, self._deadline_s)
        told = f"pretrain: SIGTERM: saving after this step, due in {self._deadline_s:g} s; once more ends it at once\n"
        os.write(2, told.encode())  # print may be what was interrupted

    def step_done(self) -> None:
        """Let what follows, saving, take its time."""
        if self.asked:
            signal.setitimer(signal.ITIMER_REAL, 0)

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
        deadline_s: seconds from SIGTERM until a step that is still under way is given up. A save has no deadline: one
            that does not end before the process is killed leaves nothing behind.
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
