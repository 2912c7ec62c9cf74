"""Large files in and out of storage by way of a local disk: no more than a piece of them is ever in memory.

A file is written to a disk first and becomes visible at once, under a name that may depend on what was written. Cost:
for a local folder nothing, as the file lies on its disk and is renamed; for a store, the file's size on the scratch
disk (TMPDIR) for as long as it is on its way.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from shards.storage.listing import stat
from shards.storage.reading import fetch
from shards.storage.retry import retrying
from shards.storage.scratch import remove_left_scratch, scratch_folder
from shards.storage.urls import filesystem, is_local, is_s3, local_path
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
    fs, path = filesystem(folder)
    if is_local(folder):
        for left in Path(path).glob(".*.tmp"):
            left.unlink(missing_ok=True)
    elif is_s3(fs):
        with contextlib.suppress(PermissionError, NotImplementedError):
            _abort_uploads(fs, folder, path)


def _abort_uploads(fs: Any, url: str, path: str) -> None:
    bucket, _, key = path.partition("/")
    prefix = key.rstrip("/") + "/"
    # One page, 1000 uploads: a writer leaves one behind.
    page = retrying(url, lambda: fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix))
    for upload in page.get("Uploads") or []:
        if upload["Key"].startswith(prefix):
            retrying(url, partial(_abort, fs, bucket, upload))


def _abort(fs: Any, bucket: str, upload: dict[str, Any]) -> None:
    # Not there any more: the reply to an earlier try was lost.
    with contextlib.suppress(FileNotFoundError):
        fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
