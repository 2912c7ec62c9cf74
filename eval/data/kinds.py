"""What a labelled data set is to the evaluation, wherever it comes from.

A LabelledData holds names, classes and a fingerprint, never pixels: `read` fetches one sample when it is wanted.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["classes", "masks", "changes"]
"""A class per image; a class per pixel; a change per pixel between two images."""

IGNORE = 255
"""The mask value of pixels that no metric and no training sees."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One decoded sample."""

    images: tuple[NDArray[np.generic], ...]
    """One image [H, W, C], or the two of a pair, of equal size, bands and type."""
    mask: NDArray[np.uint8] | None = None
    """Class of each pixel [H, W], IGNORE where there is none; None for kind "classes"."""


@dataclass(frozen=True, kw_only=True)
class LabelledData:
    """A labelled data set; sample i is `ids[i]`."""

    name: str
    url: str
    kind: Kind
    classes: tuple[str, ...]
    """Class c is `classes[c]`; of changes: unchanged, changed."""
    ids: tuple[str, ...]
    """Relative paths or sample keys, sorted."""
    bands: tuple[str, ...]
    dtype: str
    digest: str
    """sha256 over the names and contents of all samples and their labels, and over what the bands are."""
    read: Callable[[int], Sample] = field(repr=False)
    """Fetch and decode one sample, from any thread; raises UnreadableImageError if it is damaged or unlike the rest."""
    labels: NDArray[np.int64] | None = None
    """Class of each sample [N]; None unless the kind is "classes"."""
    given_parts: NDArray[np.int64] | None = None
    """The split that came with the data: TRAIN, VALIDATION or TEST of eval.data.split for each sample [N]."""
    mask_pixels: NDArray[np.int64] | None = None
    """Pixels of each class in each mask [N, K], 0 where the mask is unreadable; None for kind "classes"."""
    groups: tuple[str, ...] | None = None
    """Place of each sample: those of one group overlap or lie close, so that a spatial split keeps them together."""
    num_unlisted: int = 0
    """Further samples that the split which came with the data names in no part: nothing is asked of them."""
