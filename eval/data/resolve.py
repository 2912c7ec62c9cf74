"""From the words after --data to labelled data: what lies at a path is found out from names, not asked for.

A dataset of ours (versions/*.json), else a folder in one of the layouts of `eval.data.layout`, or torchgeo:NAME.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from eval.data.class_folders import open_class_folders
from eval.data.given import CLASSES_FILE, GROUPS_FILE, SPLIT_TABLE, read_groups, read_parts, read_places, split_files
from eval.data.image_masks import open_image_masks
from eval.data.kinds import LabelledData
from eval.data.labelled_shards import open_labelled_shards
from eval.data.layout import EXPECTED, PART_NAMES, Layout, find_layout
from eval.data.options import keep_bands, split_options
from eval.data.torchgeo_data import PREFIX, open_torchgeo
from shards import storage
from shards.errors import UserError
from shards.tables import list_versions


def parse_specs(specs: Sequence[str]) -> dict[str, str]:
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


def open_data(name: str, url: str, workers: int) -> LabelledData:
    """Open whatever lies at a URL; costs one reading of a folder's files, of a dataset's tables alone.

    Args:
        name: what the report calls it.
        url: folder, dataset of ours, or torchgeo:NAME[:SPLIT]; `#bands=1-7` behind it leaves the other bands out.
        workers: threads that read.

    Raises:
        UserError: nothing there that can be used; says what was found and what is expected.
    """
    is_torchgeo = url.startswith(PREFIX)
    place, options = split_options(url, ("bands", "root") if is_torchgeo else ("bands",))
    if is_torchgeo:
        data = open_torchgeo(name, place, options.get("root", "data"))
    elif _is_dataset(place):
        data = open_labelled_shards(name, place)
    else:
        data = _open_folder(name, place, workers)
    data = _without_unlisted(replace(data, url=url))
    return keep_bands(data, options["bands"]) if "bands" in options else data


def _is_dataset(url: str) -> bool:
    with storage.user_errors(url):
        return bool(list_versions(url))


def _open_folder(name: str, url: str, workers: int) -> LabelledData:
    where = f"{name} ({url})"
    paths = [info.path for info in storage.list_files(url)]
    layout = find_layout(where, paths, _folders(url))
    if not layout.entries and not layout.empty_classes:
        raise UserError(f"{where} has no image in any folder, {len(paths)} other files: {EXPECTED}")
    if layout.kind == "classes":
        data = open_class_folders(name, url, layout, workers)
    else:
        names = _text(url, CLASSES_FILE).splitlines() if CLASSES_FILE in paths else []
        data = open_image_masks(name, url, layout, [line.strip() for line in names], workers)
    parts = split_files(paths)
    texts = {path: _text(url, path) for path in parts}
    given_parts = read_parts(where, layout.entries, texts, parts)
    return replace(data, given_parts=given_parts, groups=_groups(where, url, layout, paths, texts))


def _groups(
    where: str, url: str, layout: Layout, paths: Sequence[str], split_texts: Mapping[str, str]
) -> tuple[str, ...] | None:
    """Return the group of each sample by groups.txt, else by the places in split.tsv."""
    if GROUPS_FILE in paths:
        return read_groups(where, layout.entries, _text(url, GROUPS_FILE))
    tables = [text for path, text in split_texts.items() if path.endswith(SPLIT_TABLE)]
    return read_places(where, layout.entries, tables[0]) if len(tables) == 1 else None


def _folders(url: str) -> list[str]:
    """List the folders below a URL, and those in folders of parts: an empty one shows in no listing of files."""
    found = _names_of_folders(url)
    inside = [(name, _names_of_folders(storage.child(url, name))) for name in found if name.lower() in PART_NAMES]
    split = {name for name, _ in inside}
    nested = [f"{name}/{folder}" for name, folders in inside for folder in folders]
    return sorted([name for name in found if name not in split] + nested)


def _names_of_folders(url: str) -> list[str]:
    fs, root = storage.filesystem(url)
    with storage.user_errors(url):
        entries = fs.ls(root, detail=True)
    names = [entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory"]
    return sorted(name for name in names if not name.startswith("."))


def _text(url: str, path: str) -> str:
    data = storage.read_bytes(storage.child(url, path))
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{storage.child(url, path)} is not UTF-8 text: {error}") from error


def _without_unlisted(data: LabelledData) -> LabelledData:
    """Leave out the samples that the given split names in no part: it may choose some of a larger set."""
    if data.given_parts is None or (data.given_parts >= 0).all():
        return data
    kept = np.flatnonzero(data.given_parts >= 0)
    read = data.read
    said = "\n".join([data.digest, *(data.ids[place] for place in kept)])
    return replace(
        data,
        digest=hashlib.sha256(said.encode()).hexdigest(),
        ids=tuple(data.ids[place] for place in kept),
        read=lambda index: read(int(kept[index])),
        labels=None if data.labels is None else data.labels[kept],
        given_parts=data.given_parts[kept],
        mask_pixels=None if data.mask_pixels is None else data.mask_pixels[kept],
        groups=None if data.groups is None else tuple(data.groups[place] for place in kept),
        num_unlisted=len(data.ids) - len(kept),
    )
