"""A file that only grows while a run goes on: in a local folder new pieces are appended, in a bucket all is sent anew.

Costs no memory but for what was not written yet. For a bucket a copy without a name lies on the scratch disk (TMPDIR),
and is in memory for as long as it is sent. Who is killed in the middle of an append leaves a torn last line, which
`whole_lines` passes over and the next start cuts off.
"""

import os
import tempfile
from typing import BinaryIO

from shards import storage


class GrowingFile:
    """Append pieces in one thread, write them in another; what could not be written is written by a later call."""

    def __init__(self, url: str, content: bytes, *, replaces: bool) -> None:
        """Begin anew.

        Args:
            url: of the file; nothing is written before the first `flush`.
            content: that it begins with.
            replaces: whether there is one already; else a file that nothing is put into never appears.
        """
        self._url = url
        self._pending = [content] if content else []
        self._num_written_bytes = 0
        self._is_due = replaces
        # Gone with the process, however it ends.
        self._copy: BinaryIO | None = None if storage.is_local(url) else tempfile.TemporaryFile()  # noqa: SIM115

    def append(self, piece: bytes) -> None:
        """Add to the end of the file, once it is written."""
        self._pending.append(piece)

    def flush(self) -> None:
        """Write what was appended until now; when this returns it is on the disk, or in the store.

        Raises:
            OSError: the disk is full, or not writable.
            StorageError: the store kept failing.
        """
        num_pieces = len(self._pending)
        if not (num_pieces or self._is_due):
            return
        data = b"".join(self._pending[:num_pieces])
        if self._copy is not None:
            storage.write_bytes(self._url, _grown(self._copy, self._num_written_bytes, data))
        elif self._num_written_bytes and not self._is_due:
            _append(self._url, self._num_written_bytes, data)
        else:
            storage.write_bytes(self._url, data)
        # Never another list: the other thread may be about to append to this one.
        del self._pending[:num_pieces]
        self._num_written_bytes += len(data)
        self._is_due = False


def whole_lines(content: bytes) -> list[bytes]:
    """Return the lines of a file that may have been cut off: the last one counts when its end is there."""
    return content[: content.rfind(b"\n") + 1].splitlines()


def _append(url: str, size: int, data: bytes) -> None:
    with storage.local_path(url).open("r+b") as file:
        _put_at(file, size, data)
        os.fsync(file.fileno())


def _grown(copy: BinaryIO, size: int, data: bytes) -> bytes:
    _put_at(copy, size, data)
    copy.seek(0)
    return copy.read()


def _put_at(file: BinaryIO, size: int, data: bytes) -> None:
    # An earlier try may have left a part of them.
    file.truncate(size)
    file.seek(size)
    file.write(data)
    file.flush()
