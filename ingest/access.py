"""Worker-side access to a scene's files: in place, by byte ranges, or one download; always the scene that was listed.

Cost: the probe reads headers, and samples where it scales by percentiles, by byte ranges. Then a GeoTIFF in a store is
read by the ranges of the blocks that a unit needs: its header once more for each group, each block once where tiles fit
the blocks, else twice where it lies in two units. Anything else is downloaded whole, once for all its units. A member
of a zip file is fetched and unpacked twice, since both the probe and packing, maybe on another machine, want a file to
seek in. Credentials stay here; the decoder gets paths and bytes.
"""

import contextlib
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.reasons import SceneRejectedError
from ingest.sandbox import Ranges
from ingest.scene_row import member_of, scene_files
from shards import storage
from shards.storage.scratch import scratch_folder


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the paths of an inventory begin."""

    root: str
    """Folder or bucket URL."""
    absolute: bool
    """The inventory came from a list, whose paths may be URLs of their own; names found by listing never are."""

    def url(self, path: str) -> str:
        """Return the URL of a path of the inventory."""
        return storage.join(self.root, path) if self.absolute else storage.child(self.root, path)


def require_shared(place: Place) -> None:
    """See whether this machine has the folder of the scenes, if that is a local one.

    Without this each scene would count as missing, of those that this machine happens to be asked about. A list's own
    folder need not be here: what it names may lie elsewhere.

    Raises:
        RuntimeError: the folder is not there, or nothing lies in it, as where a shared disk is not mounted.
    """
    if place.absolute or not storage.is_local(place.root):
        return
    folder = storage.local_path(place.root)
    try:
        with os.scandir(folder) as entries:  # one is enough: there may be millions
            found = next(entries, None) is not None
    except (FileNotFoundError, NotADirectoryError):
        found = False
    except PermissionError:  # to list it, which opening files by their names does not need
        found = True
    if not found:
        raise RuntimeError(
            f"{platform.node()} has nothing at {folder}: on several machines the scenes must lie in a store "
            "or on a disk that all of them share"
        )


@dataclass(frozen=True)
class Access:
    """What a decoder call gets to reach a scene."""

    files: list[dict[str, Any]]
    """{band, local path or null, size} of each file."""
    urls: list[str]

    def read(self, file: int, ranges: Ranges) -> Sequence[bytes]:
        """Return byte ranges of a file that has no local path."""
        return storage.read_ranges(self.urls[file], ranges)


@contextlib.contextmanager
def reach(place: Place, row: Mapping[str, Any], *, whole: bool) -> Iterator[Access]:
    """Make a scene's files readable, and find out afterwards whether they were the listed ones all the time.

    Args:
        place: where paths begin.
        row: of the inventory, with sizes and ETags.
        whole: download remote files first, instead of reading ranges.

    Raises:
        SceneRejectedError: an archive that cannot be unpacked.
        OSError: a file is gone or changed, or cannot be reached.
    """
    with contextlib.ExitStack() as stack:
        if row["archive"]:
            yield _unpacked(place, row, stack.enter_context(scratch_folder("ingest")))
            return
        files = scene_files(row)
        urls = [place.url(file["path"]) for file in files]
        paths: list[str | None] = [str(storage.local_path(url)) if storage.is_local(url) else None for url in urls]
        if whole and None in paths:
            folder = stack.enter_context(scratch_folder("ingest"))
            paths = [_fetched(*item, folder) for item in zip(urls, files, paths, strict=True)]
        _require_unchanged(urls, files)
        try:
            yield Access([_described(*item) for item in zip(files, paths, strict=True)], urls)
        except SceneRejectedError:
            # A file that was replaced meanwhile may have looked corrupt.
            _require_unchanged(urls, files)
            raise
        _require_unchanged(urls, files)


def _described(file: Mapping[str, Any], path: str | None) -> dict[str, Any]:
    return {"band": file["band"] or "", "local": path, "size": file["size"]}


def _fetched(url: str, file: Mapping[str, Any], path: str | None, folder: Path) -> str:
    if path is not None:
        return path
    target = folder / f"scene-{len(list(folder.iterdir()))}"
    storage.fetch(url, target, size=file["size"], etag=file["etag"])
    return str(target)


def _require_unchanged(urls: Sequence[str], files: Sequence[Mapping[str, Any]]) -> None:
    for url, file in zip(urls, files, strict=True):
        try:
            found = storage.stat(url)
        except FileNotFoundError as error:
            raise storage.SourceChangedError(f"{url} is gone: run again to go on without it") from error
        if (found.size, found.etag) != (file["size"], file["etag"]):
            raise storage.SourceChangedError(f"{url} changed while it was being ingested: run again")


def _unpacked(place: Place, row: Mapping[str, Any], folder: Path) -> Access:
    """Take the scene's members out of a zip file."""
    archive = place.url(row["archive"])
    described = []
    for number, file in enumerate(scene_files(row)):
        target = folder / f"scene-{number}"
        try:
            storage.fetch_member(archive, member_of(row, file), target, etag=file["etag"])
        except ValueError as error:
            raise SceneRejectedError("bad_archive", str(error).removeprefix(archive)[:200]) from error
        described.append(_described(file, str(target)))
    return Access(described, [archive] * len(described))
