"""The rim to storage: every byte that a stage reads or writes outside its own memory passes here.

A URL is anything fsspec understands; without a scheme it is a local path. One file per question: `urls` (what a URL
means), `listing` (what is there), `reading` (bytes out), `writing` (bytes in), `spool` (large files), `zips` (archives
as folders), `retry` (faults: every call to a store is retried until a deadline, then raises `StorageError`), `scratch`
(folders on the local disk). What other rooms use stands below.
"""

from shards.storage.listing import FileInfo, iter_files, list_files, stat
from shards.storage.reading import (
    SourceChangedError,
    exists,
    fetch,
    in_order,
    read_bytes,
    read_range,
    read_ranges,
    traffic,
)
from shards.storage.retry import StorageError, retries
from shards.storage.spool import Upload, end_upload, list_uploads, local_copy, remove_unfinished, spooled
from shards.storage.urls import child, filesystem, is_local, join, local_path, user_errors
from shards.storage.writing import (
    create_bytes,
    creates_only,
    put_file,
    remove,
    remove_empty_folder,
    remove_folder,
    require_writable,
    write_bytes,
)
from shards.storage.zips import fetch_member, list_zip, stat_member

__all__ = [
    "FileInfo",
    "SourceChangedError",
    "StorageError",
    "Upload",
    "child",
    "create_bytes",
    "creates_only",
    "end_upload",
    "exists",
    "fetch",
    "fetch_member",
    "filesystem",
    "in_order",
    "is_local",
    "iter_files",
    "join",
    "list_files",
    "list_uploads",
    "list_zip",
    "local_copy",
    "local_path",
    "put_file",
    "read_bytes",
    "read_range",
    "read_ranges",
    "remove",
    "remove_empty_folder",
    "remove_folder",
    "remove_unfinished",
    "require_writable",
    "retries",
    "spooled",
    "stat",
    "stat_member",
    "traffic",
    "user_errors",
    "write_bytes",
]
