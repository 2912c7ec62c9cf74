"""Files that several processes need and one of them makes.

A file is made under its name with ".part" behind it, locked meanwhile, and renamed when it is whole. Who comes second
waits for the lock. If the maker is killed its lock is free, and the next one begins anew: nothing has to be cleaned
up, whoever dies at whatever moment. Needs a file system with flock, as local ones are. Cost: 20 µs per file.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_SUFFIX = ".part"


def lock_part(path: Path, *, wait: bool) -> int | None:
    """Begin to make a file: return a descriptor of its part, locked until that is closed.

    Returns:
        None if somebody else is making it (after the wait: has made it, or has given up).

    Raises:
        OSError: the folder is gone, cannot be written, or knows no locks.
    """
    part_path = _part(path)
    part = os.open(part_path, os.O_RDWR | os.O_CREAT, 0o600)
    with _closed_on_failure(part):
        if _locked(part, wait) and is_at(part, part_path):
            if not path.exists():
                os.ftruncate(part, 0)
                return part
            part_path.unlink()
    os.close(part)
    return None


def complete(path: Path) -> None:
    """Give a part that is whole its lasting name; who waited for the lock finds it there."""
    _part(path).rename(path)


def give_up(path: Path) -> None:
    """Remove a part; its maker still holds the lock."""
    _part(path).unlink(missing_ok=True)


def made_name(name: str) -> str:
    """Return the lasting name of a file or part in a listing."""
    return name.removesuffix(_SUFFIX)


def remove(path: Path) -> None:
    """Remove a file or part that a listing showed; a part that is being made stays."""
    if path.suffix != _SUFFIX:
        path.unlink(missing_ok=True)
    elif (part := lock_part(path.with_suffix(""), wait=False)) is not None:
        path.unlink(missing_ok=True)
        os.close(part)


def _part(path: Path) -> Path:
    return path.with_suffix(_SUFFIX)


def _locked(descriptor: int, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Say whether an open file still has this name: its maker may have renamed or removed it while we waited."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _closed_on_failure(descriptor: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(descriptor)
        raise
