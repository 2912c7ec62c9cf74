"""Masks: from the values in a file to the class of each pixel.

A class is a value that occurs in any mask of the data set; class c is the c-th of them, ascending. Of the values

- 255 is no class but "ignore" where there are others besides 0 (0 and 255 alone are the two classes of a binary mask);
- negative ones are "ignore" always;
- a mask in a lossy format (JPEG) is binary: below 128 or not; one with other greys or colours is refused.

Colour-coded masks and masks of floats are refused: nobody can tell their classes.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rasterio.io import MemoryFile

from eval.data.decode import UnreadableImageError, extension, needs_gdal, reason
from eval.data.kinds import IGNORE, Kind
from shards.errors import UserError

_LOSSY_EXTENSIONS = frozenset({".jpg", ".jpeg"})
_THRESHOLD = 128
_LOSSY_NOISE = 64  # what compression may add to black and white, also from band to band
_MAX_GREY_SHARE = 0.01  # of pixels further from black and white; 0 in the truth of INLPG and at quality 50
_MAX_CLASSES = IGNORE  # 0…254
_CHANGES = ("unchanged", "changed")
IGNORED_NAME = "ignore"
"""What a line of classes.txt says of a value that is no class."""


@dataclass(frozen=True, kw_only=True)
class MaskClasses:
    """The classes of a data set's masks."""

    values: tuple[int, ...]
    """The value of each class in the files, ascending."""
    names: tuple[str, ...]
    ignored: frozenset[int] = frozenset()
    """Values that are no class."""


def decode_mask(path: str, data: bytes) -> NDArray[np.integer]:
    """Return the values [H, W] of a mask's bytes: palette indices, not colours; 0 and 255 of a lossy format.

    Raises:
        UnreadableImageError: damaged.
        UserError: it holds colours or floats.
    """
    try:
        values = _decode_geo(data) if needs_gdal(path, data) else _decode_plain(data)
    except MemoryError:
        raise
    # Pillow's readers pass on whatever damaged bytes lead to: struct.error, SyntaxError, IndexError, …
    except Exception as error:
        raise UnreadableImageError(f"mask {path}: {reason(error)}") from error
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    if values.dtype.kind not in "iu":
        raise UserError(f"mask {path} holds {values.dtype}, not classes: write it as 8- or 16-bit integers")
    if extension(path) in _LOSSY_EXTENSIONS:
        return _binary(path, values)
    if values.shape[2] > 1 and (values != values[:, :, :1]).any():
        raise UserError(f"mask {path} holds colours: write the number of its class into each pixel of one band")
    plane: NDArray[np.integer] = values[:, :, 0]
    return plane


def _binary(path: str, values: NDArray[Any]) -> NDArray[np.integer]:
    """Return 0 and 255 for black and white values [H, W, C] that compression has blurred."""
    plain = values.astype(np.int16)
    grey = (np.minimum(plain, 255 - plain) >= _LOSSY_NOISE).any(axis=2) | (np.ptp(plain, axis=2) >= _LOSSY_NOISE)
    if grey.mean() > _MAX_GREY_SHARE:
        raise UserError(f"mask {path} holds greys or colours that its lossy format has changed: write it as PNG")
    return np.where(plain[:, :, 0] >= _THRESHOLD, 255, 0).astype(np.uint8)


def _decode_plain(data: bytes) -> NDArray[Any]:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        if image.mode in ("LA", "PA", "RGBA"):  # what alpha says of a class is not known
            return np.asarray(image)[:, :, :-1]
        pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _decode_geo(data: bytes) -> NDArray[Any]:
    with MemoryFile(data) as memory, memory.open() as image:
        chosen = [index + 1 for index, colour in enumerate(image.colorinterp) if colour.name != "alpha"]
        return np.moveaxis(image.read(chosen), 0, 2)


def count_values(values: NDArray[np.integer]) -> dict[int, int]:
    """Return how many pixels have each value."""
    if values.dtype == np.uint8:
        counts = np.bincount(values.ravel(), minlength=256)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def find_classes(where: str, kind: Kind, values: Sequence[int], names: Sequence[str] = ()) -> MaskClasses:
    """Return the classes of a data set whose masks hold these values.

    Args:
        where: what to call the data in a message.
        kind: masks, or changes: the classes are unchanged and changed.
        values: all that occur in the data set.
        names: lines of classes.txt: the name of value 0, 1, …; empty: class_0, class_1, …

    Raises:
        UserError: fewer than two classes or more than 255, a class without a name, changes that are not binary.
    """
    there = sorted(set(values))
    binary = set(there) == {0, 255}
    named = {0: 0, 255: 1} if binary else {value: value for value in there if value >= 0 and value != IGNORE}
    if kind == "changes":
        return _find_changes(where, there, named)
    # So many values are no classes, and asking for their names would help nobody.
    if len(named) > _MAX_CLASSES:
        raise UserError(f"the masks of {where} hold {len(named)} values: at most {_MAX_CLASSES} can be classes")
    if names and named and max(named.values()) >= len(names):
        raise UserError(f"classes.txt of {where} has {len(names)} lines, but value {max(named)} occurs: add its name")
    said = {value: names[place] if names else f"class_{place}" for value, place in named.items()}
    kept = [value for value in named if said[value] != IGNORED_NAME]
    if len(kept) < 2:
        raise UserError(f"the masks of {where} hold {_listed(there)}: two or more classes are needed")
    return MaskClasses(
        values=tuple(kept), names=tuple(said[value] for value in kept), ignored=frozenset(there) - set(kept)
    )


def _find_changes(where: str, there: Sequence[int], named: Mapping[int, int]) -> MaskClasses:
    if sorted(named.values()) != [0, 1]:
        raise UserError(f"the change masks of {where} hold {_listed(there)}: 0 and 1, or 0 and 255, are needed")
    return MaskClasses(values=tuple(named), names=_CHANGES, ignored=frozenset(there) - set(named))


def _listed(values: Sequence[int]) -> str:
    shown = ", ".join(map(str, values[:8])) or "nothing"
    return f"the value {shown}" if len(values) == 1 else f"the values {shown}{', …' if len(values) > 8 else ''}"


def class_of_pixels(values: NDArray[np.integer], classes: MaskClasses) -> NDArray[np.uint8]:
    """Return the class of each pixel [H, W], IGNORE where there is none.

    Raises:
        UnreadableImageError: a value that no mask had when the data were opened.
    """
    known = np.array(classes.values)
    place = np.searchsorted(known, values).clip(max=len(known) - 1)
    is_class = known[place] == values
    strange = values[~is_class & ~np.isin(values, list(classes.ignored))]
    if strange.size:
        raise UnreadableImageError(f"mask with value {strange[0]}, which was not there when the data were opened")
    return np.where(is_class, place, IGNORE).astype(np.uint8)
