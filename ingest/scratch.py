"""Folders on the local disk for what a task works on: they go with it, also when it was killed.

Who is killed -9 leaves its folder behind. A folder is locked for as long as its maker lives, so that the next task on
the machine can tell what is left over, and removes it: one listing of the temporary folder per task.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "pera-ingest-"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty folder in the temporary folder (TMPDIR), removed in the end."""
    # Under its lasting name only once it is locked: else it might be taken for left over.
    fresh = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}"))
    folder = fresh.with_name(fresh.name.removeprefix("."))
    lock = os.open(fresh, os.O_RDONLY)
    try:
        _lock(lock)
        fresh.rename(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_left_scratch() -> None:
    """Remove the folders of tasks that were killed on this machine."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Gone meanwhile, or another user's.
        with contextlib.suppress(FileNotFoundError, PermissionError, NotADirectoryError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if _lock(lock):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


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
