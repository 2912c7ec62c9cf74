"""Images, or pairs of images, with a mask each: semantic segmentation and change detection.

Opening reads every file once and decodes every mask (its values are the classes); memory holds a row of counts per
mask. Images stay as large as they are: windows are the protocol's business.
"""

from collections.abc import Sequence

import numpy as np

from eval.data.decode import UnreadableImageError
from eval.data.files import probe, read_all, read_image
from eval.data.given import CLASSES_FILE
from eval.data.kinds import LabelledData, Sample
from eval.data.layout import Entry, Layout
from eval.data.masks import MaskClasses, class_of_pixels, count_values, decode_mask, find_classes
from shards import storage

_Counts = dict[str, dict[int, int]]  # path of a mask → value → pixels


def open_image_masks(name: str, url: str, layout: Layout, class_names: Sequence[str], workers: int) -> LabelledData:
    """Check and fingerprint images with masks, and find the masks' classes.

    Args:
        name: of the data set.
        url: its folder.
        layout: of kind masks or changes.
        class_names: lines of classes.txt, which is then part of the digest; empty: there is none.
        workers: threads.

    Raises:
        UserError: masks without classes that one can tell (see `eval.data.masks`), no readable image.
    """
    where, entries = f"{name} ({url})", layout.entries
    counts: _Counts = {}

    def look(path: str, data: bytes) -> None:
        if path in masks:
            counts[path] = _counts_of(path, data)

    masks = {str(entry.mask) for entry in entries}
    paths = sorted({path for entry in entries for path in (*entry.images, str(entry.mask))})
    digest = read_all(url, paths + [CLASSES_FILE] * bool(class_names), workers, look)
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


def _read(url: str, entry: Entry, bands: tuple[str, ...], dtype: str, classes: MaskClasses) -> Sample:
    images = tuple(read_image(url, path, bands, dtype) for path in entry.images)
    path = str(entry.mask)
    mask = class_of_pixels(decode_mask(path, storage.read_bytes(storage.child(url, path))), classes)
    sizes = {path: array.shape[:2] for path, array in zip((*entry.images, path), (*images, mask), strict=True)}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{path} is {width}×{height}" for path, (height, width) in sizes.items())
        raise UnreadableImageError(f"{told}: images and mask must have one size")
    return Sample(images=images, mask=mask)
