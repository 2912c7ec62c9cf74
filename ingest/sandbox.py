"""A disposable process that decodes: a file that crashes, hangs or bloats it costs one scene, not the run.

The worker keeps the network, the credentials and the truth; the decoder gets local paths or asks the worker for byte
ranges, has limits (address space, CPU time, wall time), an environment without credentials, and is renewed now and
then, since decoders leak. Calls and answers are JSON (nothing that a broken decoder says is ever executed); pixels go
through a scratch file, and rows come as they are made, so that the worker can work on them while the decoder goes on.
A call costs about 0.1 ms, a new decoder 0.3 s.
"""

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ingest.reasons import SceneRejectedError
from shards.storage.scratch import is_disk_full

_CALLS_PER_DECODER = 2000
_FRAME = struct.Struct("<cQ")
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "COVERAGE_PROCESS_START")
# Tiles come and go: memory that stays with the process need not be zeroed by the kernel for each of them.
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(64 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
    "MALLOC_TOP_PAD_": str(32 * 2**20),
}
_KEPT_PREFIXES = ("PYTHON", "GDAL_", "PROJ_", "OMP_", "OPENBLAS_")

Ranges = list[tuple[int, int]]
Reader = Callable[[int, Ranges], Sequence[bytes]]
Finish = Callable[[list[dict[str, Any]]], Sequence[Any]]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one decoder call may take; times and CPU for each unit of a call that has several."""

    cpu_s: float = 600.0
    wall_s: float = 1800.0
    memory_bytes: int = 4 * 2**30
    """Address space of the decoder; its resident memory is far below."""


class DecoderFaultError(OSError):
    """The world kept a call from its end (the decoder was killed, a disk failed): it is retried."""


class DecoderTimeoutError(DecoderFaultError):
    """A call took too long by the clock, not by its own work: the machine's or the disk's fault, so it is retried."""


class _DiedError(Exception):
    """The decoder is gone; carries the reason code, or none where the scene's content is not to blame."""

    def __init__(self, code: str | None, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


@contextlib.contextmanager
def faults_named(path: str) -> Iterator[None]:
    """Say in a decoder's faults which scene it had, and which option helps if the scene alone is slow.

    Raises:
        DecoderFaultError: of the same type.
    """
    try:
        yield
    except DecoderTimeoutError as error:
        raise DecoderTimeoutError(f"{path}: {error}: raise --scene_deadline_s if it needs longer") from error
    except DecoderFaultError as error:
        raise DecoderFaultError(f"{path}: {error}: if memory is short, set fewer --workers") from error


class Decoder:
    """Calls functions of `ingest.decoder` in a child process; not for several threads at once."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._process: subprocess.Popen[bytes] | None = None
        self._calls = 0
        self._requests: IO[bytes]
        self._answers: IO[bytes]

    def call(
        self, name: str, request: dict[str, Any], read: Reader | None = None, finish: Finish | None = None
    ) -> dict[str, Any]:
        """Run one function on a request and return its answer, with the rows that it told meanwhile as "rows", if any.

        A call whose decoder dies or fails unexpectedly, if not of too much work, is made once more in a new one, so
        that what a predecessor left behind is not held against a scene.

        Args:
            name: of a function that `ingest.decoder` offers.
            request: JSON values.
            read: gives the bytes of (offset, size) ranges of a file, by its number; its errors end the call.
            finish: what to make of some rows when they come; its errors end the call. Of a call that is made once more
                the rows of the first attempt come to nothing.

        Raises:
            SceneRejectedError: the content rules the scene out, also by crashing or exhausting the decoder, or by
                meeting a mistake in it.
            DecoderTimeoutError: no answer in time.
            DecoderFaultError: the decoder was killed from outside, twice, or a disk failed.
            OSError: the scratch file's disk is full.
        """
        payload = json.dumps({"call": name, "cpu_s": self.limits.cpu_s, **request}).encode()
        for last in (False, True):
            try:
                return self._attempt(payload, read, finish, len(request.get("units", [None])))
            except _DiedError as death:
                # Too much work is too much again; a second try would double the price.
                if (last and death.code) or death.code == "decoder_slow":
                    raise SceneRejectedError(death.code, death.detail) from death
                if last:
                    raise DecoderFaultError(f"the decoder was killed from outside: {death.detail}") from death
        raise AssertionError

    def _attempt(self, payload: bytes, read: Reader | None, finish: Finish | None, pieces: int) -> dict[str, Any]:
        process = self._running()
        rows: list[Any] = []
        self._calls += 1
        deadline_s = time.monotonic() + self.limits.wall_s * pieces
        try:
            _send(self._requests, b"C", payload)
            while True:
                kind, data = _receive(self._answers, deadline_s)
                if kind == b"R":
                    self._serve(json.loads(data), read)
                elif kind == b"T":
                    rows += finish(json.loads(data)) if finish else json.loads(data)
                else:
                    break
        except (EOFError, BrokenPipeError):
            self.close(kill=False)
            raise _cause_of_death(process.returncode) from None
        except BaseException:
            self.close()
            raise
        answer = self._answer(kind, json.loads(data))
        return {**answer, "rows": rows} if rows else answer

    def _answer(self, kind: bytes, answer: dict[str, Any]) -> dict[str, Any]:
        if kind == b"A":
            return answer
        if kind == b"M":
            self.close()
            raise _DiedError("decoder_memory", "ran out of memory")
        if kind == b"X":
            raise SceneRejectedError(answer["code"], answer["detail"])
        if kind == b"F":
            full = OSError(answer["errno"], answer["told"])
            raise full if is_disk_full(full) else DecoderFaultError(f"the decoder met a fault: {answer['told']}")
        assert kind == b"E", kind
        self.close()
        raise _DiedError("decoder_failed", answer["told"])

    def _serve(self, wanted: dict[str, Any], read: Reader | None) -> None:
        """Send the ranges that the decoder asks for."""
        assert read, "the decoder asks for bytes of a local scene"
        ranges = [(int(offset), int(size)) for offset, size in wanted["ranges"]]
        try:
            pieces = read(int(wanted["file"]), ranges)
        except (EOFError, BrokenPipeError) as error:  # of the network, not of the decoder's pipes
            raise OSError(f"cannot read the scene: {error!r}") from error
        for piece in pieces:
            _send(self._requests, b"B", piece)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._calls >= _CALLS_PER_DECODER:
            self.close()
        if self._process is None:
            self._start()
        assert self._process
        return self._process

    def _start(self) -> None:
        request_end, requests = os.pipe()
        answers, answer_end = os.pipe()
        command = [sys.executable, "-m", "ingest.decoder", str(request_end), str(answer_end)]
        self._process = subprocess.Popen(
            [*command, str(self.limits.memory_bytes), str(os.getpid())],
            pass_fds=(request_end, answer_end),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=_environment(),
        )
        os.close(request_end)
        os.close(answer_end)
        self._requests, self._answers = os.fdopen(requests, "wb"), os.fdopen(answers, "rb", buffering=0)
        self._calls = 0

    def close(self, *, kill: bool = True) -> None:
        """End the child; the next call starts another."""
        if self._process is None:
            return
        if kill:
            self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        self._answers.close()
        self._process.wait()
        self._process = None
        self._calls = 0


def _environment() -> dict[str, str]:
    """Return the variables that a decoder may see: no credentials of any kind."""
    return (
        {
            name: value
            for name, value in os.environ.items()
            if name in _KEPT_VARIABLES or name.startswith(_KEPT_PREFIXES)
        }
        | _MALLOC
        | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
    )


def _cause_of_death(code: int) -> _DiedError:
    if code == -signal.SIGPROF:
        return _DiedError("decoder_slow", "took more CPU time than a piece of a scene may")
    if code in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
        return _DiedError(None, signal.Signals(-code).name)
    told = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return _DiedError("decoder_crashed", f"the decoder ended with {told}")


def _send(pipe: IO[bytes], kind: bytes, payload: bytes) -> None:
    pipe.write(_FRAME.pack(kind, len(payload)))
    pipe.write(payload)
    pipe.flush()


def _receive(pipe: IO[bytes], deadline_s: float) -> tuple[bytes, bytes]:
    kind, size = _FRAME.unpack(_read_exactly(pipe, _FRAME.size, deadline_s))
    return kind, _read_exactly(pipe, size, deadline_s)


def _read_exactly(pipe: IO[bytes], size: int, deadline_s: float) -> bytes:
    parts = []
    while size:
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline_s - time.monotonic()))
        if not ready:
            raise DecoderTimeoutError("the decoder gave no answer in time")
        part = pipe.read(min(size, 2**20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


_decoders: dict[Limits, Decoder] = {}


def decoder(limits: Limits) -> Decoder:
    """Return this process's decoder, which serves one task after the other."""
    return _decoders.setdefault(limits, Decoder(limits))
