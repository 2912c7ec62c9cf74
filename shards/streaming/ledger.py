"""The ledger of a stream: a file on a local disk with a JSON line for each sample that was replaced.

It is opened before the first step, so that a wrong place is told then and not at the first bad sample. Cost: one open
per step that has a bad sample; where a stream goes on, one pass over the file.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from shards import storage
from shards.errors import UserError
from shards.streaming.stream import Replacement


class Ledger:
    """Append what was replaced."""

    def __init__(self, url: str, consumed: int | None = None) -> None:
        """Begin a ledger, or go on with one: then entries of steps that are made again go.

        Args:
            url: of a file on a local disk; it need not be there.
            consumed: samples of the stream before the first step, where one goes on.

        Raises:
            UserError: it is in a store, in no folder, cannot be written, or holds something else.
        """
        if not storage.is_local(url):
            raise UserError(f"the ledger {url} is in a store, where nothing can be appended: give a local file")
        self._path = storage.local_path(url)
        with self._told():
            self._path.open("ab").close()
            if consumed is not None:
                self._drop_from(consumed)

    def append(self, replaced: Sequence[Replacement]) -> None:
        """Add a line for each.

        Raises:
            UserError: it cannot be written any more.
        """
        with self._told(), self._path.open("a") as file:
            file.writelines(json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in replaced)

    def _drop_from(self, consumed: int) -> None:
        lines = self._path.read_bytes().splitlines(keepends=True)
        # A run that was killed may have left half a line.
        whole = [line for line in lines if line.endswith(b"\n")]
        try:
            kept = [line for line in whole if json.loads(line)["number"] < consumed]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._path} holds other lines than those of a ledger: give another file") from error
        if len(kept) < len(lines):
            storage.write_bytes(str(self._path), b"".join(kept))

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            told = f"the ledger {self._path} cannot be written: {error.strerror or error}"
            raise UserError(f"{told}; give a file in a folder that is there and may be written") from error
