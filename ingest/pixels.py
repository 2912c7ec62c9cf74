"""From source values to tile values, and what is measured of a tile: pure functions of arrays.

Shapes: C bands, H × W pixels; strips come as [C, H, W] from the raster library, tiles leave as [H, W, C].
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.config import Recipe
from shards.images import Pixels


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Source value `low` becomes 0 and `high` becomes 255, per band, clipped; after adding `offset`."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    offset: float


def policy(recipe: Recipe, dtype: str) -> str:
    """Return the normalisation that a scene of this type gets: none, linear, percentile or keep."""
    if recipe.normalisation == "auto":
        return "none" if dtype == "uint8" else "percentile"
    return recipe.normalisation


def scale(strip_CHW: NDArray[Any], scaling: Scaling) -> NDArray[np.uint8]:
    """Return uint8 [C, H, W]: round((value + offset − low) · 255 / (high − low)), clipped to 0…255.

    8- and 16-bit integers go through a table of all their values, so that they cost one look-up per pixel.
    """
    out = np.empty(strip_CHW.shape, np.uint8)
    for band, (low, high) in enumerate(zip(scaling.low, scaling.high, strict=True)):
        if strip_CHW.dtype.kind in "iu" and strip_CHW.dtype.itemsize <= 2:
            info = np.iinfo(strip_CHW.dtype)
            values = np.arange(info.min, info.max + 1, dtype=np.float64)
            table = _scale_values(values, low, high, scaling.offset)
            # Seen as unsigned, negative values come last: roll the table to match.
            unsigned = strip_CHW[band].view(f"u{strip_CHW.dtype.itemsize}")
            out[band] = np.roll(table, info.min)[unsigned]
        else:
            out[band] = _scale_values(strip_CHW[band].astype(np.float64), low, high, scaling.offset)
    return out


def _scale_values(values: NDArray[np.float64], low: float, high: float, offset: float) -> NDArray[np.uint8]:
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.rint((values + offset - low) / (high - low) * 255.0)
    result: NDArray[np.uint8] = np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255).astype(np.uint8)
    return result


def outside(strip_CHW: NDArray[Any], scaling: Scaling) -> NDArray[np.bool_]:
    """Return bool [H, W]: pixels where scaling clips the value of any band."""
    shifted_low = np.array(scaling.low)[:, None, None] - scaling.offset
    shifted_high = np.array(scaling.high)[:, None, None] - scaling.offset
    clipped: NDArray[np.bool_] = np.any((strip_CHW < shifted_low) | (strip_CHW > shifted_high), axis=0)
    return clipped


def percentile_bounds(
    values_CP: NDArray[Any], percentiles: tuple[float, float]
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return (low, high) per band from sampled valid values [C, P]; None if there are none.

    Takes existing values (no interpolation), so the result is exact for every type. A band whose two
    percentiles coincide gets a range of one unit, or of the type's next larger value where one unit is too little.
    """
    if values_CP.shape[1] == 0:
        return None
    low, high = np.quantile(values_CP, np.array(percentiles) / 100, axis=1, method="lower").astype(np.float64)
    high = np.where(high > low, high, np.maximum(low + 1, np.nextafter(low, np.inf)))
    return tuple(low.tolist()), tuple(high.tolist())


@dataclass(frozen=True, kw_only=True)
class TileFigures:
    """What a tile's pixels say, over its valid pixels."""

    num_valid: int
    valid_share: float
    """0…1."""
    contrast: float
    """Largest standard deviation of a band; share of 255 for uint8, else of the tile's largest magnitude."""
    sums: tuple[float, ...]
    """Sum of values per band; integers for integer types."""
    squares: tuple[float, ...]
    """Sum of squared values per band."""


# Wide enough for the square of any value; sums of squares are then exact in 64 bits.
_SQUARE_TYPES = {"uint8": np.uint16, "uint16": np.uint32, "int16": np.int32}


def measure(pixels_HWC: Pixels, valid_HW: NDArray[np.bool_]) -> TileFigures:
    """Measure a tile. Sums are exact for integer types of up to 16 bits."""
    num_valid = int(np.count_nonzero(valid_HW))
    bands_CHW = pixels_HWC.transpose(2, 0, 1)
    if num_valid == valid_HW.size:
        values_CP = np.ascontiguousarray(bands_CHW).reshape(len(bands_CHW), -1)
    else:
        values_CP = bands_CHW[:, valid_HW]
    dtype = pixels_HWC.dtype.name
    total: Any = np.float64 if dtype == "float32" else np.int64
    sums = values_CP.sum(axis=1, dtype=total)
    wide = values_CP.astype(_SQUARE_TYPES.get(dtype, np.float64))
    squares = (wide * wide).sum(axis=1, dtype=total)
    return TileFigures(
        num_valid=num_valid,
        valid_share=num_valid / valid_HW.size,
        contrast=_contrast(values_CP, sums, squares),
        sums=tuple(sums.tolist()),
        squares=tuple(squares.tolist()),
    )


def _contrast(values_CP: NDArray[Any], sums: NDArray[Any], squares: NDArray[Any]) -> float:
    count = values_CP.shape[1]
    if count == 0:
        return 0.0
    variance = np.maximum(squares / count - (sums / count) ** 2, 0)
    if values_CP.dtype == np.uint8:
        return float(np.sqrt(variance.max())) / 255
    largest = max(abs(float(values_CP.min())), abs(float(values_CP.max())), 1e-12)
    return float(np.sqrt(variance.max())) / largest


def refusal(figures: TileFigures, recipe: Recipe) -> tuple[str, str] | None:
    """Return (reason code, detail) if the filters leave the tile out, else None."""
    if figures.valid_share < recipe.min_valid_share or figures.num_valid == 0:
        return "low_valid_share", f"{figures.valid_share:.3f} < {recipe.min_valid_share}"
    if figures.contrast < recipe.min_contrast:
        return "low_contrast", f"{figures.contrast:.4f} < {recipe.min_contrast}"
    return None
