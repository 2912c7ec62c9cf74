"""Folders on the local disk for what a process works on: they go with it, also when it was killed.

Who is killed -9 leaves its folder behind. A folder is locked for as long as its maker lives, so that the next one of
the same kind can tell what is left over, and removes it: one listing of the parent folder.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def scratch_folder(kind: str, parent: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder `pera-KIND-…`, removed in the end.

    Args:
        kind: what it is for: who makes one removes those that were left over, of this kind alone.
        parent: where; the temporary folder (TMPDIR) by default.

    Raises:
        OSError: the parent is missing, full, or not writable.
    """
    # Under its lasting name only once it is locked: else it might be taken for left over.
    fresh = Path(tempfile.mkdtemp(prefix=f".pera-{kind}-", dir=parent))
    folder = fresh.with_name(fresh.name.removeprefix("."))
    lock = os.open(fresh, os.O_RDONLY)
    try:
        _lock(lock)
        fresh.rename(folder)
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


def remove_left_scratch(kind: str, parent: Path | None = None) -> None:
    """Remove the folders of this kind of processes that were killed on this machine."""
    parent = parent or Path(tempfile.gettempdir())
    # Names alone: a temporary folder may hold thousands, and each group of an ingest looks.
    with os.scandir(parent) as entries:
        folders = [Path(entry.path) for entry in entries if entry.name.startswith(f"pera-{kind}-")]
    for folder in folders:
        # Gone meanwhile, another user's, a file or a link: not ours.
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if _lock(lock):
                    _remove(folder)
            finally:
                os.close(lock)


def _remove(folder: Path) -> None:
    # Renamed first: whoever still works in it makes no new files there, which would keep it from going.
    gone = folder.with_name(f"{folder.name}.gone")
    with contextlib.suppress(OSError):
        folder = folder.rename(gone)
    shutil.rmtree(folder, ignore_errors=True)


def _lock(folder: int) -> bool:
    """Lock an open folder until it is closed; return False if somebody else has, or the file system knows no locks."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_disk_full(error: OSError) -> bool:
    """Say whether a local disk or quota is full, or a file may not grow."""
    return error.errno in _FULL


@contextlib.contextmanager
def disk_full_told(*folders: Path) -> Iterator[None]:
    """Add to the error of a full disk, which names no place, what is free in these folders.

    Raises:
        OSError: of the same kind, with the remedy.
    """
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        told = ", ".join(f"{folder} has {shutil.disk_usage(folder).free / 1e6:.1f} MB free" for folder in folders)
        raise OSError(error.errno, f"{error.strerror}: {told} (TMPDIR names the folder for scratch)") from error
