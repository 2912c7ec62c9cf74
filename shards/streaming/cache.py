"""Blocks of shards in a store, on a local disk, shared by the processes of one rank.

A piece (consecutive rows that are read together) is one file, fetched by one of the processes, see `once`.
Which pieces are needed, and until when, is known from the order: they come a few steps ahead and go after their last
use. Nothing is guessed, and nothing is remembered that the folder does not show.

Cost: a GET per piece, and a HEAD per shard in each process that fetches; 9 µs per sample of 8 kB; a listing of the
folder, 1 µs per piece, for each piece that is fetched ahead and at each step. Memory: one piece for each of up to 8
threads. Files: those of the next steps stay open in each process, up to a quarter of what it may open; where that is
less than it needs (lanes × window), a sample costs 30 µs more.
"""

import contextlib
import os
import resource
import shutil
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, Self

from shards.dataset import Dataset
from shards.errors import UserError
from shards.storage.reading import count_traffic
from shards.storage.retry import count_retry
from shards.storage.scratch import is_disk_full, remove_left_scratch, scratch_folder
from shards.streaming import once, transfer

FETCHES_AT_ONCE = 8
"""Of one process; what a sample waits for comes on top."""
_MEMORIZED = 2**13


class Piece(NamedTuple):
    """Consecutive rows of one dataset that are read together."""

    dataset: int
    """Number in the stream."""
    first_row: int
    end_row: int
    """The row after the last."""
    end_position: int
    """Position in the dataset's own stream from which on the piece is not needed."""


class _OpenPiece(NamedTuple):
    file: FileIO
    """Closed with its last reference: after any read that another thread has under way."""
    starts: tuple[memoryview, ...]
    """Of each series: where its rows begin in the file, and where the last one ends."""


