"""Which file is what in a folder of labelled images, told by names alone: pure, no file is opened.

Three layouts are known, each with or without folders train, val and test around or inside it:

- masks: `images/NAME.tif` and `masks/NAME.png` (the folders' other usual names: `IMAGES`, `MASKS`);
- changes: `A/NAME.png`, `B/NAME.png` and `label/NAME.png`, or `NAME_1.bmp`, `NAME_2.bmp`, `NAME_gt.bmp` together;
- classes: `CLASS/NAME.jpg`. Images that lie deeper are refused: such a folder may be a class, or one place of a class
  whose images a split must not tear apart, or hold thumbnails; its name does not tell.

Cost: about 1 kB and 10 µs per file.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from eval.data.decode import EXTENSIONS, extension
from eval.data.kinds import Kind
from eval.data.split import TEST, TRAIN, VALIDATION
from shards.errors import UserError

IMAGES = frozenset({"image", "images", "img", "imgs", "img_dir", "image_dir", "images_png"})
FIRST = frozenset({"a", "t1", "time1", "im1", "before"})
SECOND = frozenset({"b", "t2", "time2", "im2", "after"})
MASKS = frozenset(
    {"mask", "masks", "mask_dir", "masks_png", "label", "labels", "label_dir", "ann_dir", "annotations", "out", "gt",
     "ground_truth"}
)  # fmt: skip
PART_NAMES = {
    "train": TRAIN, "training": TRAIN, "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION,
    "test": TEST, "testing": TEST,
}  # fmt: skip
LIST_FOLDERS = frozenset({"list", "lists", "splits"})
EXPECTED = (
    "expected a folder for every class, or images/ and masks/, or A/, B/ and label/, or a dataset of ours "
    "(versions/*.json)"
)
_ROLES = {"image": IMAGES, "first": FIRST, "second": SECOND, "mask": MASKS}
_SUFFIX_ROLES = {"1": "first", "2": "second", "gt": "mask"}
_MASK_SUFFIX = re.compile(r"_(mask|label|gt)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """The files of one sample."""

    key: str
    """Its path without the folder that says what a file is, the part's folder and the extension."""
    images: tuple[str, ...]
    """Paths; the first one is the sample's id."""
    mask: str | None = None
    label: str | None = None
    part: int | None = None
    """TRAIN, VALIDATION or TEST by its folder; None: in no such folder."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a folder holds."""

    kind: Kind
    entries: tuple[Entry, ...]
    """By the path of the first image."""
    empty_classes: tuple[str, ...] = ()
    """Class folders without any image."""


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    folders: tuple[str, ...]  # without that of a part
    part: int | None

    @property
    def stem(self) -> str:
        return PurePosixPath(self.path).stem


def find_layout(where: str, paths: Iterable[str], folders: Sequence[str]) -> Layout:
    """Find out which of the three layouts files have.

    Args:
        where: what to call the data in a message.
        paths: all files, relative.
        folders: relative paths of all folders in which a class folder may lie empty.

    Raises:
        UserError: two layouts at once, a sample without one of its files, one sample twice, an image deeper than in a
            class folder.
    """
    files = [_file(path) for path in sorted(paths) if extension(path) in EXTENSIONS]
    names = {folder.lower() for file in files for folder in file.folders}
    found = {role for role, words in _ROLES.items() if names & words}
    if {"first", "second", "mask"} <= found and "image" in found:
        raise UserError(f"{where} has images/ as well as A/ and B/: point --data at one of them; {EXPECTED}")
    if {"first", "second", "mask"} <= found:
        return _by_role(where, "changes", ("first", "second"), _in_folders(files, ("first", "second", "mask")))
    if {"image", "mask"} <= found:
        return _by_role(where, "masks", ("image",), _in_folders(files, ("image", "mask")))
    if found in ({"first", "second"}, {"image"}, {"mask"}) and all(_role_of(name) for name in names):
        raise UserError(f"{where} has only {', '.join(sorted(names))}: {EXPECTED}")
    if not names and any(re.search(r"_gt$", file.stem) for file in files):
        return _by_role(where, "changes", ("first", "second"), _by_suffix(files))
    return _class_layout(where, files, folders)


