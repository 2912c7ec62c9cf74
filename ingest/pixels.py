"""From source values to tile values: pure functions of arrays.

Shapes: C bands, H × W pixels, P values; strips come as [C, H, W] from the raster library, tiles leave as [H, W, C].
All results are the same on every processor: integers where they can be, else the basic operations that IEEE 754
rounds alike everywhere, in a fixed order.

Cost on one core for a tile of 512² × 3: `scale` 0.5 ms (uint16; by a table alone 0.8), 2.3 ms (float32); `downsample`
0.5–1.5 ms.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ingest.config import Recipe
from ingest.reasons import SceneRejectedError

# Scaled at a time: what is worked with stays in the processor's cache.
_INTEGERS_AT_ONCE, _FLOATS_AT_ONCE = 2**18, 2**15
_DOWNSAMPLED_VALUES = 2**20


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """The value (source value + offset) · scale: `low` becomes 0 and `high` becomes 255, per band, clipped."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    offset: float = 0.0
    scale: float = 1.0


def policy(recipe: Recipe, dtype: str) -> str:
    """Return the normalisation that a scene of this type gets: none, linear, percentile or keep."""
    if recipe.normalisation == "auto":
        return "none" if dtype == "uint8" else "percentile"
    return recipe.normalisation


def encoding(recipe: Recipe) -> str:
    """Return the encoding that `auto` stands for.

    JPEG at quality 95 without chroma subsampling where it can be: on 512² × 3 tiles of the sample land it costs 2.4 ms
    and 148 kB on one core, PNG (level 1) 13 times the time and 3.4 times the bytes, lossless WebP (its fastest
    method) 3.8 and 2.9 times (`python -m tests.bench.encode`). Values that training must see unchanged go into NPY,
    which costs 0.1 ms and the bytes that they are.
    """
    if recipe.encoding != "auto":
        return recipe.encoding
    return "jpeg" if recipe.dtype == "uint8" and len(recipe.bands) in (1, 3) else "npy"


