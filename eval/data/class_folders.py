"""Labelled images as a folder with one folder of images for every class, local or in a bucket.

Opening costs one reading of every file (its sha256 enters the data's digest), no decoding.
"""

from collections import Counter

import numpy as np

from eval.data.files import probe, read_all, read_image
from eval.data.kinds import LabelledData, Sample
from eval.data.layout import EXPECTED, Layout
from shards.errors import UserError


def open_class_folders(name: str, url: str, layout: Layout, workers: int) -> LabelledData:
    """Check and fingerprint a folder of class folders.

    Raises:
        UserError: fewer than two classes, an empty class, a class with one image, no readable image.
    """
    where, entries = f"{name} ({url})", layout.entries
    sizes = Counter(str(entry.label) for entry in entries)
    if layout.empty_classes:
        raise UserError(
            f"class folder {layout.empty_classes[0]!r} of {where} has no images: fill or remove it; else {EXPECTED}"
        )
    for label, size in sorted(sizes.items()):
        if size < 2:
            raise UserError(f"class {label!r} of {where} has one image, too few to train and test: add or remove")
    if len(sizes) < 2:
        found = ", ".join(sizes) or "no image in any folder"
        raise UserError(f"{where} needs two or more class folders with images, found: {found}; {EXPECTED}")
    classes, paths = tuple(sorted(sizes)), tuple(entry.images[0] for entry in entries)
    place = {label: number for number, label in enumerate(classes)}
    digest = read_all(url, paths, workers)
    bands, dtype = probe(where, url, paths)

    def read(index: int) -> Sample:
        return Sample(images=(read_image(url, paths[index], bands, dtype),))

    return LabelledData(
        name=name, url=url, kind="classes", classes=classes, ids=paths, bands=bands, dtype=dtype, digest=digest,
        read=read, labels=np.array([place[str(entry.label)] for entry in entries], np.int64),
    )  # fmt: skip
