"""The rim to storage: every byte that a stage reads or writes outside its own memory passes here.

A URL is anything fsspec understands; without a scheme it is a local path. Local writes go to a temporary
name beside the target, are synced and renamed, so that a reader never sees half a file. Object stores do
the same by nature (a PUT is atomic). `create_bytes` never overwrites: it is what makes a version exist.
"""

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from shards.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """One stored file as a listing shows it."""

    path: str
    """Path relative to the listed root, "/" as separator."""
    size: int
    """Bytes."""
    etag: str
    """ETag of the store, or `mtime-<nanoseconds>` of a local file: changes when the content may have."""


def filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec filesystem and the path inside it.

    Raises:
        UserError: the URL's scheme is unknown or its driver is not installed.
    """
    if not url:
        raise UserError("an empty path was given: name a folder or URL")
    if is_local(url):
        # Not by url_to_fs: it would take "::" in a file's name for a chain of URLs.
        fs = LocalFileSystem()
        return fs, fs._strip_protocol(url)
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UserError(f"cannot open {url!r}: {error}") from error
    if not path.strip("/"):
        raise UserError(f"{url!r} names no bucket: write, say, s3://bucket/folder")
    return fs, path


def is_local(url: str) -> bool:
    """Say whether the URL is a path on this machine (by its scheme alone: no driver is loaded)."""
    return "://" not in url or url.startswith(("file://", "local://"))


def local_path(url: str) -> Path:
    """Return the local path of a local URL."""
    fs, path = filesystem(url)
    assert isinstance(fs, LocalFileSystem), url
    return Path(path)


def join(root: str, *parts: str) -> str:
    """Join URL parts with "/"; a part that is itself absolute (has a scheme or starts with "/") replaces the root."""
    for part in parts:
        root = part if "://" in part or part.startswith("/") else f"{root.rstrip('/')}/{part}"
    return root


def child(root: str, relative: str) -> str:
    """Return the URL of a listed path below its root; unlike `join` it never leaves the root."""
    return f"{root.rstrip('/')}/{relative}"


@contextlib.contextmanager
def user_errors(url: str) -> Iterator[None]:
    """Turn what a wrong URL or missing permission raises into one clear line.

    Only faults that no retry would mend are translated: everything else is left as it is.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{url} does not exist: check the path or bucket") from error
    except PermissionError as error:
        raise UserError(f"no permission for {url}: check its mode or your credentials ({error})") from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"{url} is not of the expected kind: {error}") from error
    except Exception as error:
        # botocore's classes are not imported for this: local use must not pay for them.
        if type(error).__name__ in {"NoCredentialsError", "EndpointConnectionError", "ParamValidationError"}:
            raise UserError(f"cannot reach {url}: {error}") from error
        raise


def exists(url: str) -> bool:
    """Say whether a file or folder is there (asks the store, not a cached listing)."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    return bool(fs.exists(path))


def read_bytes(url: str) -> bytes:
    """Read a whole file."""
    fs, path = filesystem(url)
    return bytes(fs.cat_file(path))


def read_range(url: str, offset: int, size: int) -> bytes:
    """Read `size` bytes from `offset`; fewer only where the file ends before."""
    fs, path = filesystem(url)
    try:
        return bytes(fs.cat_file(path, start=offset, end=offset + size))
    except OSError as error:
        if _answer_code(error) == "InvalidRange":  # S3 refuses a range that begins at or after the end
            return b""
        raise


def write_bytes(url: str, data: bytes) -> None:
    """Write a whole file atomically, replacing what was there."""
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        with _written_beside(Path(path), data) as temporary:
            temporary.replace(path)
        _sync_folder(Path(path).parent)
    else:
        fs.pipe_file(path, data)


def create_bytes(url: str, data: bytes) -> bool:
    """Write a file only if nothing is there; return False, and leave it alone, if something is.

    On S3 this is a conditional PUT (`If-None-Match: *`), locally a hard link: both have one winner however
    many race. An answer lost on the way looks like a conflict with ourselves: the caller compares content.
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
    try:
        fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    except OSError as error:
        # s3fs calls it FileExistsError only where the server's answer names the condition; some do not.
        if _answer_code(error) in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
            return False
        raise
    return True


