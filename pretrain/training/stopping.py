"""SIGTERM: a machine is about to be taken away. Training saves, leaves and exits 0; the same command goes on later.

Python runs handlers of signals in the main thread, between two of its own instructions. Inside a collective that waits
for another rank, or a kernel that does not end, it never comes to them. So a thread hears of each signal as it comes,
and ends the process where the main thread does not.
"""

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_GRACE_S = 1.0
"""That the main thread has to hear of the deadline, before the process is ended without it."""
_ECHO_S = 2.0
"""For which a SIGTERM is the one before once more: coreutils' timeout sends it to a process and to its group."""


class TooLateError(RuntimeError):
    """The step that was to be the last one was not done by the deadline."""


class StopRequest:
    """Whether training is asked to save and leave; `heeding_sigterm` makes one that SIGTERM asks through."""

    asked: bool = False

    def __init__(self, deadline_s: float = math.inf) -> None:
        self._deadline_s = deadline_s
        self._in_time = False
        self._heard = False
        self._asked_s = math.inf

    def leaving(self) -> None:
        """Say that the last step is done; what follows, saving, may take its time."""
        self._in_time = True

    def heed(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGTERM in the main thread."""
        self.asked = True

    def expire(self, number: int, frame: FrameType | None) -> None:
        """Handle the deadline in the main thread."""
        self._heard = True
        if not self._in_time:
            raise TooLateError(self._late())

    def watch(self, signals: socket.socket) -> None:
        """Tell of SIGTERM, watch over its deadline, and end the process the second time; runs in a thread.

        Args:
            signals: gives the number of each signal of the process as a byte, until the other end is closed.
        """
        if not _comes(signals, None):
            return
        self._asked_s = time.monotonic()
        told = f"pretrain: SIGTERM: saving after this step, due in {self._deadline_s:g} s; once more ends it at once\n"
        os.write(2, told.encode())
        if self._ends_within(signals, self._deadline_s):
            return
        if not self._in_time:
            os.kill(os.getpid(), signal.SIGALRM)
            if self._ends_within(signals, _GRACE_S):
                return
        if not (self._in_time or self._heard):
            os.write(2, f"pretrain: error: {self._late()}\n".encode())
            os._exit(1)
        self._ends_within(signals, None)

    def _ends_within(self, signals: socket.socket, wait_s: float | None) -> bool:
        """Say whether training ends by itself in so many seconds; a second SIGTERM meanwhile ends the process."""
        ends_s = None if wait_s is None else time.monotonic() + wait_s
        try:
            while _comes(signals, None if ends_s is None else ends_s - time.monotonic()):
                if time.monotonic() - self._asked_s > _ECHO_S:
                    # Not by an exception, which would wait for a save. Checkpoints appear when they are whole, and the
                    # loader's workers end with this process.
                    os._exit(128 + signal.SIGTERM)
        except TimeoutError:
            return False
        return True

    def _late(self) -> str:
        return (
            f"SIGTERM, and {self._deadline_s:g} s later the step was not done (checkpoint.deadline_s): left without "
            "saving; the same command goes on from the newest checkpoint"
        )


def _comes(signals: socket.socket, wait_s: float | None) -> bool:
    """Wait for SIGTERM; False: the other end is closed.

    Raises:
        TimeoutError: neither within so many seconds.
    """
    ends_s = time.monotonic() + (wait_s or 0)
    while True:
        # 0 would be another mode.
        signals.settimeout(None if wait_s is None else max(ends_s - time.monotonic(), 1e-3))
        number = signals.recv(1)
        if not number or number[0] == signal.SIGTERM:
            return bool(number)


@contextmanager
def heeding_sigterm(deadline_s: float) -> Iterator[StopRequest]:
    """Yield what training asks at each step; only for the main thread.

    Args:
        deadline_s: seconds from SIGTERM until a step that is still under way is given up. A save has no deadline: one
            that does not end before the process is killed leaves nothing behind.
    """
    request = StopRequest(deadline_s)
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)
    watcher = threading.Thread(target=request.watch, args=(ours,), name="stopping", daemon=True)
    watcher.start()
    # First, and last: no signal that has its handler goes by the watcher.
    wakeup = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, request.heed),
        signal.SIGALRM: signal.signal(signal.SIGALRM, request.expire),
    }
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        pythons.close()
        watcher.join()
        ours.close()
