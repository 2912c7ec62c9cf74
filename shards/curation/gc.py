"""Find and remove files of a dataset that nothing names: what crashed or superseded runs left.

A version names its tables and shards; the marker of a finished group (groups/<name>.json), from which a run goes on,
names that group's. Only names of the dataset's own form are ever touched (`is_ours`): a user's folder that happens to
be called shards or plans is safe.

On S3 uploads that a killed writer neither completed nor ended are found, too: no listing shows them, but they cost.

Lists the dataset and such uploads once; reads the shards table of every version and the markers that stay. Memory: the
names of all tables and shards that they name, of these markers, and of the files to remove.
"""

import json
import re
from collections.abc import Iterable, Iterator
from functools import partial

from shards import storage
from shards.errors import UserError
from shards.schema import TABLES
from shards.storage import FileInfo, Upload
from shards.tables import iter_table, list_versions, read_version

FOLDERS = ("shards", "tables", "plans", "probes", "inventories", "index", "groups")
"""Where files that nothing names may be removed; all but the first two are what ingest and index resume from.

Groups come last: a marker that is written during the listing still counts.
"""

_RESUMED_FROM = ("groups/", "probes/", "inventories/")
_LOG = "ingest.jsonl"
_HOUR_S = 3600.0
_READ_AHEAD = 16
_OURS = re.compile(
    r"shards/[0-9a-f]{64}\.tar"
    rf"|tables/({'|'.join(TABLES)})-[0-9a-f]{{32}}\.parquet"
    r"|groups/[0-9a-f]{32}((-samples|-rejects)?\.parquet|\.json)"
    r"|(probes|inventories)/[0-9a-f]{32}\.parquet"
    r"|index/[0-9a-f]{32}\.(parquet|json)"
    r"|plans/[0-9a-f]{16}/.+",  # of an older layout
    re.DOTALL,
)
_MARKER = re.compile(r"groups/([0-9a-f]{32})\.json")
_TEMPORARY = re.compile(r"((?:[^/]+/)+)\.([^/]+)\.[a-z0-9_]{8}\.tmp")  # see storage.write_bytes


def is_ours(path: str) -> bool:
    """Say whether a path relative to a dataset has the form of a file that may be removed if nothing names it.

    That is a shard, a table, or a file that ingest resumes from; also what a killed writer of one of them has left.
    Versions, cards, logs, the recipe and all that is not ours are never among them.
    """
    temporary = _TEMPORARY.fullmatch(path)
    return _OURS.fullmatch("".join(temporary.groups()) if temporary else path) is not None


def find_orphans(url: str, *, min_age_h: float, now_s: float) -> list[FileInfo]:
    """Return the files of our own form that neither a version nor a marker that stays names, sorted by path.

    A marker itself is named by nothing: it stays until it is old enough. While an ingest goes on (a marker or its log
    is young) all that it resumes from stays, however old: it may have begun days ago. Versions and markers are read
    after the listing: what is committed meanwhile keeps its files. A file whose store tells no time counts as new.

    Args:
        url: the dataset.
        min_age_h: hours since the last change; younger files are left alone, a run may still need them.
        now_s: the time, POSIX seconds.

    Raises:
        UserError: there is no dataset, or a version or marker of it cannot be read.
    """
    read_version(url)
    oldest = now_s - min_age_h * _HOUR_S

    def is_old(info: FileInfo) -> bool:
        return min_age_h <= 0 or (info.modified_s is not None and info.modified_s <= oldest)

    found: list[FileInfo] = []
    markers: list[str] = []
    goes_on = storage.exists(log := storage.child(url, _LOG)) and not is_old(storage.stat(log))
    for info in _stored(url):
        if is_old(info):
            found.append(info)
        elif _MARKER.fullmatch(info.path):
            markers.append(info.path)
            goes_on = True
    if goes_on:
        markers += [info.path for info in found if _MARKER.fullmatch(info.path)]
        found = [info for info in found if not info.path.startswith(_RESUMED_FROM)]
    named = {*_named_by_versions(url), *_named_by_markers(url, markers)}
    return [info for info in sorted(found, key=lambda info: info.path) if info.path not in named]