def put_file(source: Path, url: str) -> None:
    """Copy a local file to a URL atomically (renamed when both lie on one local disk: the source is consumed)."""
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        target = Path(path)
        with _temporary_beside(target) as (temporary, file):
            file.close()
            shutil.move(source, temporary)
            with temporary.open("rb") as moved:
                os.fsync(moved.fileno())
            temporary.replace(target)
        _sync_folder(target.parent)
    else:
        fs.put_file(str(source), path)


def remove(url: str) -> None:
    """Delete one file; a missing one is no error."""
    fs, path = filesystem(url)
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


def remove_folder(url: str) -> None:
    """Delete a folder with all its files; a missing one is no error."""
    fs, path = filesystem(url)
    with contextlib.suppress(FileNotFoundError):
        fs.rm(path, recursive=True)


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


def list_files(url: str) -> list[FileInfo]:
    """List all files below a folder or prefix, sorted by path; hidden names (starting with ".") are left out.

    Raises:
        UserError: there is no such folder, bucket or permission.
    """
    fs, root = filesystem(url)
    fs.invalidate_cache()
    with user_errors(url):
        if isinstance(fs, LocalFileSystem):
            return _list_local(Path(root))
        found = fs.find(root, detail=True)
        if not found and not fs.exists(root):
            raise FileNotFoundError(root)
    prefix = root.rstrip("/") + "/"
    infos = [
        FileInfo(path=name.removeprefix(prefix), size=int(info["size"]), etag=_etag(info))
        for name, info in found.items()
        if info["type"] == "file" and name.startswith(prefix)
    ]
    visible = [info for info in infos if not any(part.startswith(".") for part in info.path.split("/"))]
    return sorted(visible, key=lambda info: info.path)


def _list_local(root: Path) -> list[FileInfo]:
    if not root.is_dir():
        raise (FileNotFoundError(root) if not root.exists() else NotADirectoryError(f"{root} is a file, not a folder"))
    infos = []

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(root, onerror=refuse):
        visible = [name for name in folders if not name.startswith(".")]
        links = [name for name in visible if Path(folder, name).is_symlink()]
        folders[:] = sorted(set(visible) - set(links))
        # Links to folders are not followed (they may turn in a circle), but they stand in the list.
        for name in [*links, *(name for name in names if not name.startswith("."))]:
            path = Path(folder, name)
            infos.append(_local_info(path, path.relative_to(root).as_posix()))
    return sorted(infos, key=lambda info: info.path)


def stat(url: str) -> FileInfo:
    """Return size and ETag of one file as a listing shows them, `path` being the URL.

    Raises:
        FileNotFoundError: it is not there.
    """
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        return _local_info(Path(path), url)
    fs.invalidate_cache(path)
    info = fs.info(path)
    return FileInfo(path=url, size=int(info["size"]), etag=_etag(info))


def _local_info(path: Path, name: str) -> FileInfo:
    try:
        found = path.stat()
    except OSError:
        # A dangling or circular link: it must be rejected by name later, not vanish from the list.
        found = path.lstat()
    return FileInfo(path=name, size=found.st_size, etag=f"mtime-{found.st_mtime_ns}")


def _answer_code(error: OSError) -> str:
    """Return the error code in an S3 server's answer, which s3fs keeps as the cause; empty if there is none."""
    answer: dict[str, dict[str, str]] = getattr(error.__cause__, "response", {})
    return answer.get("Error", {}).get("Code", "")


def _etag(info: dict[str, Any]) -> str:
    for name in ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime"):
        if info.get(name):
            return str(info[name]).strip('"')
    return f"size-{info['size']}"


@contextlib.contextmanager
def _temporary_beside(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
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
    with _temporary_beside(target) as (temporary, file):
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
