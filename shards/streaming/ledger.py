"""The ledger of a stream: a file on a local disk with a JSON line for each sample that was replaced.

It is opened before the first step, so that a wrong place is told then and not at the first bad sample. The ranks of a
machine may share a file, in which each one touches its own lines alone; those of several machines need a file each, as
locks tell nothing there. Cost: one open per step that has a bad sample; where a stream goes on, one pass over the file,
and for each step of which it has lines the time to cut it.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import BinaryIO

from shards import storage
from shards.errors import UserError
from shards.streaming.stream import Replacement, Stream


class Ledger:
    """Append what was replaced."""

    def __init__(self, url: str, going_on: Stream | None = None) -> None:
        """Begin a ledger, or go on with one: then entries of the rank's samples that are read again go.

        Args:
            url: of a file on a local disk; it need not be there.
            going_on: a rank's stream that goes on.

        Raises:
            UserError: it is in a store, in no folder, cannot be written, or holds something else.
        """
        if not storage.is_local(url):
            raise UserError(f"the ledger {url} is in a store, where nothing can be appended: give a local file")
        self._path = storage.local_path(url)
        with self._told(), self._open():
            if going_on is not None:
                self._drop_what_comes_again(going_on)

    def append(self, replaced: Sequence[Replacement]) -> None:
        """Add a line for each.

        Raises:
            UserError: it cannot be written any more.
        """
        lines = [json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in replaced]
        with self._told(), self._open() as file:
            file.write("".join(lines).encode())

    @contextlib.contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        """Open it to append, while no other process of this machine has it open."""
        while True:
            with self._path.open("ab") as file:
                with contextlib.suppress(OSError):  # the file system knows no locks
                    fcntl.flock(file, fcntl.LOCK_EX)
                # Else another one has put a new file there meanwhile.
                if os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                    yield file
                    return

    def _drop_what_comes_again(self, stream: Stream) -> None:
        lines = self._path.read_bytes().splitlines(keepends=True)
        # A run that was killed may have left half a line.
        whole = [line for line in lines if line.endswith(b"\n")]
        try:
            numbers = [json.loads(line)["number"] for line in whole]
            steps = {(number - stream.start) // stream.global_batch for number in numbers if number >= stream.start}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._path} holds other lines than those of a ledger: give another file") from error
        # Not those of other ranks: these may have begun before, and written them since.
        again = {number for step in steps for number in stream.cut([step], stream.rank, stream.world)[0].flat}
        kept = [line for line, number in zip(whole, numbers, strict=True) if number not in again]
        if len(kept) < len(lines):
            storage.write_bytes(str(self._path), b"".join(kept))

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            told = f"the ledger {self._path} cannot be written: {error.strerror or error}"
            raise UserError(f"{told}; give a file in a folder that is there and may be written") from error
