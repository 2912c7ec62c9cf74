"""What comes with a folder of labelled images besides the images: split files, groups, names of classes.

Pure: texts in, arrays out. A sample may be called by its path, with or without extension, by its path without the
folder that says what a file is, or by its file's name alone, where only one sample has it.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from eval.data.layout import LIST_FOLDERS, PART_NAMES, Entry
from eval.data.split import PARTS, TEST, TRAIN
from shards.errors import UserError

GROUPS_FILE = "groups.txt"
CLASSES_FILE = "classes.txt"
SPLIT_TABLE = "split.tsv"
_AMBIGUOUS = -1


class Names:
    """The names by which a file may call samples."""

    def __init__(self, where: str, entries: Sequence[Entry]) -> None:
        self._where = where
        self._places: dict[str, int] = {}
        for place, entry in enumerate(entries):
            paths = [entry.key, *entry.images, *filter(None, [entry.mask])]
            for name in {called for path in paths for called in _calls(path)}:
                self._places[name] = _AMBIGUOUS if name in self._places else place

    def find(self, name: str) -> int | None:
        """Return the place of the sample of a name, None if there is none.

        Raises:
            UserError: two samples have the name.
        """
        place = self._places.get(name.removeprefix("./"))
        if place == _AMBIGUOUS:
            raise UserError(f"{self._where} has two samples called {name}: write their paths")
        return place


def _calls(path: str) -> set[str]:
    pure = PurePosixPath(path)
    return {path, str(pure.with_suffix("")), pure.name, pure.stem} if pure.suffix else {path, pure.name}


def split_files(paths: Sequence[str]) -> dict[str, int | None]:
    """Return which of the paths are split files, with the part that each lists; None: a table of all parts.

    They lie beside the folders, or in a folder called list or splits: train.txt, val.txt, test.txt or split.tsv.
    """
    found: dict[str, int | None] = {}
    for path in paths:
        *folders, file = path.split("/")
        stem, _, kind = file.rpartition(".")
        if len(folders) > 1 or not {folder.lower() for folder in folders} <= LIST_FOLDERS:
            continue
        if kind == "txt" and stem in PART_NAMES:
            found[path] = PART_NAMES[stem]
        elif file == SPLIT_TABLE:
            found[path] = None
    return found


def read_parts(
    where: str, entries: Sequence[Entry], texts: Mapping[str, str], parts: Mapping[str, int | None]
) -> NDArray[np.int64] | None:
    """Return the part of each sample [N], −1 for those that no split file names; None where nothing was given.

    Split files win over the folders in which the samples lie. Where they name no training sample, what they do not name
    lies in the part of its folder, else in train; where they name nothing else, in that of its folder, else in test.

    Args:
        where: what to call the data in a message.
        entries: the samples.
        texts: path and text of each split file.
        parts: what `split_files` says of them.

    Raises:
        UserError: a line names no sample, two parts have one sample, split files leave no sample for training or for
            testing, or some samples lie in a part's folder and others in none.
    """
    if not texts:
        return _parts_of_folders(where, entries)
    names = Names(where, entries)
    found = np.full(len(entries), -1)
    missing: list[str] = []
    for path, text in texts.items():
        for name, part in _lines(where, path, text, parts[path]):
            place = names.find(name)
            if place is None:
                missing.append(f"{path} names {name}")
            elif found[place] not in (-1, part):
                raise UserError(f"{where}: {name} is in {PARTS[found[place]]} and in {PARTS[part]}: keep one")
            else:
                found[place] = part
    if missing:
        raise UserError(f"{where}: {missing[0]}, which is not there ({len(missing)} such lines): add it or drop them")
    return found if _is_split(found) else _completed(where, entries, found)


def _completed(where: str, entries: Sequence[Entry], found: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the parts [N] of samples of which split files name training samples alone, or none."""
    folders = np.array([-1 if entry.part is None else entry.part for entry in entries], np.int64)
    if (found == TRAIN).any():
        # What lies in the folder train and is not named was left out of it.
        rest = np.where(folders == TRAIN, -1, folders)
        if not (rest[found < 0] >= 0).any():
            rest = np.full(len(entries), TEST)
    else:
        rest = np.where(folders < 0, TRAIN, folders)
    parts = np.where(found < 0, rest, found)
    if (found < 0).all() or not _is_split(parts):
        told = ", ".join(PARTS[part] for part in sorted(set(found.tolist()) - {-1})) or "no sample"
        raise UserError(f"{where}: its split files name {told} and leave nothing for the rest: add train.txt, test.txt")
    return parts


def _lines(where: str, path: str, text: str, part: int | None) -> list[tuple[str, int]]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if part is not None:
        return [(line, part) for line in lines]
    rows = [line.split("\t")[:2] for line in lines]
    for word, *rest in rows:
        if word not in PARTS or not rest:
            raise UserError(f"{path} of {where}: {word!r} is no line of PART<TAB>PATH with {', '.join(PARTS)}")
    return [(name, PARTS.index(word)) for word, name in rows]


def _parts_of_folders(where: str, entries: Sequence[Entry]) -> NDArray[np.int64] | None:
    inside = [entry for entry in entries if entry.part is not None]
    if not inside:
        return None
    if len(inside) < len(entries):
        outside = next(entry for entry in entries if entry.part is None)
        raise UserError(
            f"{where}: {inside[0].images[0]} lies in a part's folder, {outside.images[0]} in none: "
            "move all samples into train, val and test, or none"
        )
    found = np.array([entry.part for entry in entries], np.int64)
    return found if _is_split(found) else None


def _is_split(parts: NDArray[np.int64]) -> bool:
    """Say whether parts are a split: training samples and others."""
    there = set(np.unique(parts).tolist()) - {-1}
    return TRAIN in there and len(there) > 1


def read_places(where: str, entries: Sequence[Entry], text: str) -> tuple[str, ...] | None:
    """Return the group of each sample as the third column of split.tsv tells it; None unless each line has one.

    Samples without a line are groups of their own.

    Raises:
        UserError: a sample is called by a name that two have.
    """
    rows = [line.split("\t") for line in text.splitlines() if line.strip()]
    if not rows or any(len(row) < 3 or not row[2].strip() for row in rows):
        return None
    names = Names(where, entries)
    groups = {names.find(row[1]): row[2] for row in rows}
    return tuple(groups.get(place, entry.key) for place, entry in enumerate(entries))


def read_groups(where: str, entries: Sequence[Entry], text: str) -> tuple[str, ...]:
    """Return the group of each sample: every line of groups.txt has the names of one group, separated by spaces.

    Names of samples that are not there do not matter: the file may be that of a larger set.

    Raises:
        UserError: a sample is in no line or in two.
    """
    names = Names(where, entries)
    groups: dict[int, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        for name in line.split():
            place = names.find(name)
            if place is None:
                continue
            if groups.setdefault(place, f"{GROUPS_FILE}:{number}") != f"{GROUPS_FILE}:{number}":
                raise UserError(f"{GROUPS_FILE} of {where}: {name} is in two groups: keep one")
    alone = [entry.images[0] for place, entry in enumerate(entries) if place not in groups]
    if alone:
        raise UserError(f"{GROUPS_FILE} of {where}: {alone[0]} is in no group ({len(alone)} such): add a line for each")
    return tuple(groups[place] for place in range(len(entries)))
