"""Any torchgeo dataset of single images by name, as an extra: `torchgeo:EuroSAT`, `torchgeo:LoveDA:val#root=/data`.

Nothing is downloaded: the files lie where torchgeo looks for them. torchgeo gives float tensors whatever the files
hold, so opening reads every sample once: for the type that holds all values exactly, the labels, the digest. One
thread at a time reads, as torchgeo promises nothing about threads.
"""

import hashlib
import importlib
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from eval.data.decode import RGB, UnreadableImageError, reason
from eval.data.kinds import Kind, LabelledData, Sample
from eval.data.layout import PART_NAMES
from eval.data.masks import MaskClasses, class_of_pixels, count_values, find_classes
from eval.data.split import TRAIN
from shards.errors import UserError

PREFIX = "torchgeo:"
_INSTALL = "pip install '.[torchgeo]'"
_INTEGERS = ("uint8", "uint16", "int16")  # the first that holds all values


@dataclass(frozen=True, kw_only=True)
class _Raw:
    """What torchgeo says of one sample."""

    images: tuple[NDArray[np.generic], ...]
    """Each [H, W, C]."""
    label: int | None
    mask: NDArray[np.integer] | None


@dataclass
class _Seen:
    """What one reading of all samples finds out."""

    labels: list[int] = field(default_factory=list)
    counts: list[dict[int, int]] = field(default_factory=list)
    low: float = np.inf
    high: float = -np.inf
    whole: bool = True
    num_images: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, raw: _Raw) -> None:
        self.num_images = len(raw.images)
        for array in (*raw.images, *([] if raw.mask is None else [raw.mask])):
            self.digest.update(f"{array.shape} {array.dtype} {raw.label}\n".encode() + array.tobytes())
        for image in raw.images:
            self.low, self.high = min(self.low, float(image.min())), max(self.high, float(image.max()))
            self.whole = self.whole and bool((image == np.floor(image)).all())
        if raw.label is not None:
            self.labels.append(raw.label)
        if raw.mask is not None:
            self.counts.append(count_values(raw.mask))

    @property
    def dtype(self) -> str:
        fitting = [name for name in _INTEGERS if np.iinfo(name).min <= self.low and self.high <= np.iinfo(name).max]
        return fitting[0] if self.whole and fitting else "float32"


def open_torchgeo(name: str, word: str, root: str) -> LabelledData:
    """Open `torchgeo:NAME` with all its splits, or `torchgeo:NAME:SPLIT` alone, which is then split by us.

    Args:
        name: what the report calls it.
        word: as above.
        root: the folder where torchgeo finds the dataset's files.

    Raises:
        UserError: torchgeo is not installed, has no such dataset, finds no files, or gives what has no labels or a mask
            of another size.
    """
    where = f"{name} ({word})"
    source = _open_source(where, word, root)
    seen = _Seen()
    for place, called in enumerate(source.ids):
        seen.add(_of_one_size(where, called, _checked(where, called, source.fetch, place)))
    if max(len(seen.labels), len(seen.counts)) < len(source.ids):
        raise UserError(f"{where} has samples without a label or mask among its {len(source.ids)}: name one split")
    if seen.labels:
        return _labelled(name, word, source, seen, _class_names(where, seen.labels, source.classes))
    kind: Kind = "masks" if seen.num_images == 1 else "changes"
    values = [value for found in seen.counts for value in found]
    return _labelled(name, word, source, seen, find_classes(where, kind, values, source.classes))


@dataclass(frozen=True, kw_only=True)
class _Source:
    """The opened splits of one torchgeo dataset as one sequence."""

    ids: tuple[str, ...]
    fetch: Callable[[int], _Raw]
    classes: tuple[str, ...]
    bands: tuple[str, ...]
    parts: NDArray[np.int64] | None


