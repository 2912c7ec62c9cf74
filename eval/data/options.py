"""What may stand behind a path after --data: `PATH#bands=1-7`, with names if wanted, `PATH#bands=3:red,2:green,1:blue`.

A path is cut at its last "#" only if WORD= follows, so that other paths with a "#" stay whole.
"""

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from eval.data.kinds import LabelledData, Sample
from shards.errors import UserError

_ITEM = re.compile(r"(\d+)-(\d+)|([^:]+)(?::([^:]+))?")


@dataclass(frozen=True, kw_only=True)
class Band:
    """One band that is kept."""

    index: int
    """From 0, among the bands of the data."""
    name: str


def split_options(url: str, known: Collection[str]) -> tuple[str, dict[str, str]]:
    """Return the path and the options behind it, as in `PATH#bands=1-3&root=/data`.

    Raises:
        UserError: an option that is not among the known ones.
    """
    match = re.fullmatch(r"(.+)#(\w+=[^#]*)", url)
    if match is None:
        return url, {}
    pairs = [item.partition("=") for item in match[2].split("&")]
    for name, _, value in pairs:
        if name not in known or not value:
            raise UserError(f"option {name}={value} of --data {url} is unknown or empty: known are {', '.join(known)}")
    return match[1], {name: value for name, _, value in pairs}


def parse_bands(text: str, bands: tuple[str, ...]) -> tuple[Band, ...]:
    """Return the bands that `1-3,7,nir,9:swir` names: positions from 1, ranges, names; after a colon the new name.

    Raises:
        UserError: an item names no band, or two bands come out with one name.
    """
    chosen: list[Band] = []
    for item in text.split(","):
        match = _ITEM.fullmatch(item.strip())
        places = _places(match, bands) if match else []
        if not match or not places:
            raise UserError(
                f"bands={text}: {item!r} names none of the {len(bands)} bands {','.join(bands)}; "
                "write positions from 1, ranges or names, as in bands=1-3,7 or bands=3:red,2:green,1:blue"
            )
        chosen += [Band(index=place, name=match[4] or bands[place]) for place in places]
    names = [band.name for band in chosen]
    if len(set(names)) < len(names):
        raise UserError(f"bands={text} gives the names {','.join(names)}: each band needs a name of its own")
    return tuple(chosen)


def _places(match: re.Match[str], bands: tuple[str, ...]) -> list[int]:
    if match[3] is None:
        first, last = int(match[1]), int(match[2])
        return list(range(first - 1, last)) if 1 <= first <= last <= len(bands) else []
    if match[3] in bands:
        return [bands.index(match[3])]
    return [int(match[3]) - 1] if match[3].isdigit() and 1 <= int(match[3]) <= len(bands) else []


def keep_bands(data: LabelledData, text: str) -> LabelledData:
    """Return the data with the chosen bands alone, in the order of the choice; another digest than the whole's.

    Raises:
        UserError: as `parse_bands`.
    """
    chosen = parse_bands(text, data.bands)
    places = [band.index for band in chosen]
    said = f"{data.digest}  bands {','.join(f'{band.index + 1}:{band.name}' for band in chosen)}"

    def read(index: int) -> Sample:
        sample = data.read(index)
        return replace(sample, images=tuple(_cut(image, places) for image in sample.images))

    names = tuple(band.name for band in chosen)
    return replace(data, bands=names, read=read, digest=hashlib.sha256(said.encode()).hexdigest())


def _cut(image: NDArray[np.generic], places: list[int]) -> NDArray[np.generic]:
    return np.ascontiguousarray(image[:, :, places])