def _file(path: str) -> _File:
    *folders, _ = path.split("/")
    # A part's folder is the outermost, or the one right inside: train/images, images/train.
    for depth, folder in enumerate(folders[:2]):
        if folder.lower() in PART_NAMES:
            return _File(path, (*folders[:depth], *folders[depth + 1 :]), PART_NAMES[folder.lower()])
    return _File(path, tuple(folders), None)


def _role_of(folder: str) -> str | None:
    return next((role for role, words in _ROLES.items() if folder.lower() in words), None)


_Roles = list[tuple[str, str, _File]]  # (role, key, file)


def _in_folders(files: Sequence[_File], wanted: tuple[str, ...]) -> _Roles:
    found: _Roles = []
    for file in files:
        for depth, folder in enumerate(file.folders):
            role = _role_of(folder)
            if role in wanted:
                key = "/".join([*file.folders[:depth], *file.folders[depth + 1 :], file.stem])
                found.append((str(role), key, file))
                break
    return found


def _by_suffix(files: Sequence[_File]) -> _Roles:
    split = [(file, *file.stem.rpartition("_")[::2]) for file in files]
    return [(_SUFFIX_ROLES[suffix], key, file) for file, key, suffix in split if suffix in _SUFFIX_ROLES]


def _by_role(where: str, kind: Kind, image_roles: tuple[str, ...], found: _Roles) -> Layout:
    """Join the files of each sample; a part that has no mask at all (as a public test part) is left out."""
    samples: defaultdict[tuple[int | None, str], dict[str, str]] = defaultdict(dict)
    images = {(file.part, key) for role, key, file in found if role != "mask"}
    for role, key, file in found:
        plain = _MASK_SUFFIX.sub("", key)
        if role == "mask" and (file.part, key) not in images and (file.part, plain) in images:
            key = plain
        if role in samples[file.part, key]:
            raise UserError(f"{where} has {samples[file.part, key][role]} and {file.path} for one sample: remove one")
        samples[file.part, key][role] = file.path
    labelled = {part for (part, _), files in samples.items() if "mask" in files}
    samples_left = {place: files for place, files in samples.items() if place[0] in labelled}
    _check_whole(where, (*image_roles, "mask"), list(samples_left.values()))
    entries = [
        Entry(key=key, images=tuple(files[role] for role in image_roles), mask=files["mask"], part=part)
        for (part, key), files in samples_left.items()
    ]
    return Layout(kind=kind, entries=tuple(sorted(entries, key=lambda entry: entry.images[0])))


def _check_whole(where: str, roles: tuple[str, ...], samples: Sequence[dict[str, str]]) -> None:
    torn = [(files, role) for files in samples for role in roles if role not in files]
    if torn:
        files, role = torn[0]
        words = {"first": "image A", "second": "image B"}.get(role, role)
        raise UserError(
            f"{where}: {min(files.values())} has no {words} of its name ({len(torn)} such files): add or remove them"
        )


def _class_layout(where: str, files: Sequence[_File], folders: Sequence[str]) -> Layout:
    deeper = [file.path for file in files if len(file.folders) > 1]
    if deeper:
        raise UserError(
            f"{where} has {deeper[0]} deeper than in a class folder ({len(deeper)} such images): move them right into "
            f"the folder of their class or away, or point --data at the folder that holds the class folders; {EXPECTED}"
        )
    entries = [
        Entry(key=f"{file.folders[0]}/{file.stem}", images=(file.path,), label=file.folders[0], part=file.part)
        for file in files
        if len(file.folders) == 1
    ]
    filled = {entry.label for entry in entries}
    there = {_file(f"{folder}/x").folders for folder in folders if folder.lower() not in LIST_FOLDERS}
    empty = {names[0] for names in there if len(names) == 1} - filled
    return Layout(kind="classes", entries=tuple(entries), empty_classes=tuple(sorted(map(str, empty))))
