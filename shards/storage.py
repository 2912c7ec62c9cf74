"""The rim to storage: every byte that a stage reads or writes outside its own memory passes here.

A URL is anything fsspec understands; without a scheme it is a local path. Local writes go to a temporary
name beside the target, are synced and renamed, so that a reader never sees half a file. Object stores do
the same by nature (a PUT is atomic). `create_bytes` never overwrites: it is what makes a version exist.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UserError(f"cannot open {url!r}: {error}") from error
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
        temporary = _write_temporary(Path(path), data)
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
        temporary = _write_temporary(Path(path), data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
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
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        shutil.move(source, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
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
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if name.startswith("."):
                continue
            path = Path(folder, name)
            # lstat keeps a dangling link in the list: it must be rejected by name, not vanish.
            stat = path.stat() if path.exists() else path.lstat()
            relative = path.relative_to(root).as_posix()
            infos.append(FileInfo(path=relative, size=stat.st_size, etag=f"mtime-{stat.st_mtime_ns}"))
    return sorted(infos, key=lambda info: info.path)


def _answer_code(error: OSError) -> str:
    """Return the error code in an S3 server's answer, which s3fs keeps as the cause; empty if there is none."""
    answer: dict[str, dict[str, str]] = getattr(error.__cause__, "response", {})
    return answer.get("Error", {}).get("Code", "")


def _etag(info: dict[str, Any]) -> str:
    for name in ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime"):
        if info.get(name):
            return str(info[name]).strip('"')
    return f"size-{info['size']}"


def _write_temporary(target: Path, data: bytes) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:80]}.", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
    except BaseException:
        Path(name).unlink()
        raise
    return Path(name)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
