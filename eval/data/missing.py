"""Missing data: the values of an image of floats that are NaN or infinite, as beyond the border of a scene.

What a file of floats says is no data is NaN when it was decoded; of integers it is 0, as in shards of ours.

They count for nothing where bands are measured, and a model sees the mean of the band in their place.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def present(image: NDArray[np.generic]) -> NDArray[np.bool_] | None:
    """Return which values of an image are there, bool of its shape; None: all of them."""
    if image.dtype.kind != "f":
        return None
    finite: NDArray[np.bool_] = np.isfinite(image)
    return None if finite.all() else finite


def filled(image: NDArray[np.generic], mean: Sequence[float] | None) -> NDArray[np.generic]:
    """Return an image [H, W, C] with the mean of its band in the place of each missing value.

    Args:
        image: of any type; only floats can be missing.
        mean: of each band, by which a model normalises: what was missing is 0 for it. None: there is none, so it is
            the mean of the image's own values, and 0 in a band that has none.
    """
    there = present(image)
    if there is None:
        return image
    means = _means(np.where(there, image, 0), there) if mean is None else np.array(mean)
    return np.where(there, image, means.astype(image.dtype))


def _means(values: NDArray[np.generic], there: NDArray[np.bool_]) -> NDArray[np.float64]:
    numbers = there.sum(axis=(0, 1))
    means: NDArray[np.float64] = values.sum(axis=(0, 1), dtype=np.float64) / np.maximum(numbers, 1)
    return means