class BlockCache:
    """Pieces on a local disk; may be pickled to the other processes of the rank.

    The process that enters it as a context manager owns the folder, which goes when it leaves. If it is killed, the
    next cache in the same parent folder removes it.
    """

    def __init__(self, datasets: Sequence[Dataset], parent: Path, limit_bytes: int) -> None:
        """Take what it serves; nothing happens on the disk until it is entered.

        Args:
            datasets: of the stream, in its order.
            parent: of the folder to be made, on a local disk.
            limit_bytes: what look-ahead may fill; only pieces that a sample waits for may go beyond.
        """
        self._datasets, self._parent, self._limit_bytes = tuple(datasets), parent, limit_bytes
        self._folder: Path | None = None
        self._begin()

    def _begin(self) -> None:
        """Make what belongs to this process alone."""
        self._owned = contextlib.ExitStack()
        self._lock = threading.Lock()
        self._wanted: deque[Piece] = deque()
        self._here: set[Piece] = set()
        self._failed: dict[Piece, Exception] = {}
        self._open: dict[Piece, _OpenPiece] = {}
        self._max_open = max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._num_threads = 0
        self._piece_bytes = lru_cache(_MEMORIZED)(self._measure)

    def __getstate__(self) -> tuple[Any, ...]:
        return self._datasets, self._parent, self._limit_bytes, self._folder

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._datasets, self._parent, self._limit_bytes, self._folder = state
        self._begin()

    def __enter__(self) -> Self:
        """Make the folder, and remove those that killed processes left.

        Raises:
            UserError: the parent cannot be written, or its disk is full.
        """
        with self._disk_errors():
            self._parent.mkdir(parents=True, exist_ok=True)
            remove_left_scratch("stream", self._parent)
            self._folder = self._owned.enter_context(scratch_folder("stream", self._parent))
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._wanted.clear()
            self._open.clear()
        self._owned.close()

    def prefetch(self, pieces: Iterable[Piece], kept: Iterable[Piece] = ()) -> None:
        """Begin to fetch, in threads, what is not there and not on its way, in this order; return at once.

        An error waits for who reads the piece. What an earlier call wanted and no thread has begun is forgotten.

        Args:
            pieces: by first use.
            kept: pieces that are needed later, whether or not they are fetched here; what is open here of any other is
                closed.
        """
        listed = dict.fromkeys(pieces)
        used = listed.keys() | kept
        with self._lock:
            self._here &= used
            # An open file takes room on the disk after the owner has removed it.
            self._open = {piece: found for piece, found in self._open.items() if piece in used}
            self._failed = {piece: error for piece, error in self._failed.items() if piece in listed}
            missing = [piece for piece in listed if piece not in self._here and piece not in self._failed]
            # A thread costs more than to look.
            self._here |= {piece for piece in missing if self._path(piece).exists()}
            self._wanted = deque(piece for piece in missing if piece not in self._here)
            num_new = max(0, min(FETCHES_AT_ONCE, len(self._wanted)) - self._num_threads)
            self._num_threads += num_new
        for _ in range(num_new):
            # Daemons: a process that ends does not wait for a store that stalls.
            threading.Thread(target=self._fetch_wanted, name="prefetch", daemon=True).start()

    def read(self, piece: Piece, row: int, *, refresh: bool = False) -> list[bytes]:
        """Return a row's bytes, one element for each series, fetching its piece at once if it is not there.

        Args:
            piece: that the row is in.
            row: of the dataset's samples table.
            refresh: what is there is damaged: fetch it anew.

        Raises:
            UserError: a shard is missing, has changed, or may not be read; or the disk is full.
            StorageError: the store kept failing.
        """
        if refresh:
            count_retry("checksum")
            opened, path = self._open.pop(piece, None), self._path(piece)
            # Another process may have fetched it anew already.
            if opened is None or once.is_at(opened.file.fileno(), path):
                path.unlink(missing_ok=True)
        file, starts = self._open.get(piece) or self._opened(piece)
        at = row - piece.first_row
        data = [os.pread(file.fileno(), each[at + 1] - each[at], each[at]) for each in starts]
        count_traffic(bytes_used=sum(map(len, data)))
        return data

    def evict(self, consumed: Sequence[int]) -> None:
        """Remove what is not needed any more.

        Args:
            consumed: samples of each dataset's stream that have been delivered.
        """
        for name in self._names():
            piece = _piece_named(name)
            if piece.end_position <= consumed[piece.dataset]:
                once.remove(self._in_folder(name))

    def used_bytes(self) -> int:
        """Return the size of all pieces on the disk and on their way."""
        return sum(self._piece_bytes(_piece_named(name)) for name in self._names())

    def _measure(self, piece: Piece) -> int:
        return transfer.num_bytes(self._datasets[piece.dataset], piece.first_row, piece.end_row)

    def _fetch_wanted(self) -> None:
        while True:
            with self._lock:
                if not self._wanted:
                    self._num_threads -= 1
                    return
                piece = self._wanted.popleft()
            self._fetch_ahead(piece)

    def _fetch_ahead(self, piece: Piece) -> None:
        path, part = self._path(piece), None
        try:
            if not path.exists():
                part = self._begin_file(path, wait=False)
                if part is None:
                    return  # somebody else is at it
                if self.used_bytes() > self._limit_bytes:
                    # This piece counted, so no two can take the last room; both may step back, until the next step.
                    once.give_up(path)
                    with self._lock:
                        self._wanted.clear()
                    return
                self._fetch(piece, path, part)
            with self._lock:
                self._here.add(piece)
        except Exception as error:
            # The process may be one in which nobody reads, and the only one that the store refuses.
            count_retry("ahead")
            # Known before the lock goes: who waits for the piece finds it.
            with self._lock:
                self._failed[piece] = error
                self._wanted.clear()
        finally:
            if part is not None:
                os.close(part)

    def _opened(self, piece: Piece) -> _OpenPiece:
        """Open a piece's file, which is fetched if it is not there, and keep it open."""
        found = transfer.starts(self._datasets[piece.dataset], piece.first_row, piece.end_row)
        opened = _OpenPiece(FileIO(self._descriptor(piece)), tuple(each.data for each in found))
        with self._lock:
            while len(self._open) >= self._max_open:
                del self._open[next(iter(self._open))]
            self._open[piece] = opened
        return opened

    def _descriptor(self, piece: Piece) -> int:
        path = self._path(piece)
        while True:
            with contextlib.suppress(FileNotFoundError):
                return os.open(path, os.O_RDONLY)
            with self._lock:
                failed = self._failed.pop(piece, None)
            if failed is not None:
                raise failed
            part = self._begin_file(path, wait=True)
            if part is not None:
                # Not this one: it is locked, and others may wait for it.
                try:
                    self._fetch(piece, path, part)
                finally:
                    os.close(part)

    def _begin_file(self, path: Path, *, wait: bool) -> int | None:
        with self._disk_errors():
            return once.lock_part(path, wait=wait)

    def _fetch(self, piece: Piece, path: Path, part: int) -> None:
        try:
            for offset, data in transfer.fetch(self._datasets[piece.dataset], piece.first_row, piece.end_row):
                with self._disk_errors(self._piece_bytes(piece)):
                    _write(part, data, offset)
            with self._disk_errors():
                once.complete(path)
        except BaseException:
            once.give_up(path)
            raise

    def _path(self, piece: Piece) -> Path:
        return self._in_folder(f"{piece.dataset}-{piece.end_position:018d}-{piece.first_row}-{piece.end_row}")

    def _in_folder(self, name: str) -> Path:
        assert self._folder is not None, "enter the cache first"
        return self._folder / name

    def _names(self) -> list[str]:
        with self._disk_errors(), os.scandir(self._in_folder("")) as entries:
            return [entry.name for entry in entries]

    @contextlib.contextmanager
    def _disk_errors(self, needed_bytes: int = 0) -> Iterator[None]:
        """Turn what the local disk refuses into one line with the remedy."""
        try:
            yield
        except OSError as error:
            folder = self._folder or self._parent
            remedy = "choose a folder on another local disk (option cache, or TMPDIR)"
            if not is_disk_full(error):
                raise UserError(f"cannot use the cache folder {folder}: {error.strerror or error}; {remedy}") from error
            free = shutil.disk_usage(self._parent).free
            told = f"{needed_bytes / 1e6:.1f} MB needed for the next block, {free / 1e6:.1f} MB free"
            raise UserError(f"the disk of the cache {folder} is full ({error.strerror}): {told}; {remedy}") from error


@lru_cache(_MEMORIZED)
def _piece_named(name: str) -> Piece:
    dataset, end_position, first_row, end_row = map(int, once.made_name(name).split("-"))
    return Piece(dataset, first_row, end_row, end_position)


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
