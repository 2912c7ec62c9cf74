"""Checkpoints: one file per save with everything that the rest of the run depends on.

Student, teacher, heads, mask token, centre, optimiser, steps made and the stream's state. There is no random state to
save: every draw is keyed. The centre's update is applied within its step, so nothing is pending between steps.

A file's name holds the CRC-32C of its bytes and appears only when all of them are on the disk or in the store. So there
is no half a checkpoint, whenever the process dies, and one that was damaged later is found out before it is used.

Cost: writing takes no memory beside the tensors, and reading none beside those it returns; a run in a bucket needs a
checkpoint's size on the scratch disk (TMPDIR) for both.
"""

import errno
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, cast

import google_crc32c
import torch
from torch import Tensor

from shards import storage
from shards.errors import UserError

FORMAT = "pera-checkpoint"
FORMAT_VERSION = 3
_NAME = re.compile(r"step_(\d{8})(?:-([0-9a-f]{8}))?\.pt")
_PIECE_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands."""

    step: int = 0
    """Optimiser steps made."""
    samples: int = 0
    """Samples consumed, over all ranks."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a run goes on from; holds tensors and plain values alone."""

    step: int
    """Optimiser steps made."""
    model: dict[str, Tensor]
    """Of all of it, as `state_dict` gives it."""
    optimiser: dict[str, Any]
    """Its moments, as `state_dict` gives them."""
    stream: dict[str, Any]
    """Where the stream stands: at the samples of these steps, however many were read ahead."""
    record: dict[str, Any]
    """What this belongs to: configuration and its digest, versions; what data, says `stream`."""


FIELDS = tuple(field.name for field in fields(Checkpoint))


class DamagedCheckpointError(RuntimeError):
    """A checkpoint's bytes are not those that were written; the message names it and what is wrong."""


def checkpoints_url(run: str) -> str:
    """Return the folder of a run's checkpoints."""
    return storage.join(run, "checkpoints")


def list_checkpoints(run: str) -> dict[int, str]:
    """Return the URLs of a run's checkpoints by step, ascending; some may turn out to be damaged."""
    return dict(_list_all(run))


def _list_all(run: str) -> list[tuple[int, str]]:
    """List (step, URL), ascending: of one step there may be a damaged file and the one that was made instead."""
    folder = checkpoints_url(run)
    if not storage.exists(folder):
        return []
    names = [info.path for info in storage.list_files(folder)]
    return [(int(match[1]), storage.join(folder, match[0])) for match in map(_NAME.fullmatch, names) if match]


def _parse(url: str) -> re.Match[str]:
    match = _NAME.fullmatch(url.rpartition("/")[2])
    assert match, url
    return match


def write_checkpoint(run: str, checkpoint: Checkpoint) -> str:
    """Write a checkpoint, which appears when it is whole, and return its URL.

    Raises:
        OSError: the disk is full, or not writable; nothing is left of it.
        StorageError: the store kept failing.
    """
    folder = checkpoints_url(run)
    content = {name: getattr(checkpoint, name) for name in FIELDS}
    with storage.spooled(folder) as path:
        with path.open("wb") as file:
            crc32c = _save({"format": FORMAT, "format_version": FORMAT_VERSION, **content}, file)
        url = storage.join(folder, f"step_{checkpoint.step:08d}-{crc32c:08x}.pt")
        storage.put_file(path, url)
    return url


def _save(content: dict[str, Any], file: BinaryIO) -> int:
    sink = _Sink(file)
    try:
        # It calls write and flush alone, whatever its types ask for.
        torch.save(content, cast(BinaryIO, sink))
    except RuntimeError as error:
        # torch closes its archive even so, and hides what went wrong behind its own complaint about that.
        if sink.error is None:
            raise
        raise sink.error from error
    return sink.crc32c


class _Sink:
    """What torch.save needs of a file; computes the checksum on the way and remembers the disk's error."""

    def __init__(self, file: BinaryIO) -> None:
        self.crc32c = 0
        self.error: OSError | None = None
        self._file = file

    def write(self, data: Any) -> int:
        view = memoryview(data)
        try:
            # In pieces: the checksum wants a copy, and keeps other threads waiting while it is computed.
            for begin in range(0, len(view), _PIECE_BYTES):
                piece = bytes(view[begin : begin + _PIECE_BYTES])
                self.crc32c = google_crc32c.extend(self.crc32c, piece)
                self._file.write(piece)
        except OSError as error:
            self.error = error
            raise
        return len(view)

    def flush(self) -> None:
        self._file.flush()


