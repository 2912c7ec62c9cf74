"""Labelled images as a folder with one folder of images for every class, local or in a bucket.

Opening costs a listing and one reading of every file (its sha256 enters the data's digest), no decoding.
"""

import hashlib
import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.decode import EXTENSIONS, UnreadableImageError, decode, extension, labelled_chips
from shards import storage
from shards.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ClassFolders:
    """A labelled data set; image i is file `paths[i]` of class `classes[labels[i]]`."""

    name: str
    url: str
    classes: tuple[str, ...]
    """Sorted; the folder names."""
    paths: tuple[str, ...]
    """Relative to the URL, sorted."""
    labels: NDArray[np.int64]
    bands: tuple[str, ...]
    dtype: str
    digest: str
    """sha256 over the paths and contents of all images."""

    def read(self, index: int) -> NDArray[np.generic]:
        """Read and decode one image [H, W, C].

        Raises:
            UnreadableImageError: it is damaged, or has other bands or another type than the data set.
        """
        path = self.paths[index]
        pixels, bands = decode(path, storage.read_bytes(storage.join(self.url, path)))
        if bands != self.bands or str(pixels.dtype) != self.dtype:
            raise UnreadableImageError(
                f"{pixels.dtype} {','.join(bands)}: the data set is {self.dtype} {','.join(self.bands)}"
            )
        return pixels


def parse_specs(specs: list[str]) -> dict[str, str]:
    """Return {name: URL} of `name=PATH` items.

    Raises:
        UserError: an item is malformed, or a name is given twice.
    """
    urls: dict[str, str] = {}
    for spec in specs:
        name, equals, url = spec.partition("=")
        if not equals or not url or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise UserError(f"--data {spec!r} is not name=PATH: write, say, eurosat=/data/EuroSAT")
        if name in urls:
            raise UserError(f"--data names {name!r} twice: give each data set a name of its own")
        urls[name] = url
    return urls


def open_class_folders(name: str, url: str, workers: int) -> ClassFolders:
    """List, check and fingerprint a labelled data set.

    Raises:
        UserError: no such folder, fewer than two classes, a class with fewer than two images, no readable image.
    """
    by_class = _list_classes(url)
    for label, members in by_class.items():
        if not members:
            raise UserError(f"class folder {label!r} of {name} ({url}) has no images: fill or remove it")
        if len(members) < 2:
            raise UserError(
                f"class {label!r} of {name} ({url}) has one image, too few to train and test: add or remove"
            )
    if len(by_class) < 2:
        found = ", ".join(by_class) or "none"
        raise UserError(f"{name} ({url}) needs two or more class folders with images, found: {found}; see --data")
    classes = tuple(sorted(by_class))
    paths = tuple(path for label in classes for path in by_class[label])
    labels = np.repeat(np.arange(len(classes)), [len(by_class[label]) for label in classes])
    bands, dtype = _probe(name, url, paths)
    return ClassFolders(
        name=name, url=url, classes=classes, paths=paths, labels=labels, bands=bands, dtype=dtype,
        digest=_digest(url, paths, workers),
    )  # fmt: skip


def _list_classes(url: str) -> dict[str, list[str]]:
    by_class: defaultdict[str, list[str]] = defaultdict(list)
    for folder in _folders(url):
        by_class[folder] = []
    for info in storage.list_files(url):
        parts = info.path.split("/")
        if len(parts) == 2 and extension(info.path) in EXTENSIONS:
            by_class[parts[0]].append(info.path)
    return dict(by_class)


def _folders(url: str) -> list[str]:
    """List the folders right below a URL: an empty one shows in no listing of files."""
    fs, root = storage.filesystem(url)
    with storage.user_errors(url):
        entries = fs.ls(root, detail=True)
    names = [entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory"]
    return sorted(name for name in names if not name.startswith("."))


def _probe(name: str, url: str, paths: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Return bands and type of the first image that can be read: the others must be alike."""
    for path in paths:
        try:
            with labelled_chips():
                pixels, bands = decode(path, storage.read_bytes(storage.join(url, path)))
        except UnreadableImageError:
            continue
        return bands, str(pixels.dtype)
    raise UserError(f"none of the {len(paths)} images of {name} ({url}) can be read: is this the right folder?")


def _digest(url: str, paths: tuple[str, ...], workers: int) -> str:
    def fingerprint(path: str) -> str:
        with storage.user_errors(storage.join(url, path)):
            return hashlib.sha256(storage.read_bytes(storage.join(url, path))).hexdigest()

    total = hashlib.sha256()
    with ThreadPoolExecutor(workers) as pool:
        for path, fingerprint_hex in zip(paths, pool.map(fingerprint, paths), strict=True):
            total.update(f"{fingerprint_hex}  {path}\n".encode())
    return total.hexdigest()