def scale(strip_CHW: NDArray[Any], scaling: Scaling) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return round(((value + offset) · scale − low) · 255 / (high − low)), uint8 [C, H, W], and what was clipped.

    That is bool [H, W]: pixels where any band's value was outside 0…255; NaN becomes 0, but is not clipped. Of 8- and
    16-bit integers there is a table of all values, which decides.
    """
    scaled, clipped = np.empty(strip_CHW.shape, np.uint8), np.zeros(strip_CHW.shape[1:], np.bool_)
    small = _is_small(strip_CHW.dtype)
    scale_rows, at_once = (_scale_integers, _INTEGERS_AT_ONCE) if small else (_scale_floats, _FLOATS_AT_ONCE)
    step = max(1, at_once // max(1, strip_CHW.shape[2]))
    for top in range(0, strip_CHW.shape[1], step):
        rows = slice(top, top + step)
        scale_rows(strip_CHW[:, rows], scaling, scaled[:, rows], clipped[rows])
    return scaled, clipped


def _scale_integers(
    values_CHW: NDArray[Any], scaling: Scaling, scaled_CHW: NDArray[np.uint8], clipped_HW: NDArray[np.bool_]
) -> None:
    scalings = _integer_scalings(scaling, values_CHW.dtype.name)
    for values, scaled, how in zip(values_CHW, scaled_CHW, scalings, strict=True):
        if how.line:
            kept = np.clip(values, how.first, how.last)
            _follow(how.line, kept, scaled)
            clipped_HW |= kept != values
        else:
            # All indices are in range; mode "wrap" alone spares numpy a second pass that checks them.
            np.take(how.table, _unsigned(values), out=scaled, mode="wrap")
            clipped_HW |= values < how.first
            clipped_HW |= values > how.last


def _follow(line: tuple[np.float32, np.float32], values: NDArray[Any], out: NDArray[np.uint8]) -> None:
    zero, slope = line
    scaled = values.astype(np.float32)
    scaled -= zero
    scaled *= slope
    np.rint(scaled, out=scaled)
    out[...] = scaled


def _scale_floats(
    values_CHW: NDArray[Any], scaling: Scaling, scaled_CHW: NDArray[np.uint8], clipped_HW: NDArray[np.bool_]
) -> None:
    for band, (low, high) in enumerate(zip(scaling.low, scaling.high, strict=True)):
        values = _prepared(values_CHW[band], scaling)
        clipped_HW |= (values < low) | (values > high)
        scaled_CHW[band] = _to_bytes(values, low, high)


def _is_small(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "iu" and dtype.itemsize <= 2


def _unsigned(values: NDArray[Any]) -> NDArray[Any]:
    return values.view(f"u{values.dtype.itemsize}")


class _IntegerScaling(NamedTuple):
    """How one band of 8- or 16-bit integers is scaled."""

    table: NDArray[np.uint8]
    """The scaled value of each bit pattern."""
    first: int
    """The first source value that is not clipped. Where all are it lies above `last`."""
    last: int
    line: tuple[np.float32, np.float32] | None
    """(zero, slope): for every value, clipped to first…last, (value − zero) · slope in single precision, rounded, is
    what the table says, at half of its price. None: there is no such line."""


@functools.lru_cache(maxsize=4)
def _integer_scalings(scaling: Scaling, dtype: str) -> tuple[_IntegerScaling, ...]:
    """Return how each band is scaled; made once per scene."""
    info = np.iinfo(dtype)
    values = np.arange(info.min, info.max + 1)
    prepared = _prepared(values, scaling)
    found = []
    for low, high in zip(scaling.low, scaling.high, strict=True):
        # `prepared` ascends, so the values within low…high are neighbours.
        within = np.searchsorted(prepared, low, "left"), np.searchsorted(prepared, high, "right") - 1
        first, last = (int(place) + info.min for place in within)
        scaled = _to_bytes(prepared, low, high)
        line = _line(scaling, low, high, values.clip(first, last), scaled) if first <= last else None
        # Seen as unsigned, negative values come last: roll the table to match.
        found.append(_IntegerScaling(np.roll(scaled, info.min), first, last, line))
    return tuple(found)


def _line(
    scaling: Scaling, low: float, high: float, values: NDArray[np.int64], expected: NDArray[np.uint8]
) -> tuple[np.float32, np.float32] | None:
    """Return a line, see `_IntegerScaling`, that is right for all values; most ranges have one."""
    found = np.empty_like(expected)
    with np.errstate(over="ignore", invalid="ignore"):
        zero, slope = np.float32(low / scaling.scale - scaling.offset), np.float32(255 * scaling.scale / (high - low))
        # Halves between two values may go up or down: then a slope that is next to it may do.
        for each in (slope, np.nextafter(slope, np.float32(np.inf)), np.nextafter(slope, np.float32(0))):
            _follow((zero, each), values, found)
            if np.array_equal(found, expected):
                return zero, each
    return None


def _prepared(values: NDArray[Any], scaling: Scaling) -> NDArray[np.float64]:
    prepared: NDArray[np.float64] = values.astype(np.float64)
    with np.errstate(over="ignore"):
        prepared += scaling.offset
        prepared *= scaling.scale
    return prepared


def _to_bytes(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = values - low
        scaled /= high - low
        scaled *= 255.0
    np.rint(scaled, out=scaled)
    # Of NaN and a number these two take the number: NaN becomes 0.
    np.fmax(scaled, 0, out=scaled)
    np.fmin(scaled, 255, out=scaled)
    return scaled.astype(np.uint8)


def shift(strip_CHW: NDArray[Any], offset: float, dtype: str) -> NDArray[Any]:
    """Return value + offset [C, H, W] in the given type, clipped to its range: what `keep` makes of an offset.

    Of an unsigned type the smallest result is 1, because 0 stands for no data: a dark pixel stays a pixel. Pixels
    without data are shifted as well: set them to 0 afterwards. Integers take the offset rounded to a whole number.

    Args:
        strip_CHW: of the given type.
        offset: in source units.
        dtype: uint8, uint16, int16 or float32.
    """
    assert strip_CHW.dtype == dtype, (strip_CHW.dtype, dtype)
    if strip_CHW.dtype.kind == "f":
        limit = np.finfo(dtype).max
        return (strip_CHW.astype(np.float64) + offset).clip(-limit, limit).astype(dtype)
    info, whole = np.iinfo(dtype), round(offset)
    lowest = max(info.min, 1 if info.min == 0 else info.min)
    if info.max + whole < lowest:
        return np.full_like(strip_CHW, lowest)
    if info.min + whole > info.max:
        return np.full_like(strip_CHW, info.max)
    # Clipped to what stays in range first, values can be added modulo 2ⁿ, without a wider copy.
    kept = strip_CHW.clip(max(info.min, lowest - whole), min(info.max, info.max - whole))
    unsigned = _unsigned(kept)
    unsigned += unsigned.dtype.type(whole % (info.max - info.min + 1))
    return kept


def clear(values_CHW: NDArray[Any], valid_HW: NDArray[np.bool_]) -> NDArray[Any]:
    """Return a copy [C, H, W] that is 0 in all bands where there is no data."""
    cleared = values_CHW.copy()
    if cleared.dtype.kind == "f":
        np.copyto(cleared, 0, where=~valid_HW)  # NaN times 0 is NaN
    else:
        np.multiply(cleared, valid_HW.view(np.uint8), out=cleared, casting="unsafe")
    return cleared


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


def downsample(
    values_CHW: NDArray[Any], valid_HW: NDArray[np.bool_], factor: int
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return (values, valid) of a grid `factor` times coarser: the mean of the valid ones of n × n pixels.

    Integers are exact, with halves rounded up; floats are summed in float64, row by row. A pixel is valid if at least
    half of its n² pixels are; what is not valid becomes 0. Types are kept.

    Args:
        values_CHW: H and W are multiples of factor.
        valid_HW: pixels with data.
        factor: at least 1.
    """
    assert valid_HW.shape == values_CHW.shape[1:], (valid_HW.shape, values_CHW.shape)
    height, width = valid_HW.shape
    assert height % factor == width % factor == 0, (valid_HW.shape, factor)
    means = np.empty((len(values_CHW), height // factor, width // factor), values_CHW.dtype)
    valid = np.empty(means.shape[1:], np.bool_)
    # Some rows at a time: what is worked with stays small.
    step = max(1, _DOWNSAMPLED_VALUES // max(1, factor * values_CHW[:, 0].size))
    for top in range(0, height // factor, step):
        rows = slice(top * factor, (top + step) * factor)
        means[:, top : top + step], valid[top : top + step] = _means(values_CHW[:, rows], valid_HW[rows], factor)
    return means, valid


def _means(
    values_CHW: NDArray[Any], valid_HW: NDArray[np.bool_], factor: int
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    whole = bool(valid_HW.all())
    kept = values_CHW if whole else clear(values_CHW, valid_HW)
    sums = _block_sums(kept, factor, _sum_type(values_CHW.dtype, factor))
    counts: Any = np.full((1, 1), factor * factor, sums.dtype)
    valid = np.ones(sums.shape[1:], np.bool_)
    if not whole:
        counts = _block_sums(valid_HW[None], factor, np.dtype(np.uint32))[0]
        valid = counts * 2 >= factor * factor
        counts = np.maximum(counts, 1).astype(sums.dtype)
    means = sums / counts if sums.dtype.kind == "f" else (sums + counts // 2) // counts
    means *= valid
    return means.astype(values_CHW.dtype), valid


def _sum_type(dtype: np.dtype[Any], factor: int) -> np.dtype[Any]:
    """Return the narrowest type that holds a block's sum, and half its count on top, exactly."""
    if dtype.kind == "f":
        return np.dtype(np.float64)
    largest = (int(np.iinfo(dtype).max) + 1) * factor * factor
    return next(np.dtype(f"{dtype.kind}{size}") for size in (2, 4, 8) if largest <= np.iinfo(f"{dtype.kind}{size}").max)


def _block_sums(values_CHW: NDArray[Any], factor: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    rows = values_CHW[:, ::factor].astype(dtype)
    for row in range(1, factor):
        rows += values_CHW[:, row::factor]
    sums = rows[:, :, ::factor].copy()
    for column in range(1, factor):
        sums += rows[:, :, column::factor]
    return sums


def upsample(values_CHW: NDArray[Any], factor: int) -> NDArray[Any]:
    """Return [C, H · factor, W · factor]: every pixel n × n times."""
    return values_CHW.repeat(factor, axis=2).repeat(factor, axis=1)


def cloudy(quality_HW: NDArray[Any], values: Sequence[int], bits: Sequence[int]) -> NDArray[np.bool_]:
    """Return bool [H, W]: pixels whose quality is one of the values, or has any of the bits (from 0) set.

    Raises:
        SceneRejectedError: bits of a band that is not of integers.
    """
    result = np.zeros(quality_HW.shape, np.bool_)
    for value in values:
        result |= quality_HW == value
    if bits and quality_HW.dtype.kind not in "iu":
        raise SceneRejectedError("wrong_dtype", f"cloud_bits of a band of {quality_HW.dtype}")
    mask = sum(1 << bit for bit in set(bits) if bit < 8 * quality_HW.dtype.itemsize)
    if mask:
        unsigned = _unsigned(quality_HW)
        result |= (unsigned & unsigned.dtype.type(mask)) != 0
    return result
