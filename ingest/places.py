"""Which places a list or catalogue may name: those below its own folder, and below prefixes that the user allowed.

Functions of texts (and of the current folder, where a path is relative): nothing is opened, and links are followed
only where the user himself wrote "..". Lists come from anywhere; without this a row could name any file of the machine
that reads it, or any server in its reach.
"""

import posixpath
import re
from dataclasses import dataclass, replace
from urllib.parse import unquote

from ingest.config import IngestConfig
from ingest.sources import scenes_root
from shards import storage


@dataclass(frozen=True, kw_only=True)
class Places:
    """The folder of a list and the prefixes allowed besides; all absolute, without a slash at the end."""

    root: str
    allow: tuple[str, ...]

    def find(self, href: str) -> str | None:
        """Return a path relative to the root, or an absolute URL below an allowed prefix; None: not allowed.

        Never allowed are "..", chains ("::"), GDAL's virtual files ("/vsi…"), and files of this machine (absolute
        paths, "file:") in a list that lies elsewhere.
        """
        if self._is_local():
            href = href.removeprefix("file://")
        if _is_forbidden(href) or (href.startswith("/") and not self._is_local()):
            return None
        absolute = href if _is_absolute(href) else f"{self.root}/{_without_dots(href)}"
        if storage.is_local(absolute):
            absolute = posixpath.normpath(absolute)
        below = _below(absolute, self.root)
        if below is not None:
            return below if below and not _is_absolute(below) else None  # s3://own/folder/s3://another/place
        return absolute if any(_below(absolute, prefix) for prefix in self.allow) else None

    def url(self, place: str) -> str:
        """Return the absolute URL of what `find` returned."""
        return storage.join(self.root, place)

    def _is_local(self) -> bool:
        return storage.is_local(self.root)


def places_of(scenes: str, allow: tuple[str, ...]) -> Places:
    """Return the places that the list at `scenes` may name."""
    return Places(root=_absolute(scenes_root(scenes)), allow=tuple(_absolute(prefix) for prefix in allow))


def located(config: IngestConfig) -> IngestConfig:
    """Return a configuration whose local paths are absolute, for workers and rebuilds that begin in other folders.

    Raises:
        UserError: a path is empty.
    """
    allow = tuple(_located(prefix) for prefix in config.allow)
    return replace(config, scenes=_located(config.scenes), out=_located(config.out), allow=allow)


def _located(url: str) -> str:
    if not storage.is_local(url):
        return url
    path = storage.local_path(url).absolute()
    # "..", which no place may have, leads elsewhere behind a link: only then are links followed.
    return str(path.resolve() if ".." in path.parts else path)


def resolve(document: str, href: str) -> str:
    """Return an href of a STAC document as an absolute one; ".." is resolved against the document's folder.

    What climbs above the top keeps its "..", so that `Places.find` refuses it.
    """
    if _is_absolute(href) or href.startswith("file:"):
        return href
    scheme, separator, path = f"{posixpath.dirname(document)}/{href}".rpartition("://")
    return f"{scheme}{separator}{posixpath.normpath(path)}"


def _is_absolute(href: str) -> bool:
    return "://" in href or href.startswith("/")


def _is_forbidden(href: str) -> bool:
    plain = unquote(href).replace("\\", "/")
    return (
        not plain
        or "::" in plain
        or "\0" in plain
        or ".." in plain.split("/")
        or re.match("/+vsi|file:|local:", plain, re.IGNORECASE) is not None
    )


def _without_dots(path: str) -> str:
    return "/".join(part for part in path.split("/") if part != ".")


def _below(url: str, prefix: str) -> str | None:
    """Return what follows the prefix and a slash; None: not below it (s3://archive2 is not below s3://archive)."""
    return url.removeprefix(f"{prefix}/") if url.startswith(f"{prefix}/") else None


def _absolute(url: str) -> str:
    return _located(url).rstrip("/")