def _open_source(where: str, word: str, root: str) -> _Source:
    datasets = _import()
    factory, names = _find(where, word, datasets)
    splits = {name: _construct(where, datasets, factory, name, root) for name in names}
    first = {
        name: _checked(where, f"{name}/{0:08d}", partial(_fetch, split), 0)
        for name, split in splits.items()
        if len(split)
    }
    kept = sorted(name for name, raw in first.items() if raw.label is not None or raw.mask is not None)
    if not kept:
        raise UserError(f"{where} has no sample with one image or two and a label or mask: it cannot be evaluated on")
    places = [(name, index) for name in kept for index in range(len(splits[name]))]
    lock = threading.Lock()

    def fetch(place: int) -> _Raw:
        name, index = places[place]
        with lock:
            return _fetch(splits[name], index)

    return _Source(
        ids=tuple(f"{name or 'all'}/{index:08d}" for name, index in places),
        fetch=fetch,
        classes=_strings(splits[kept[0]], "classes"),
        bands=_bands(splits[kept[0]], first[kept[0]].images[0].shape[2]),
        parts=np.array([PART_NAMES[name] for name, _ in places], np.int64) if _is_split(kept) else None,
    )


def _find(where: str, word: str, datasets: Any) -> tuple[Any, list[str]]:
    """Return the class that a word names and the splits to open, [""] where the class has none."""
    _, class_name, wanted = [*word.split(":"), ""][:3]
    factory = getattr(datasets, class_name, None)
    if word.count(":") > 2 or not (inspect.isclass(factory) and issubclass(factory, datasets.NonGeoDataset)):
        raise UserError(
            f"{where}: torchgeo has no dataset {class_name!r} of single images: write torchgeo:NAME or "
            "torchgeo:NAME:SPLIT with a name of its list of non-geospatial datasets"
        )
    has_splits = "split" in inspect.signature(factory).parameters
    if wanted and not has_splits:
        raise UserError(f"{where}: torchgeo's {class_name} has no splits: write {PREFIX}{class_name}")
    told = [split for split in getattr(factory, "splits", ()) if has_splits and split in PART_NAMES]
    return factory, [wanted] if wanted else told or [""]


def _import() -> Any:
    try:
        return importlib.import_module("torchgeo.datasets")
    except ImportError as error:
        raise UserError(f"torchgeo:NAME needs torchgeo, which cannot be imported ({error}): {_INSTALL}") from error


def _construct(where: str, datasets: Any, factory: Any, split: str, root: str) -> Any:
    options = {"root": root, "download": False} | ({"split": split} if split else {})
    taken = inspect.signature(factory).parameters
    try:
        return factory(**{name: value for name, value in options.items() if name in taken})
    except AssertionError as error:
        there = ", ".join(getattr(factory, "splits", ()))
        raise UserError(f"{where}: torchgeo refuses split {split!r}, it knows {there or 'none'}") from error
    except (OSError, ValueError, RuntimeError, TypeError, datasets.DependencyNotFoundError) as error:
        told = " ".join(str(error).split())[:300]
        raise UserError(
            f"{where}: torchgeo cannot open it in {root}: {told}; say where its files are: {PREFIX}NAME#root=FOLDER"
        ) from error


def _is_split(names: Sequence[str]) -> bool:
    return len(names) > 1 and TRAIN in [PART_NAMES.get(name) for name in names]


def _fetch(split: Any, index: int) -> _Raw:
    try:
        sample = split[index]
    except (OSError, ValueError, RuntimeError, RasterioError) as error:
        raise UnreadableImageError(reason(error)) from error
    mask, label = sample.get("mask"), sample.get("label")
    plain = label is not None and np.ndim(label) == 0
    return _Raw(
        images=_images(sample),
        label=int(label) if plain else None,
        mask=None if mask is None else np.asarray(mask).reshape(np.shape(mask)[-2:]).astype(np.int64),
    )


def _checked(where: str, called: str, fetch: Callable[[int], _Raw], place: int) -> _Raw:
    try:
        return fetch(place)
    except UnreadableImageError as error:
        raise UserError(f"{where}: sample {called} cannot be read: {error}; mend its file") from error


