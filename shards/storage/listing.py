"""Which files there are: listings that hold one folder's names, or one page of a bucket, at a time.

A listing is a function of what is there: on a disk it comes in order of the path (by code point), from a bucket
in the store's own order (of AWS and most others the same one; some sort folder by folder). Cost: on S3 one
request per 1000 objects and no more memory than such a page; elsewhere one listing per folder, and the names
in the folders on the way down (about 100 bytes each) in memory.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from shards.storage.retry import retrying
from shards.storage.urls import filesystem, is_s3, user_errors


@dataclass(frozen=True, kw_only=True, slots=True)
class FileInfo:
    """One stored file as a listing shows it."""

    path: str
    """Path relative to the listed root, "/" as separator."""
    size: int
    """Bytes."""
    etag: str
    """ETag of the store, or `mtime-<nanoseconds>` of a local file: changes when the content may have."""
    modified_s: float | None = None
    """When it was last modified, POSIX seconds by the store's clock; None if the store does not say."""


def list_files(url: str, *, hidden: bool = False) -> list[FileInfo]:
    """List all files below a folder or prefix, sorted by path; hidden names (starting with ".") are left out.

    Raises:
        UserError: there is no such folder, bucket or permission.
    """
    return sorted(iter_files(url, hidden=hidden), key=lambda info: info.path)


def iter_files(url: str, *, hidden: bool = False) -> Iterator[FileInfo]:
    """Yield all files below a folder or prefix in a fixed order (see the module), without holding them all.

    Links to local folders are not followed (they may turn in a circle), but they stand in the list, as do
    links that lead nowhere. What vanishes during the listing is left out.

    Args:
        url: folder or prefix.
        hidden: also yield files of which some part of the path starts with ".".

    Raises:
        UserError: there is no such folder, bucket or permission (at the first step).
        StorageError: the store kept failing.
    """
    fs, root = filesystem(url)
    fs.invalidate_cache()
    with user_errors(url):
        if isinstance(fs, LocalFileSystem):
            found = _iter_local(root)
        elif is_s3(fs):
            found = _iter_pages(fs, url, root)
        else:
            found = _iter_folders(fs, url, root)
        for info in found:
            if hidden or "/." not in f"/{info.path}":
                yield info


def _iter_local(root: str) -> Iterator[FileInfo]:
    if not Path(root).is_dir():
        missing = not Path(root).exists()
        raise FileNotFoundError(root) if missing else NotADirectoryError(f"{root} is a file, not a folder")
    prefix = root.rstrip("/") + "/"
    # Paths below the root, folders with a final "/"; a stack, as folders may be nested deeper than Python's calls.
    waiting = [_local_names(prefix, "")]
    while waiting:
        path = next(waiting[-1], None)
        if path is None:
            waiting.pop()
        elif path.endswith("/"):
            waiting.append(_local_names(prefix, path))
        elif (info := _local_info(prefix + path, path)) is not None:
            yield info


def _local_names(prefix: str, folder: str) -> Iterator[str]:
    try:
        with os.scandir(prefix + folder) as entries:
            names = [entry.name + "/" * entry.is_dir(follow_symlinks=False) for entry in entries]
    except FileNotFoundError:
        return
    # Sorted with the "/": so a whole walk is in the order of the paths.
    for name in sorted(names):
        yield folder + name


def _local_info(path: str, name: str) -> FileInfo | None:
    """Stat a local file; a dangling or circular link itself (to be rejected by name later); None if it is gone."""
    for follow in (True, False):
        try:
            found = Path(path).stat(follow_symlinks=follow)
        except OSError:
            if not os.path.lexists(path):
                return None
            if not follow:
                raise
        else:
            etag = f"mtime-{found.st_mtime_ns}"
            return FileInfo(path=name, size=found.st_size, etag=etag, modified_s=found.st_mtime_ns / 1e9)
    raise AssertionError(path)


def _iter_pages(fs: Any, url: str, root: str) -> Iterator[FileInfo]:
    bucket, _, key = root.partition("/")
    prefix = key.rstrip("/") + "/" if key else ""
    query: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
    empty = True
    while True:
        page = retrying(url, lambda: fs.call_s3("list_objects_v2", **query))
        for item in page.get("Contents", []):
            empty = False
            # A name that ends with "/" and has no content is how consoles and SeaweedFS show a folder.
            if item["Size"] or not item["Key"].endswith("/"):
                yield _remote_info(item["Key"].removeprefix(prefix), {**item, "size": item["Size"]})
        if not page.get("IsTruncated"):
            break
        query["ContinuationToken"] = page["NextContinuationToken"]
    if empty:
        _require_folder(fs, url, root)


def _iter_folders(fs: Any, url: str, root: str) -> Iterator[FileInfo]:
    _require_folder(fs, url, root)
    prefix = root.rstrip("/") + "/"
    waiting = [_folder_infos(fs, url, prefix)]
    while waiting:
        info = next(waiting[-1], None)
        if info is None:
            waiting.pop()
        elif info["type"] == "directory":
            waiting.append(_folder_infos(fs, url, info["name"].rstrip("/") + "/"))
        else:
            yield _remote_info(info["name"].removeprefix(prefix), info)


def _folder_infos(fs: Any, url: str, folder: str) -> Iterator[dict[str, Any]]:
    found = retrying(url, lambda: fs.ls(folder.rstrip("/"), detail=True))
    fs.invalidate_cache()
    inside = [info for info in found if info["name"].rstrip("/").startswith(folder)]
    yield from sorted(inside, key=lambda info: info["name"].rstrip("/") + "/" * (info["type"] == "directory"))


def _require_folder(fs: Any, url: str, root: str) -> None:
    if retrying(url, lambda: fs.info(root))["type"] != "directory" and not retrying(url, lambda: fs.isdir(root)):
        raise NotADirectoryError(f"{root} is a file, not a folder")


def stat(url: str) -> FileInfo:
    """Return size and ETag of one file as a listing shows them, `path` being the URL; asks the store, not a cache.

    Raises:
        FileNotFoundError: it is not there.
        StorageError: the store kept failing.
    """
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        found = _local_info(path, url)
        if found is None:
            raise FileNotFoundError(f"{url} is not there")
        return found
    fs.invalidate_cache(path)
    info = retrying(url, lambda: fs.info(path))
    if info["type"] == "directory":
        raise FileNotFoundError(f"{url} is a folder, not a file")
    return _remote_info(url, info)


def _remote_info(path: str, info: dict[str, Any]) -> FileInfo:
    if info.get("size") is None:
        raise OSError(f"{path}: its server does not tell its size")
    return FileInfo(path=path, size=int(info["size"]), etag=_etag(info), modified_s=_modified_s(info))


def _etag(info: dict[str, Any]) -> str:
    for name in ("ETag", "etag", "md5Hash", "LastModified", "Last-Modified", "last_modified", "mtime"):
        if info.get(name):
            return str(info[name]).strip('"')
    return f"size-{info['size']}"


def _modified_s(info: dict[str, Any]) -> float | None:
    for name in ("LastModified", "last_modified", "updated", "mtime", "created"):
        value = info.get(name)
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                continue
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return None