def find_uploads(url: str, *, min_age_h: float, now_s: float) -> list[Upload]:
    """Return the unfinished uploads of files of our own form, sorted by path; none where the store hides them.

    Args:
        url: the dataset.
        min_age_h: hours since they began; younger ones are left alone, and those of which the store tells no time.
        now_s: the time, POSIX seconds.

    Raises:
        StorageError: the store kept failing.
    """
    oldest = now_s - min_age_h * _HOUR_S
    found = [upload for upload in storage.list_uploads(url) if is_ours(upload.path)]
    old = [each for each in found if min_age_h <= 0 or (each.begun_s is not None and each.begun_s <= oldest)]
    return sorted(old, key=lambda upload: (upload.path, upload.upload_id))


def remove_uploads(url: str, uploads: list[Upload]) -> Iterator[Upload]:
    """End uploads one by one, yielding each once its parts are gone.

    Raises:
        StorageError: the store kept failing.
    """
    for upload in uploads:
        storage.end_upload(url, upload)
        yield upload


def remove_orphans(url: str, orphans: list[FileInfo]) -> Iterator[FileInfo]:
    """Remove files one by one, yielding each once it is gone; then the folders that have become empty.

    Markers go first. If one cannot be removed this ends there, so that none ever names what is gone.

    Raises:
        OSError: a file cannot be removed.
    """
    for info in sorted(orphans, key=lambda info: _MARKER.fullmatch(info.path) is None):
        storage.remove(storage.child(url, info.path))
        yield info
    parents = {parent for info in orphans for parent in _parents(info.path)}
    for folder in sorted(parents, reverse=True):
        storage.remove_empty_folder(storage.child(url, folder))


def _stored(url: str) -> Iterator[FileInfo]:
    for folder in FOLDERS:
        below = storage.child(url, folder)
        if storage.exists(below) and not (storage.is_local(below) and storage.local_path(below).is_file()):
            # Hidden ones too: a killed writer leaves its temporary file.
            for info in storage.iter_files(below, hidden=True):
                path = f"{folder}/{info.path}"
                if is_ours(path):
                    yield FileInfo(path=path, size=info.size, etag=info.etag, modified_s=info.modified_s)


def _named_by_versions(url: str) -> Iterator[str]:
    for number in list_versions(url):
        version = read_version(url, number)
        yield from _relative(url, (file.url for files in version.tables.values() for file in files))
        for table in iter_table(url, version, "shards", ["url"]):
            yield from _relative(url, table["url"].to_pylist())


def _named_by_markers(url: str, markers: list[str]) -> Iterator[str]:
    """Yield the relative paths that markers name, and the other files of their groups."""
    read = (partial(_shards_of, storage.child(url, path)) for path in markers)
    for path, shards in zip(markers, storage.in_order(_READ_AHEAD, read), strict=True):
        stem = path.removesuffix(".json")
        yield from (f"{stem}{suffix}.parquet" for suffix in ("", "-samples", "-rejects"))
        yield from _relative(url, shards)


def _shards_of(marker_url: str) -> list[str]:
    """Return the URLs of the shards that a marker names; none if it is gone meanwhile."""
    try:
        return [str(shard["url"]) for shard in json.loads(storage.read_bytes(marker_url))["shards"]]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{marker_url} is not a group's marker ({error!r}): move it away, then ingest again") from error


def _relative(url: str, urls: Iterable[str]) -> Iterator[str]:
    """Yield URLs as they are, absolute ones into the dataset itself made relative."""
    roots = [f"{url.rstrip('/')}/"]
    if storage.is_local(url):
        roots.append(f"{storage.local_path(url).resolve()}/")
    for each in urls:
        yield next((each.removeprefix(root) for root in roots if each.startswith(root)), each)


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path
