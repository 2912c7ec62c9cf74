"""Bytes into storage: atomically, and once only where that is asked for.

Local writes go to a temporary name beside the target, are synced and renamed, so that a reader never sees half a file.
Object stores do the same by nature (a PUT is atomic). `create_bytes` never overwrites: it makes a version exist.

Cost on an object store: a PUT per write, above 64 MiB one per 32 MiB, of which up to 4 are in memory.
"""

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fsspec.implementations.local import LocalFileSystem

from shards.errors import UserError
from shards.storage.listing import iter_files
from shards.storage.reading import exists, read_bytes
from shards.storage.retry import StorageError, answer_code, retrying
from shards.storage.urls import child, filesystem, is_local, is_s3, local_path, user_errors

PART_BYTES = 32 * 2**20
"""Of a multipart upload; what is smaller than two goes in one PUT."""
PARTS_AT_ONCE = 4


def _upload_options(fs: Any) -> dict[str, int]:
    # s3fs's own, 10 parts of 50 MiB, would hold half a gigabyte in each worker.
    return {"chunksize": PART_BYTES, "max_concurrency": PARTS_AT_ONCE} if is_s3(fs) else {}


def write_bytes(url: str, data: bytes) -> None:
    """Write a whole file atomically, replacing what was there."""
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        with _written_beside(Path(path), data) as temporary:
            temporary.replace(path)
        _sync_folder(Path(path).parent)
    else:
        retrying(url, lambda: fs.pipe_file(path, data, **_upload_options(fs)))


def create_bytes(url: str, data: bytes) -> bool:
    """Write a file only if nothing is there; return False, and leave it alone, if something is.

    On S3 this is a conditional PUT (`If-None-Match: *`), locally a hard link: both have one winner however
    many race. A reply lost on the way looks like a conflict with ourselves: the retry meets our own object and
    returns False. So False means "something is there", and whoever must know what compares contents.
    Whether a store honours the condition at all: `creates_only`.

    Raises:
        StorageError: the store kept failing; the file may be there or not.
    """
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        with _written_beside(Path(path), data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        _sync_folder(Path(path).parent)
        return True
    return retrying(url, lambda: _create_remote(fs, path, data))


def _create_remote(fs: Any, path: str, data: bytes) -> bool:
    try:
        fs.pipe_file(path, data, mode="create", **_upload_options(fs))
    except FileExistsError:
        return False
    except OSError as error:
        # s3fs calls it FileExistsError only where the server's answer names the condition; some do not.
        if answer_code(error) in ("PreconditionFailed", "412"):
            return False
        raise
    return True


def creates_only(url: str) -> bool:
    """Find out by trying, leaving nothing behind, whether `create_bytes` below a URL never overwrites.

    Some stores ignore the condition and report success, some refuse to know it.

    Raises:
        UserError: no permission, no such bucket.
        StorageError: the store kept failing.
    """
    if is_local(url):
        return True
    probe = child(url, f"create-test-{uuid.uuid4().hex}")
    with user_errors(url):
        try:
            create_bytes(probe, b"first")
            return not create_bytes(probe, b"second") and read_bytes(probe) == b"first"
        except (OSError, NotImplementedError) as error:
            if isinstance(error, NotImplementedError) or answer_code(error) in ("NotImplemented", "501"):
                return False
            raise
        finally:
            remove(probe)


def put_file(source: Path, url: str) -> None:
    """Copy a local file to a URL atomically (renamed when both lie on one local disk: the source is consumed)."""
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        target = Path(path)
        with temporary_beside(target) as (temporary, file):
            file.close()
            shutil.move(source, temporary)
            with temporary.open("rb") as moved:
                os.fsync(moved.fileno())
            temporary.replace(target)
        _sync_folder(target.parent)
    else:
        retrying(url, lambda: fs.put_file(str(source), path, **_upload_options(fs)))


def remove(url: str) -> None:
    """Delete one file; a missing one is no error."""
    fs, path = filesystem(url)
    with contextlib.suppress(FileNotFoundError):
        retrying(url, lambda: fs.rm_file(path))


def remove_folder(url: str) -> None:
    """Delete a folder with all its files; a missing one is no error.

    Raises:
        StorageError: the store kept failing, or did not delete everything.
    """
    fs, path = filesystem(url)
    with contextlib.suppress(FileNotFoundError):
        retrying(url, lambda: fs.rm(path, recursive=True))
    # s3fs is silent on objects that the store did not delete.
    if is_s3(fs) and exists(url) and (left := next(iter_files(url, hidden=True), None)):
        raise StorageError(f"{url}: the store did not delete {left.path}", "server")


def remove_empty_folder(url: str) -> None:
    """Delete a local folder if it is empty; stores have no empty folders."""
    if is_local(url):
        with contextlib.suppress(OSError):
            local_path(url).rmdir()


def require_writable(url: str) -> None:
    """Find out, leaving nothing behind, whether files can be made below a URL.

    Raises:
        UserError: no permission, no such bucket, or a file stands in the way.
    """
    if is_local(url):
        path = local_path(url).absolute()
        nearest = next(folder for folder in [path, *path.parents] if folder.exists())
        if not nearest.is_dir():
            raise UserError(f"{url} cannot be a folder: {nearest} is a file")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise UserError(f"no permission to write {url}: check the mode of {nearest}")
        return
    probe = child(url, f"write-test-{uuid.uuid4().hex}")
    with user_errors(url):
        write_bytes(probe, b"")
        remove(probe)


@contextlib.contextmanager
def temporary_beside(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Open a hidden file with a name of its own in the target's folder; it is gone afterwards unless renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:80]}.", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            Path(name).chmod(0o644)
            yield Path(name), file
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def _written_beside(target: Path, data: bytes) -> Iterator[Path]:
    with temporary_beside(target) as (temporary, file):
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        yield temporary


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
