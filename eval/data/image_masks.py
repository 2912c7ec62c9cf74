"""Images, or pairs of images, with a mask each: semantic segmentation and change detection.

Opening reads every file once, the sizes of images and all of the masks (their values are the classes); memory holds
a size per file and a row of counts per mask. Images stay as large as they are: windows are the protocol's business.
"""

from collections.abc import Sequence

import numpy as np

from eval.data.decode import UnreadableImageError, image_size
from eval.data.files import probe, read_all, read_image
from eval.data.given import CLASSES_FILE
from eval.data.kinds import LabelledData, Sample
from eval.data.layout import Entry, Layout
from eval.data.masks import MaskClasses, class_of_pixels, count_values, decode_mask, find_classes
from shards import storage
from shards.errors import UserError

_Counts = dict[str, dict[int, int]]  # path of a mask → value → pixels
_Sizes = dict[str, tuple[int, int]]  # path → height and width


def open_image_masks(name: str, url: str, layout: Layout, class_names: Sequence[str], workers: int) -> LabelledData:
    """Check and fingerprint images with masks, and find the masks' classes.

    Args:
        name: of the data set.
        url: its folder.
        layout: of kind masks or changes.
        class_names: lines of classes.txt, which is then part of the digest; empty: there is none.
        workers: threads.

    Raises:
        UserError: masks without classes that one can tell (see `eval.data.masks`) or of another size than their
            images, no readable image.
    """
    where, entries = f"{name} ({url})", layout.entries
    counts: _Counts = {}
    sizes: _Sizes = {}

    def look(path: str, data: bytes) -> None:
        if path in masks:
            counts[path] = _counts_of(path, data)
        size = image_size(path, data) if path != CLASSES_FILE else None
        if size is not None:
            sizes[path] = size

    masks = {str(entry.mask) for entry in entries}
    paths = sorted({path for entry in entries for path in (*entry.images, str(entry.mask))})
    digest = read_all(url, paths + [CLASSES_FILE] * bool(class_names), workers, look)
    _check_sizes(where, entries, sizes)
    values = [value for found in counts.values() for value in found]
    classes = find_classes(where, layout.kind, values, class_names)
    bands, dtype = probe(where, url, [entry.images[0] for entry in entries])

    def read(index: int) -> Sample:
        return _read(url, entries[index], bands, dtype, classes)

    rows = [[counts[str(entry.mask)].get(value, 0) for value in classes.values] for entry in entries]
    return LabelledData(
        name=name, url=url, kind=layout.kind, classes=classes.names, ids=tuple(entry.images[0] for entry in entries),
        bands=bands, dtype=dtype, digest=digest, read=read, mask_pixels=np.array(rows, np.int64),
    )  # fmt: skip


def _counts_of(path: str, data: bytes) -> dict[int, int]:
    """Count the values of a mask; a damaged one has none: it is counted and left out where samples are read."""
    try:
        return count_values(decode_mask(path, data))
    except UnreadableImageError:
        return {}


def _check_sizes(where: str, entries: Sequence[Entry], sizes: _Sizes) -> None:
    """Raise if images and mask of a sample differ in size; a damaged file has none."""
    found = [{path: sizes[path] for path in _paths(entry) if path in sizes} for entry in entries]
    torn = [each for each in found if len(set(each.values())) > 1]
    if torn:
        raise UserError(
            f"{where}: {_told(torn[0])} ({len(torn)} such samples): images and masks must have one size; mend or "
            "remove them"
        )


def _paths(entry: Entry) -> tuple[str, ...]:
    return (*entry.images, str(entry.mask))


def _told(sizes: _Sizes) -> str:
    return ", ".join(f"{path} is {width}×{height}" for path, (height, width) in sizes.items())


def _read(url: str, entry: Entry, bands: tuple[str, ...], dtype: str, classes: MaskClasses) -> Sample:
    images = tuple(read_image(url, path, bands, dtype) for path in entry.images)
    path = str(entry.mask)
    mask = class_of_pixels(decode_mask(path, storage.read_bytes(storage.child(url, path))), classes)
    sizes = {path: array.shape[:2] for path, array in zip(_paths(entry), (*images, mask), strict=True)}
    if len(set(sizes.values())) > 1:
        raise UnreadableImageError(f"{_told(sizes)}: images and mask must have one size")
    return Sample(images=images, mask=mask)
