"""Pictures of what goes into the model and comes out of it: patches back in their places, sets, features as colours.

Pure functions from arrays to arrays, and to data URIs. A picture of 448 px costs 10 to 60 kB in the page.

Shape legend: P patches, D = C · patch² values in the order band, row, column, C bands, H height, W width.
"""

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Indices = NDArray[np.int64]

SET_COLOURS: Mapping[str, tuple[int, int, int]] = {
    "student": (217, 130, 43),
    "learnable": (139, 148, 158),
    "teacher": (43, 127, 168),
}
"""As the classes of the page's template have them."""
_RGB = ("red", "green", "blue")
_MAX_LOSSLESS_PX = 128
_QUALITY = 82
_STRIPES = 56
"""Across a picture; a small one has broader ones than that."""
_MIN_STRIPE_PX = 4


@dataclass(frozen=True, kw_only=True)
class Look:
    """How bands become a picture: which ones, and what is black and white."""

    places: tuple[int, int, int]
    """Of what is shown as red, green and blue."""
    low: float
    """Shown as black, as a share of the value range."""
    high: float

    def __call__(self, shares_HWC: Floats) -> Bytes:
        """Return uint8 [H, W, 3] from values as shares of the range."""
        rgb = (shares_HWC[:, :, self.places] - self.low) * (255 / (self.high - self.low))
        picture: Bytes = rgb.round().clip(0, 255).astype(np.uint8)
        return picture


def choose_look(shares_HWC: Floats, bands: Sequence[str], *, is_8_bit: bool) -> Look:
    """Return how to show a tile and all that is cut from it.

    Args:
        shares_HWC: the tile, as shares of the value range.
        bands: their names; without red, green and blue the first three are shown, or the first alone.
        is_8_bit: 8-bit colours are shown as they are, all else between the 2nd and 98th percentile.
    """
    has_rgb = set(_RGB) <= set(bands)
    chosen = [list(bands).index(name) for name in _RGB] if has_rgb else [0, 1, 2] if len(bands) >= 3 else [0, 0, 0]
    places = (chosen[0], chosen[1], chosen[2])
    if is_8_bit and has_rgb:
        return Look(places=places, low=0.0, high=1.0)
    low, high = (float(value) for value in np.percentile(shares_HWC[:, :, places], [2, 98]))
    return Look(places=places, low=low, high=max(high, low + 1e-6))


def place_patches(
    patches_PD: Floats, indices_P: Indices, grid: int, num_bands: int
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return an image [H, W, C] with patches in their places and zeros elsewhere, and where they are [H, W].

    Args:
        patches_PD: values.
        indices_P: raster places in a square of grid² patches.
        grid: patches per side.
        num_bands: C.
    """
    patch_px = round((patches_PD.shape[1] / num_bands) ** 0.5)
    image = np.zeros((grid, grid, num_bands, patch_px, patch_px), np.float32)
    seen = np.zeros((grid, grid), bool)
    rows, columns = np.divmod(indices_P, grid)
    image[rows, columns] = patches_PD.reshape(-1, num_bands, patch_px, patch_px)
    seen[rows, columns] = True
    side_px = grid * patch_px
    # grid, grid, C, patch, patch -> grid, patch, grid, patch, C
    image_HWC = image.transpose(0, 3, 1, 4, 2).reshape(side_px, side_px, num_bands)
    return image_HWC, seen.repeat(patch_px, 0).repeat(patch_px, 1)


def with_holes(rgb_HW3: Bytes, seen_HW: NDArray[np.bool_]) -> Bytes:
    """Return uint8 [H, W, 4], transparent where nothing is seen."""
    alpha = np.where(seen_HW, 255, 0).astype(np.uint8)
    return np.dstack([np.where(seen_HW[:, :, None], rgb_HW3, 0).astype(np.uint8), alpha])


def hatched(rgba_HW4: Bytes, where_HW: NDArray[np.bool_]) -> Bytes:
    """Return a picture with grey diagonal stripes where something is to be predicted."""
    y, x = np.indices(where_HW.shape)
    stripe_px = max(_MIN_STRIPE_PX, len(where_HW) // _STRIPES)
    stripe = where_HW & ((x + y) % (2 * stripe_px) < stripe_px)
    picture = rgba_HW4.copy()
    picture[where_HW] = (*SET_COLOURS["learnable"], 50)
    picture[stripe] = (*SET_COLOURS["learnable"], 190)
    return picture


def set_map(sets: Mapping[str, Indices], grid: int) -> Bytes:
    """Return uint8 [grid, grid, 4]: one pixel for each patch in the colour of its set, transparent if it is in none."""
    picture = np.zeros((grid * grid, 4), np.uint8)
    for name, indices in sets.items():
        picture[indices] = (*SET_COLOURS[name], 255)
    return picture.reshape(grid, grid, 4)


def component_colours(features_MW: Floats) -> Bytes:
    """Return uint8 [M, 3]: the first three principal components as red, green and blue.

    Each is stretched between its 2nd and 98th percentile over all M; the sign of a component, which means nothing, is
    chosen so that its largest weight is positive. Fewer than three components leave the others at medium.

    Args:
        features_MW: of M patches, of several images, so that the same colour means the same in all of them.
    """
    centred = features_MW.astype(np.float64) - features_MW.mean(0, dtype=np.float64)
    # The eigenvectors of W × W and not a decomposition of M × W: M may be thousands.
    strengths, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, ::-1][:, :3]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    scores = centred @ axes
    low, high = np.percentile(scores, [2, 98], axis=0)
    span = high - low
    # What has no extent but rounding errors is no component.
    empty = span <= 1e-6 * max(float(np.sqrt(max(strengths[-1], 0.0) / len(centred))), 1e-12)
    shares = np.where(empty, 0.5, (scores - low) / np.where(empty, 1.0, span))
    colours = np.full((len(centred), 3), 128, np.uint8)
    colours[:, : shares.shape[1]] = (shares * 255).round().clip(0, 255)
    return colours


def data_uri(picture: Bytes) -> str:
    """Return a picture [H, W, 3 or 4] as a data URI: WebP, lossless where it is small."""
    out = io.BytesIO()
    is_small = max(picture.shape[:2]) <= _MAX_LOSSLESS_PX
    Image.fromarray(picture).save(out, "WEBP", lossless=is_small, quality=_QUALITY, method=4)
    return f"data:image/webp;base64,{b64encode(out.getvalue()).decode()}"
