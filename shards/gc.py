"""Find and remove files of a dataset that no version names: what crashed or superseded runs left.

Lists the dataset once and reads the shards table of every version. Memory: the names of all tables and shards that
versions name, and of the files to remove.
"""

from collections.abc import Iterator

from shards import storage
from shards.dataset import iter_table, list_versions, read_version
from shards.storage import FileInfo

FOLDERS = ("shards", "tables", "plans", "groups", "probes", "inventories")
"""Where files without a name in a version may be removed; all but the first two are what ingest resumes from."""

_HOUR_S = 3600.0


def find_orphans(url: str, *, min_age_h: float, now_s: float) -> list[FileInfo]:
    """Return the files that no version of the dataset names, sorted by path relative to it.

    Versions are read after the listing: one that is committed meanwhile keeps its files. A file whose store tells no
    time counts as new.

    Args:
        url: the dataset.
        min_age_h: hours since the last change; younger files are left alone, a run may still need them.
        now_s: the time, POSIX seconds.

    Raises:
        UserError: there is no dataset, or a version of it cannot be read.
    """
    read_version(url)
    oldest = now_s - min_age_h * _HOUR_S
    found = [info for info in _stored(url) if min_age_h <= 0 or (info.modified_s or now_s) <= oldest]
    named = set(_named(url))
    return [info for info in sorted(found, key=lambda info: info.path) if info.path not in named]


def remove_orphans(url: str, orphans: list[FileInfo]) -> Iterator[FileInfo]:
    """Remove files one by one, yielding each once it is gone; then the folders that have become empty."""
    for info in orphans:
        storage.remove(storage.child(url, info.path))
        yield info
    parents = {parent for info in orphans for parent in _parents(info.path)}
    for folder in sorted(parents, reverse=True):
        storage.remove_empty_folder(storage.child(url, folder))


def _stored(url: str) -> Iterator[FileInfo]:
    for folder in FOLDERS:
        below = storage.child(url, folder)
        if storage.exists(below):
            # Hidden ones too: a killed writer leaves its temporary file.
            for info in storage.iter_files(below, hidden=True):
                yield FileInfo(path=f"{folder}/{info.path}", size=info.size, etag=info.etag, modified_s=info.modified_s)


def _named(url: str) -> Iterator[str]:
    """Yield the relative paths that versions name; absolute URLs into the dataset itself are made relative."""
    roots = [f"{url.rstrip('/')}/"]
    if storage.is_local(url):
        roots.append(f"{storage.local_path(url).resolve()}/")
    for number in list_versions(url):
        version = read_version(url, number)
        urls = [file.url for files in version.tables.values() for file in files]
        for table in iter_table(url, version, "shards", ["url"]):
            urls += table["url"].to_pylist()
        for each in urls:
            yield next((each.removeprefix(root) for root in roots if each.startswith(root)), each)


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path