def _of_one_size(where: str, called: str, raw: _Raw) -> _Raw:
    """Raise if images and mask of a sample differ in size; a mask beside a label does not matter."""
    masks = [raw.mask] if raw.mask is not None and raw.label is None else []
    sizes = [f"{array.shape[1]}×{array.shape[0]}" for array in (*raw.images, *masks)]
    if len(set(sizes)) > 1:
        raise UserError(
            f"{where}: sample {called} has images and mask of {', '.join(sizes)}: mend it, one size is needed"
        )
    return raw


def _images(sample: Mapping[str, Any]) -> tuple[NDArray[np.generic], ...]:
    """Return the image, or the two of a pair (torchgeo 0.8 stacks them [2, C, H, W], before it names them apart)."""
    names = [name for name in ("image", "image1", "image2") if name in sample]
    arrays = [np.asarray(sample[name]) for name in names]
    if len(arrays) == 1 and arrays[0].ndim == 4 and len(arrays[0]) == 2:
        arrays = list(arrays[0])
    if len(arrays) not in (1, 2) or any(array.ndim != 3 for array in arrays):
        shapes = ", ".join(str(array.shape) for array in arrays) or "no image"
        raise UserError(f"torchgeo gives {shapes}: one image [C, H, W] or two can be used")
    grey = [np.repeat(array, 3, axis=0) if len(array) == 1 else array for array in arrays]
    return tuple(np.moveaxis(array, 0, 2) for array in grey)


def _bands(split: Any, num_bands: int) -> tuple[str, ...]:
    named = tuple(band.lower() for band in _strings(split, "bands"))
    if len(set(named)) == num_bands == len(named):
        return named
    return RGB if num_bands == 3 else tuple(f"band_{number + 1}" for number in range(num_bands))


def _strings(split: Any, attribute: str) -> tuple[str, ...]:
    found = getattr(split, attribute, ())
    return tuple(map(str, found)) if isinstance(found, (list, tuple)) else ()


def _class_names(where: str, labels: Sequence[int], named: Sequence[str]) -> tuple[str, ...]:
    if min(labels) < 0 or max(labels) >= max(len(named), 2**15):
        raise UserError(f"{where} has labels {min(labels)}…{max(labels)}: they must count classes from 0")
    num_classes = max(labels) + 1
    return tuple(named) if len(named) >= num_classes else tuple(f"class_{number}" for number in range(num_classes))


def _labelled(
    name: str, word: str, source: _Source, seen: _Seen, classes: tuple[str, ...] | MaskClasses
) -> LabelledData:
    masks = classes if isinstance(classes, MaskClasses) else None
    rows = [[found.get(value, 0) for value in masks.values] for found in seen.counts] if masks else None
    dtype, num_bands = seen.dtype, len(source.bands)
    return LabelledData(
        name=name,
        url=word,
        kind="classes" if masks is None else "masks" if seen.num_images == 1 else "changes",
        classes=classes.names if isinstance(classes, MaskClasses) else classes,
        ids=source.ids,
        bands=source.bands,
        dtype=dtype,
        digest=seen.digest.hexdigest(),
        read=lambda place: _sample(source.fetch(place), dtype, num_bands, masks),
        labels=np.array(seen.labels, np.int64) if masks is None else None,
        given_parts=source.parts,
        mask_pixels=None if rows is None else np.array(rows, np.int64),
    )


def _sample(raw: _Raw, dtype: str, num_bands: int, masks: MaskClasses | None) -> Sample:
    mask = None if masks is None or raw.mask is None else class_of_pixels(raw.mask, masks)
    sizes = [array.shape[:2] for array in (*raw.images, *([] if mask is None else [mask]))]
    if len(set(sizes)) > 1 or any(image.shape[2] != num_bands for image in raw.images):
        told = ", ".join("×".join(map(str, image.shape)) for image in raw.images)
        raise UnreadableImageError(f"images of {told}, mask of {sizes[-1]}: one size and {num_bands} bands are needed")
    return Sample(images=tuple(image.astype(dtype) for image in raw.images), mask=mask)