def load_newest(run: str) -> tuple[Checkpoint, str] | None:
    """Read the newest checkpoint that is whole; return it and its URL, or None where there are none.

    Damaged ones before it are named on stderr, and what the run goes on from instead.

    Raises:
        UserError: there are some, and all are damaged; or one is of another format.
        StorageError: the store kept failing.
    """
    damaged: list[str] = []
    for step, url in reversed(_list_all(run)):
        try:
            checkpoint = read_checkpoint(url)
        except DamagedCheckpointError as error:
            damaged.append(str(error))
            continue
        if damaged:
            print(f"pretrain: {'; '.join(damaged)}: going on from step {step}", file=sys.stderr, flush=True)
        return checkpoint, url
    if damaged:
        raise UserError(
            f"no checkpoint of {run} is whole ({'; '.join(damaged)}): bring one back from a copy, or delete "
            f"{checkpoints_url(run)} to begin again at step 0"
        )
    return None


def read_checkpoint(url: str) -> Checkpoint:
    """Read one checkpoint, onto the CPU, once its bytes have been compared with its name.

    Raises:
        DamagedCheckpointError: they differ, or the disk fails to give them.
        UserError: it is of a format that this code does not know.
        FileNotFoundError: it is not there.
        StorageError: the store kept failing.
    """
    crc32c = _parse(url)[2]
    if crc32c is None:
        raise _other_format(url, "an earlier format")
    with storage.local_copy(url) as path:
        content = _load(url, path, int(crc32c, 16))
    if (content["format"], content["format_version"]) != (FORMAT, FORMAT_VERSION):
        raise _other_format(url, f"format {content['format']} {content['format_version']}")
    return Checkpoint(**{name: content[name] for name in FIELDS})


def _load(url: str, path: Path, crc32c: int) -> dict[str, Any]:
    """Return a file's content if it has this checksum; it is read twice, the second time from the system's cache."""
    try:
        with path.open("rb") as file:
            found = 0
            for piece in iter(lambda: file.read(_PIECE_BYTES), b""):
                found = google_crc32c.extend(found, piece)
            if found != crc32c:
                told = f"{url} is damaged (its {file.tell()} bytes have the checksum {found:08x})"
                raise DamagedCheckpointError(told)
            file.seek(0)
            # weights_only: a checkpoint from elsewhere cannot run code here.
            content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            return content
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise DamagedCheckpointError(f"{url} is damaged (the disk cannot read it)") from error


def _other_format(url: str, found: str) -> UserError:
    return UserError(
        f"{url} has {found}, but this code reads {FORMAT} {FORMAT_VERSION}: go on with the version of this package "
        "that wrote it, or choose another --run"
    )


def to_remove(steps: list[int], *, saved: int, keep_last: int, keep_every_steps: int | None) -> list[int]:
    """Return the steps whose checkpoints are not kept, ascending.

    Kept are the newest up to the one just saved, and those at multiples of `keep_every_steps`. Later ones than that
    exist only where a run went on from an earlier one because they were damaged; they are not kept (see also `later`).

    Args:
        steps: of the checkpoints that there are, each once.
        saved: the step of the one just written.
        keep_last: how many of the newest to keep, at least 1.
        keep_every_steps: None keeps none but the newest.
    """
    assert keep_last >= 1, keep_last
    made = sorted(step for step in steps if step <= saved)
    kept = set(made[-keep_last:])
    if keep_every_steps is not None:
        kept |= {step for step in made if step % keep_every_steps == 0}
    return sorted(set(steps) - kept)


def later(run: str, step: int) -> frozenset[str]:
    """Return the URLs of checkpoints after a step; where a run goes on from it, they are damaged: see `load_newest`."""
    return frozenset(url for each, url in _list_all(run) if each > step)


def remove_outdated(
    run: str, saved_url: str, *, keep_last: int, keep_every_steps: int | None, damaged: Collection[str] = ()
) -> None:
    """Delete the checkpoints that are not kept (see `to_remove`), and damaged ones, whose steps are made again.

    Args:
        run: URL of the run.
        saved_url: of the checkpoint just written; others of its step are damaged.
        keep_last: see `to_remove`.
        keep_every_steps: see `to_remove`.
        damaged: URLs, which do not count as kept.

    Raises:
        OSError: the listing or a removal failed; what is left goes with a later call.
    """
    found, saved = _list_all(run), int(_parse(saved_url)[1])
    steps = sorted({step for step, url in found if url not in damaged})
    doomed = set(to_remove(steps, saved=saved, keep_last=keep_last, keep_every_steps=keep_every_steps))
    for step, url in found:
        if step in doomed or url in damaged or (step == saved and url != saved_url):
            storage.remove(url)
