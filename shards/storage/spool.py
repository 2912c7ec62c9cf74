"""Large files in and out of storage by way of a local disk: no more than a piece of them is ever in memory.

A file is written to a disk first and becomes visible at once, under a name that may depend on what was written. Cost:
for a local folder nothing, as the file lies on its disk and is renamed; for a store, the file's size on the scratch
disk (TMPDIR) for as long as it is on its way.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.storage.listing import stat
from shards.storage.reading import fetch
from shards.storage.retry import retrying
from shards.storage.scratch import remove_left_scratch, scratch_folder
from shards.storage.urls import child, filesystem, is_local, is_s3, local_path
from shards.storage.writing import temporary_beside

_KIND = "spool"


@contextlib.contextmanager
def spooled(folder: str) -> Iterator[Path]:
    """Yield a new local file, to be filled and given to `put_file` with a URL in this folder; gone afterwards.

    Raises:
        OSError: the disk is full, or not writable.
    """
    if is_local(folder):
        with temporary_beside(local_path(folder) / _KIND) as (path, file):
            file.close()
            yield path
    else:
        with _scratch_file() as path:
            yield path


@contextlib.contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """Yield a local file with a stored one's content: itself where it is local, else a copy that is gone afterwards.

    Raises:
        FileNotFoundError: it is not there.
        SourceChangedError: it was replaced or removed meanwhile.
        StorageError: the store kept failing.
        OSError: the scratch disk is full, or not writable.
    """
    if is_local(url):
        yield local_path(url)
        return
    info = stat(url)
    with _scratch_file() as path:
        fetch(url, path, size=info.size, etag=info.etag)
        yield path


@contextlib.contextmanager
def _scratch_file() -> Iterator[Path]:
    remove_left_scratch(_KIND)
    with scratch_folder(_KIND) as folder:
        path = folder / "file"
        path.touch()
        yield path


def remove_unfinished(folder: str) -> None:
    """Remove what killed writers left in a folder: hidden temporary files, parts of uploads never completed.

    Only for a folder with one writer: what another one has on its way goes, too. A store that does not let us see such
    uploads, or knows none, is left alone; there a rule of the bucket should end uploads after some days.

    Raises:
        StorageError: the store kept failing.
    """
    if is_local(folder):
        _, path = filesystem(folder)
        for left in Path(path).glob(".*.tmp"):
            left.unlink(missing_ok=True)
    else:
        with contextlib.suppress(PermissionError):
            for upload in list_uploads(folder):
                end_upload(folder, upload)


@dataclass(frozen=True, kw_only=True)
class Upload:
    """Parts of a file on its way into a store; who began it may be dead."""

    path: str
    """Of the file to be, relative to the folder."""
    begun_s: float | None
    """POSIX seconds; None: the store does not tell."""
    upload_id: str


def list_uploads(folder: str) -> list[Upload]:
    """Return the uploads below a folder that were begun and neither completed nor ended, in the store's order.

    None where uploads are no matter of the store, and where it does not let us see them.

    Raises:
        StorageError: the store kept failing.
    """
    fs, path = filesystem(folder)
    if not is_s3(fs):
        return []
    with contextlib.suppress(PermissionError, NotImplementedError):
        return list(_iter_uploads(fs, folder, path))
    return []


def _iter_uploads(fs: Any, url: str, path: str) -> Iterator[Upload]:
    bucket, _, key = path.partition("/")
    prefix = key.rstrip("/") + "/" if key else ""
    query: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
    while True:
        page = retrying(url, lambda: fs.call_s3("list_multipart_uploads", **query))
        for found in page.get("Uploads") or []:
            if found["Key"].startswith(prefix):
                begun = found.get("Initiated")
                yield Upload(
                    path=found["Key"].removeprefix(prefix),
                    begun_s=begun.timestamp() if begun else None,
                    upload_id=found["UploadId"],
                )
        # SeaweedFS says that there are more, but not where: the next call shows them, once these are ended.
        if not page.get("IsTruncated") or not page.get("NextKeyMarker"):
            return
        query.update(KeyMarker=page["NextKeyMarker"], UploadIdMarker=page.get("NextUploadIdMarker", ""))


def end_upload(folder: str, upload: Upload) -> None:
    """Have the store throw away the parts of an upload; one that is gone is no error.

    Raises:
        StorageError: the store kept failing.
    """
    fs, path = filesystem(child(folder, upload.path))
    bucket, _, key = path.partition("/")

    def abort() -> None:
        # Not there any more: the reply to an earlier try was lost, or its writer completed it. Not around all tries:
        # its code, NoSuchUpload, is that of a fault that passes.
        with contextlib.suppress(FileNotFoundError):
            fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload.upload_id)

    retrying(folder, abort)
