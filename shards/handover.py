"""Arrays that several processes of a machine use without a copy in each.

Large ones lie together in one anonymous file in memory, which goes with the last process that maps it. That takes two
file descriptors in each; a process that is being started is handed up to 64 such files, and copies beyond that.
"""

import mmap
import os
from collections.abc import Sequence
from multiprocessing import context, reduction
from typing import IO, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

SHARED_BYTES = 2**20
"""Smaller rooms are copied: a map takes descriptors."""
MAX_HANDED = 64
"""Files that one process is handed: a fork server takes about 250 descriptors, and there may be others."""

_ALIGNED_BYTES = 8
_num_handed: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # to each process that is being started


class Span(NamedTuple):
    """Where an array lies in a room."""

    begin: int
    """Byte."""
    num_elements: int
    dtype: np.dtype[Any]

    @property
    def end(self) -> int:
        """The byte after the last."""
        return self.begin + self.num_elements * self.dtype.itemsize

    def of(self, buffer: Any) -> NDArray[Any]:
        """Return the array."""
        return np.frombuffer(buffer, self.dtype, self.num_elements, self.begin)


class Arrays:
    """Arrays that go together; pickled for a process that is being started, large ones are not copied."""

    def __init__(
        self, values: Sequence[NDArray[Any]], file: IO[bytes] | None = None, spans: Sequence[Span] = ()
    ) -> None:
        self.values, self._file, self._spans = values, file, spans

    @classmethod
    def mapped(cls, file: IO[bytes], spans: Sequence[Span]) -> "Arrays":
        """Map a file's arrays, to be read only."""
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return cls([span.of(whole) for span in spans], file, spans)

    @classmethod
    def received(cls, sent: Any, spans: Sequence[Span]) -> "Arrays":
        """Map a file that another process has handed over."""
        return cls.mapped(os.fdopen(sent.detach(), "rb"), spans)

    @property
    def are_shared(self) -> bool:
        """Whether they lie in a file that can be handed over."""
        return self._file is not None

    def __reduce__(self) -> tuple[Any, ...]:
        # Descriptors can be handed over only to a process that is being started.
        starting = context.get_spawning_popen()
        num_handed = 0 if starting is None else _num_handed.get(starting, 0)
        if self._file is None or starting is None or num_handed == MAX_HANDED:
            return Arrays, ([np.array(each) for each in self.values],)
        _num_handed[starting] = num_handed + 1
        return Arrays.received, (reduction.DupFd(self._file.fileno()), self._spans)


class Room:
    """Memory to make arrays in. It is taken where something is written: room that stays empty costs nothing."""

    def __init__(self, num_bytes: int) -> None:
        """Make it.

        Args:
            num_bytes: of `buffer`, uint8.
        """
        self._file: IO[bytes] | None = None
        if num_bytes < max(SHARED_BYTES, 1) or not hasattr(os, "memfd_create"):
            self.buffer = np.empty(num_bytes, np.uint8)
            return
        self._file = os.fdopen(os.memfd_create("pera-arrays"), "r+b")
        self._file.truncate(num_bytes)
        self.buffer = np.frombuffer(mmap.mmap(self._file.fileno(), num_bytes), np.uint8)

    def close(self, spans: Sequence[Span], more: Sequence[NDArray[Any]]) -> Arrays:
        """Return the arrays at some places, and more arrays behind them; the rest of the room must not be used again.

        Args:
            spans: at least one if the room is not empty.
            more: contiguous; they are copied.
        """
        if self._file is None:
            return Arrays([*(span.of(self.buffer) for span in spans), *more])
        all_spans, end = list(spans), max(span.end for span in spans)
        for array in more:
            begin = -(-end // _ALIGNED_BYTES) * _ALIGNED_BYTES
            self._file.seek(begin)
            self._file.write(array.data)
            all_spans.append(Span(begin, len(array), array.dtype))
            end = all_spans[-1].end
        self._file.truncate(end)
        return Arrays.mapped(self._file, all_spans)
