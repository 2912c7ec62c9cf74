"""The other end of `ingest.sandbox`: the process in which GDAL meets files that nobody vouches for.

Started as `python -m ingest.decoder REQUESTS ANSWERS MEMORY PARENT`; reads calls from one pipe, writes answers to
another, ends when the pipe does or its parent dies.
"""

import ctypes
import functools
import io
import json
import os
import re
import resource
import signal
import struct
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import IO, Any

from rasterio.errors import RasterioError

import ingest  # noqa: F401  (GDAL's settings stand before rasterio is imported)
from ingest.config import Recipe, recipe_of
from ingest.cut import Tell, cut_units
from ingest.probe import probe_scene
from ingest.raster import one_line
from ingest.reasons import SceneRejectedError
from ingest.scene import SceneFile

_FRAME = struct.Struct("<cQ")
_PIECE = 64 * 2**10  # read-ahead of a remote file's headers
_MAX_PIECES = 256
_ROWS_AT_ONCE = 32
_PR_SET_PDEATHSIG = 1


def main(request_end: int, answer_end: int, memory_bytes: int, parent: int) -> None:
    """Answer calls until the pipe ends."""
    _limit(memory_bytes, parent)
    requests, answers = os.fdopen(request_end, "rb"), os.fdopen(answer_end, "wb")
    while header := requests.read(_FRAME.size):
        _, size = _FRAME.unpack(header)
        call = json.loads(requests.read(size))
        kind, answer = _answer(call, requests, answers)
        _send(answers, kind, json.dumps(answer).encode())


def _limit(memory_bytes: int, parent: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked to be told
        sys.exit(1)


def _answer(call: dict[str, Any], requests: IO[bytes], answers: IO[bytes]) -> tuple[bytes, Any]:
    # By default SIGPROF ends the process, also in the midst of C code.
    signal.setitimer(signal.ITIMER_PROF, call["cpu_s"] * len(call.get("units", [None])))
    try:
        files = [_scene_file(number, file, requests, answers) for number, file in enumerate(call["files"])]
        sender = _RowSender(answers)
        answer = _CALLS[call["call"]](call, files, _recipe(call["recipe"]), sender.add)
        sender.send()
        return b"A", answer
    except SceneRejectedError as rejection:
        return b"X", {"code": rejection.code, "detail": rejection.detail}
    except MemoryError:
        return b"M", None
    except Exception as error:
        # What has a number comes from the system: of disks, which are the world's. But GDAL's errors are of this kind.
        if isinstance(error, OSError) and error.errno and not isinstance(error, RasterioError):
            return b"F", {"errno": error.errno, "told": error.strerror}
        return b"E", {"told": _told(error)}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _told(error: Exception) -> str:
    """Return an error's type, the function that it comes from and its message: the same for the same scene."""
    function = traceback.extract_tb(error.__traceback__)[-1].name
    return f"{type(error).__name__} in {function}: {re.sub(r'0x[0-9a-fA-F]+', '0x…', one_line(error))}"


def _probe(call: dict[str, Any], files: Sequence[SceneFile], recipe: Recipe, _: Tell) -> dict[str, Any]:
    return probe_scene(files, call["scene"], recipe)


def _cut(call: dict[str, Any], files: Sequence[SceneFile], recipe: Recipe, tell: Tell) -> dict[str, Any]:
    with open(call["scratch"], "r+b") as scratch:
        scratch.seek(call["position"])
        return cut_units(files, call["units"], recipe, scratch, tell)


_CALLS: dict[str, Callable[[dict[str, Any], Sequence[SceneFile], Recipe, Tell], dict[str, Any]]] = {
    "probe": _probe,
    "cut": _cut,
}


@functools.lru_cache(maxsize=4)
def _recipe(text: str) -> Recipe:
    return recipe_of(json.loads(text))


def _scene_file(number: int, file: dict[str, Any], requests: IO[bytes], answers: IO[bytes]) -> SceneFile:
    if file["local"]:
        return SceneFile(band=file["band"], path=file["local"], num_bytes=file["size"])
    remote = _Remote(number, file["size"], requests, answers)
    # The name is the same wherever the scene lies, since GDAL puts it into messages.
    return SceneFile(
        band=file["band"], path=f"scene-{number}", opener=remote.open, fetch=remote.fetch, num_bytes=file["size"]
    )


class _Remote:
    """A file of which the parent gives byte ranges; keeps pieces of headers, and blocks until they were read once."""

    def __init__(self, number: int, size: int, requests: IO[bytes], answers: IO[bytes]) -> None:
        self._number, self.size = number, size
        self._requests, self._answers = requests, answers
        self._pieces: OrderedDict[int, bytes] = OrderedDict()
        self._blocks: dict[int, bytes] = {}

    def open(self, path: str, mode: str = "rb") -> "_RemoteFile":
        """Open the file; the raster library asks for other names (side files), which are not there."""
        if not path.startswith("scene-"):
            raise FileNotFoundError(path)
        return _RemoteFile(self)

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Bring blocks near."""
        self._blocks = dict(zip((offset for offset, _ in ranges), self._ask(ranges), strict=True))

    def read(self, position: int, size: int) -> bytes:
        """Return bytes from a position; fewer only at the file's end."""
        size = max(0, min(size, self.size - position))
        block = self._blocks.get(position)
        if block is not None and len(block) >= size:
            return block[:size]
        first, last = position // _PIECE, (position + max(size, 1) - 1) // _PIECE
        missing = [number for number in range(first, last + 1) if number not in self._pieces]
        if len(missing) > 4:
            return self._ask([(position, size)])[0]
        for number, piece in zip(missing, self._ask([(n * _PIECE, _PIECE) for n in missing]), strict=True):
            self._pieces[number] = piece
        data = b"".join(self._pieces[number] for number in range(first, last + 1))
        while len(self._pieces) > _MAX_PIECES:
            self._pieces.popitem(last=False)
        return data[position - first * _PIECE :][:size]

    def _ask(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        if not ranges:
            return []
        _send(self._answers, b"R", json.dumps({"file": self._number, "ranges": list(ranges)}).encode())
        return [self._receive() for _ in ranges]

    def _receive(self) -> bytes:
        _, size = _FRAME.unpack(self._requests.read(_FRAME.size))
        return self._requests.read(int(size))


class _RemoteFile(io.RawIOBase):
    def __init__(self, remote: _Remote) -> None:
        self._remote, self._position = remote, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        base = {0: 0, 1: self._position, 2: self._remote.size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        data = self._remote.read(self._position, self._remote.size if size < 0 else size)
        self._position += len(data)
        return data


class _RowSender:
    """Rows for the parent, which works on them meanwhile.

    Some at once: woken for each of them, on a core that another decoder has, it takes twice the time.
    """

    def __init__(self, answers: IO[bytes]) -> None:
        self._answers = answers
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Send a row, perhaps later."""
        self._rows.append(row)
        if len(self._rows) == _ROWS_AT_ONCE:
            self.send()

    def send(self) -> None:
        """Send what was not sent yet.

        Raises:
            ValueError: an infinity or NaN, which JSON cannot hold.
        """
        if self._rows:
            _send(self._answers, b"T", json.dumps(self._rows, allow_nan=False).encode())
            self._rows = []


def _send(pipe: IO[bytes], kind: bytes, payload: bytes) -> None:
    pipe.write(_FRAME.pack(kind, len(payload)))
    pipe.write(payload)
    pipe.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
