"""Measure images that others encoded: type, bands, size, mean and deviation, from a few of them.

Costs the read and the decoding of at most 256 images, a few of them in memory at a time.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from shards import storage
from shards.errors import UserError
from shards.images import Pixels, decode_image
from shards.indexing.faults import Faults
from shards.schema import SAMPLES, Band, sha256_hex
from shards.settle import band_figures

MAX_MEASURED = 256
"""Images from which the figures are taken."""
DTYPES = ("uint8", "uint16", "int16", "float32")
"""Types of pixels that a dataset may have."""
_NAMES = {1: ("grey",), 3: ("red", "green", "blue")}
_READS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class Image:
    """Where an encoded image lies."""

    url: str
    """Of its tar."""
    key: str
    extension: str
    offset: int
    size: int
    sha256: bytes


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What the images have in common."""

    bands: tuple[Band, ...]
    dtype: str
    tile_px: int
    """The smallest side seen."""


@dataclass(frozen=True, kw_only=True)
class _Measured:
    key: str
    kind: tuple[str, int]
    """Type and count of channels."""
    side_px: int
    row: dict[str, object]
    """num_valid, band_sums, band_squares as in the samples table."""


def spread(num_samples: int) -> list[int]:
    """Return the rows to measure: all of few, else 256 at even distances, the first among them; ascending."""
    count = min(num_samples, MAX_MEASURED)
    return [place * num_samples // count for place in range(count)]


def measure(images: Sequence[Image], names: Sequence[str] | None, faults: Faults) -> Figures | None:
    """Read and decode images and take their figures; None if any is not to be used (what is wrong is told).

    Args:
        images: at least one.
        names: of the bands; by default grey, red green blue, or band_1, band_2…
        faults: takes what is wrong: an image that cannot be decoded, several types, another number of names.
    """
    measured = list(_measure_each(images, faults))
    kinds = Counter(each.kind for each in measured)
    if len(kinds) > 1:
        told = ", ".join(
            f"{dtype} with {channels} (such as {next(each.key for each in measured if each.kind == kind)!r})"
            for kind, _ in kinds.most_common()
            for dtype, channels in [kind]
        )
        faults.add(f"images differ in type or number of bands: {told}; a dataset has one kind")
    if len(kinds) != 1 or len(measured) < len(images):
        return None
    ((dtype, channels),) = kinds
    names = names or _NAMES.get(channels) or [f"band_{number}" for number in range(1, channels + 1)]
    if len(names) != channels:
        faults.add(f"--bands names {len(names)} bands ({', '.join(names)}): the images have {channels}")
        return None
    schema = pa.schema([SAMPLES.field(name) for name in ("num_valid", "band_sums", "band_squares")])
    rows = pa.Table.from_pylist([each.row for each in measured], schema)
    return Figures(bands=band_figures(names, [rows]), dtype=dtype, tile_px=min(each.side_px for each in measured))


def _measure_each(images: Iterable[Image], faults: Faults) -> Iterator[_Measured]:
    for found in storage.in_order(_READS_AT_ONCE, (partial(_measure_image, image) for image in images)):
        if isinstance(found, str):
            faults.add(found)
        else:
            yield found


def _measure_image(image: Image) -> _Measured | str:
    """Return the figures of one image, or why there are none."""
    name = f"{image.url}: image {image.extension!r} of sample {image.key!r}"
    try:
        with storage.user_errors(image.url):
            data = storage.read_range(image.url, image.offset, image.size)
    except UserError as error:
        return str(error)
    if sha256_hex(data) != image.sha256.hex():
        return f"{name} is not what it was: the file changed while it was being indexed"
    try:
        pixels = decode_image(image.extension, data)
        return _figures(image.key, pixels)
    except ValueError as error:
        return f"{name}: {error}"


def _figures(key: str, pixels: Pixels) -> _Measured:
    """Take the figures of an image [height, width, channels].

    Raises:
        ValueError: it has another shape or type, or no value that is a number.
    """
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise ValueError(f"shape {pixels.shape} is not [height, width, bands]")
    height, width, channels = pixels.shape
    if height < width == channels:
        raise ValueError(f"shape {pixels.shape} looks like [bands, height, width]: only [height, width, bands] is read")
    if str(pixels.dtype) not in DTYPES:
        raise ValueError(f"type {pixels.dtype} is none of {', '.join(DTYPES)}")
    values_PB = pixels.reshape(-1, channels).astype(np.float64)
    values_PB = values_PB[np.isfinite(values_PB).all(axis=1)]
    if not len(values_PB):
        raise ValueError("no pixel has finite values in all bands")
    row: dict[str, object] = {
        "num_valid": len(values_PB),
        "band_sums": values_PB.sum(axis=0).tolist(),
        "band_squares": (values_PB**2).sum(axis=0).tolist(),
    }
    return _Measured(key=key, kind=(str(pixels.dtype), channels), side_px=min(height, width), row=row)
