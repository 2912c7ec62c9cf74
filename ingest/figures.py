"""What is measured of a tile, and which filters leave it out: pure functions of arrays.

Shapes: C bands, H × W pixels, B bins. All results are the same on every processor: integers where they can be, else
the basic operations that IEEE 754 rounds alike everywhere, in a fixed order.

Cost on one core for a tile of 512² × 3: 0.45 ms for uint8, of which the histogram takes 0.3, where the picture that
encoding needs is there already; 2 ms for uint16, 5 ms for float32. What that means for packing: tests/bench/ingest.py.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ingest.config import Recipe
from ingest.pixels import clear
from shards.images import Pixels, to_picture


@dataclass(frozen=True, kw_only=True)
class TileFigures:
    """What a tile's pixels say; all but the hash over its valid pixels alone."""

    num_valid: int
    valid_share: float
    """0…1, of all pixels."""
    contrast: float
    """Largest standard deviation of a band; share of 255 for uint8, else of the tile's largest magnitude."""
    entropy: float
    """Largest of a band, bits, 0…8: of the 256 values of uint8, else of 256 equal steps from its smallest value to its
    largest."""
    black_share: float
    """Valid pixels whose bands are all at the low end: 0…2 of uint8, 0…1 of uint16 (see `shift`), else 0."""
    saturated_share: float
    """Valid pixels with a band at the top: 253…255 of uint8, else the largest value of the type."""
    band_sums: tuple[float, ...]
    """Sum of values per band; exact integers for integer types."""
    band_squares: tuple[float, ...]
    """Sum of squared values per band."""
    dhash: int
    """64 bits, row by row from the lowest: of 8 × 9 areas of the tile, is this one darker than its right neighbour?

    Brightness is the sum of all bands; pixels without data count as 0.
    """


def measure(pixels_HWC: Pixels, valid_HW: NDArray[np.bool_] | None, picture: Image.Image | None = None) -> TileFigures:
    """Measure a tile of uint8, uint16, int16 or float32.

    Args:
        pixels_HWC: any strides; the transposed view of a strip [C, H, W] costs less than an interleaved tile.
        valid_HW: pixels with data; None: all.
        picture: of uint8 with 1 or 3 bands what `shards.images.to_picture` makes of the pixels, if there already; then
            pixels without data are 0 already.
    """
    planes_CHW = _planes(pixels_HWC)
    size = planes_CHW[0].size
    num_valid = size if valid_HW is None else int(np.count_nonzero(valid_HW))
    if valid_HW is not None and num_valid < size and picture is None:
        planes_CHW = clear(planes_CHW, valid_HW)
    extremes: tuple[int, int] | None = None
    if num_valid == 0:
        zeros = [0] * len(planes_CHW)
        bands = _Bands(zeros, zeros, 0, 0.0)
    elif planes_CHW.dtype.kind == "f":
        bands = _bands_of_floats(planes_CHW, valid_HW if num_valid < size else None)
    elif planes_CHW.dtype == np.uint8:
        counts_CB = _byte_counts(planes_CHW, picture)
        extremes = _extremes_of_bytes(planes_CHW, counts_CB)
        bands = _bands_of_bytes(counts_CB, size - num_valid)
    else:
        bands = _bands_of_words(planes_CHW, size - num_valid)
    black, saturated = extremes or _extremes(planes_CHW)
    return TileFigures(
        num_valid=num_valid,
        valid_share=num_valid / size,
        contrast=_contrast(bands, num_valid),
        entropy=bands.entropy,
        black_share=(black - (size - num_valid)) / max(num_valid, 1),
        saturated_share=saturated / max(num_valid, 1),
        band_sums=tuple(bands.sums),
        band_squares=tuple(bands.squares),
        dhash=_dhash(planes_CHW),
    )


class _Bands(NamedTuple):
    """Figures of each band's valid pixels; Python integers for integer types."""

    sums: Sequence[float]
    squares: Sequence[float]
    magnitude: float  # largest absolute value of all
    entropy: float  # of the band that has most


def _planes(pixels_HWC: NDArray[Any]) -> NDArray[Any]:
    """Return contiguous [C, H, W]."""
    planes_CHW = pixels_HWC.transpose(2, 0, 1)
    if planes_CHW.flags.c_contiguous:
        return planes_CHW
    out = np.empty(planes_CHW.shape, planes_CHW.dtype)
    for plane, values in zip(out, planes_CHW, strict=True):
        plane[:] = values
    return out


def _byte_counts(planes_CHW: NDArray[np.uint8], picture: Image.Image | None) -> NDArray[np.int64]:
    """Return how often each value occurs, int64 [C, 256]."""
    if picture is not None:
        return np.fromiter(picture.histogram(), np.int64).reshape(-1, 256)
    counts: list[int] = []
    for start in range(0, len(planes_CHW), 3):
        # Pillow counts three bands at once, three times as fast as numpy: fill up with any band.
        three = np.take(planes_CHW, range(start, start + 3), axis=0, mode="wrap")
        counts += to_picture(three.transpose(1, 2, 0)).histogram()
    return np.array(counts[: 256 * len(planes_CHW)], np.int64).reshape(-1, 256)


def _extremes_of_bytes(planes_CHW: NDArray[np.uint8], counts_CB: NDArray[np.int64]) -> tuple[int, int]:
    """Return what `_extremes` does; pixels are looked at only where the counts leave a question."""
    dark_C = counts_CB[:, : _BLACK["uint8"] + 1].sum(axis=1)
    bright_C = counts_CB[:, _SATURATED["uint8"] :].sum(axis=1)
    if len(planes_CHW) == 1:
        return int(dark_C[0]), int(bright_C[0])
    return _extremes(planes_CHW, look_for_black=bool(dark_C.all()), look_for_saturated=bool(bright_C.any()))


def _bands_of_bytes(counts_CB: NDArray[np.int64], num_zeros: int) -> _Bands:
    """Return the figures of uint8 bands, less so many zeros."""
    counts_CB[:, 0] -= num_zeros
    values = np.arange(256)
    return _Bands((counts_CB @ values).tolist(), (counts_CB @ (values * values)).tolist(), 255, _entropy(counts_CB))


def _bands_of_words(planes_CHW: NDArray[Any], num_zeros: int) -> _Bands:
    """Return the figures of uint16 or int16 bands, less so many zeros; some value remains."""
    sums, squares, magnitude = [], [], 0
    binned_CB = np.zeros((len(planes_CHW), 256), np.int64)
    for binned, plane in zip(binned_CB, planes_CHW, strict=True):
        first = int(plane.min())
        counts = np.bincount(np.subtract(plane, first, dtype=np.int64).reshape(-1))
        if num_zeros:
            counts[-first] -= num_zeros
        present = np.flatnonzero(counts)
        counts, values = counts[present], present + first
        low, high = int(values[0]), int(values[-1])
        steps = (values - low) * 256 // max(high - low + 1, 256)
        binned += np.bincount(steps, weights=counts, minlength=256).astype(np.int64)
        # 4096² pixels of 65535² are 2⁵⁶: exact in 64 bits.
        sums.append(int(np.dot(values, counts)))
        squares.append(int(np.dot(values * values, counts)))
        magnitude = max(magnitude, abs(low), abs(high))
    return _Bands(sums, squares, magnitude, _entropy(binned_CB))


def _bands_of_floats(planes_CHW: NDArray[np.float32], valid_HW: NDArray[np.bool_] | None) -> _Bands:
    """Return the figures of bands that are 0 where they are not valid."""
    sums, squares, magnitude = [], [], 0.0
    binned_CB = np.zeros((len(planes_CHW), 256), np.int64)
    for binned, plane in zip(binned_CB, planes_CHW, strict=True):
        values = plane.astype(np.float64)
        chosen = values.reshape(-1) if valid_HW is None else values[valid_HW]
        low, high = float(chosen.min()), float(chosen.max())
        # Rows are added one after the other, then the columns exactly: the order is fixed on every processor.
        sums.append(math.fsum(values.sum(axis=0).tolist()))
        squares.append(math.fsum((values * values).sum(axis=0).tolist()))
        magnitude = max(magnitude, abs(low), abs(high))
        steps = ((chosen - low) / ((high - low) or 1.0) * 256).astype(np.uint16)
        binned += np.bincount(np.minimum(steps, 255), minlength=256)
    return _Bands(sums, squares, magnitude, _entropy(binned_CB))


def _contrast(bands: _Bands, count: int) -> float:
    if count == 0:
        return 0.0
    # Of integers the numerator is an exact Python integer.
    variance = max(
        (count * square - total * total) / (count * count)
        for total, square in zip(bands.sums, bands.squares, strict=True)
    )
    return math.sqrt(max(variance, 0.0)) / max(bands.magnitude, 1e-12)


_TABLE_VALUES = 2**18 + 1  # counts of a tile of 512²
_ENTROPY_UNIT = 2.0**40  # 2¹⁸ counts of 18 bits are less than 2⁶³ units: 64 bits hold the sum


@functools.cache
def _products() -> NDArray[np.int64]:
    """Return n · log2(n) of all counts from 0, times _ENTROPY_UNIT: 2 MB, made once in a process."""
    counts = np.arange(_TABLE_VALUES, dtype=np.float64)
    return np.rint(counts * _log2(np.maximum(counts, 1.0)) * _ENTROPY_UNIT).astype(np.int64)


def _entropy(counts_CB: NDArray[np.int64]) -> float:
    """Return the largest entropy of histograms of equally many values, bits: log2(N) − Σ n · log2(n) / N."""
    total = int(counts_CB[0].sum())
    if total < _TABLE_VALUES:
        # Integers add up alike in any order, and ten times as fast as floats exactly.
        smallest = float(_products()[counts_CB].sum(axis=1).min()) / _ENTROPY_UNIT
    else:
        products_CB = counts_CB * _log2(np.maximum(counts_CB, 1).astype(np.float64))
        smallest = min(math.fsum(band) for band in products_CB.tolist())
    return max(0.0, _log2_of(total) - smallest / total)


@functools.lru_cache(maxsize=256)
def _log2_of(count: int) -> float:
    return float(_log2(np.array([count], np.float64))[0])  # most tiles have equally many valid pixels


def _log2(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm to base 2 of positive values, to 1e-14.

    By basic operations alone, artanh's series: the last bits of a library's logarithm differ between processors.
    """
    mantissa, exponent = np.frexp(values)
    low = mantissa < math.sqrt(0.5)
    mantissa = np.where(low, mantissa * 2, mantissa)
    ratio = (mantissa - 1) / (mantissa + 1)  # at most 0.172, so ten terms do
    square = ratio * ratio
    series = np.zeros_like(ratio)
    for power in range(19, 0, -2):
        series = series * square + 1 / power
    result: NDArray[np.float64] = exponent - low + series * ratio * (2 / math.log(2))
    return result


_BLACK = {"uint8": 2, "uint16": 1}
_SATURATED = {"uint8": 253, "uint16": 65535, "int16": 32767, "float32": float(np.finfo(np.float32).max)}


def _extremes(
    planes_CHW: NDArray[Any], *, look_for_black: bool = True, look_for_saturated: bool = True
) -> tuple[int, int]:
    """Return how many pixels are black and how many saturated; 0 of those that are not looked for."""
    num_black = num_saturated = 0
    if look_for_black or look_for_saturated:
        brightest, dtype = functools.reduce(np.maximum, planes_CHW), planes_CHW.dtype.name
    if look_for_black:
        black = brightest <= _BLACK.get(dtype, 0)
        if dtype not in _BLACK:
            black &= functools.reduce(np.minimum, planes_CHW) >= 0
        num_black = int(np.count_nonzero(black))
    if look_for_saturated:
        num_saturated = int(np.count_nonzero(brightest >= _SATURATED[dtype]))
    return num_black, num_saturated


_HASH_ROWS, _HASH_COLUMNS, _HASH_SAMPLES = 8, 9, 4
_NARROW_BANDS = 64  # four lines of 8 bits each: 16 bits hold the sum


@functools.lru_cache(maxsize=4)
def _hashed_areas(height: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows that tell, and where the areas of a row begin and how wide they are."""
    count = _HASH_ROWS * _HASH_SAMPLES
    rows = (2 * np.arange(count) + 1) * height // (2 * count)
    edges = width * np.arange(_HASH_COLUMNS + 1) // _HASH_COLUMNS
    return rows, edges[:-1], np.diff(edges)


def _dhash(planes_CHW: NDArray[Any]) -> int:
    """Return the difference hash (Krawetz 2013) over areas whose sides differ by at most one pixel.

    Of an area's rows four tell its brightness, evenly spread.
    """
    num_bands, height, width = planes_CHW.shape
    rows, columns, widths = _hashed_areas(height, width)
    if planes_CHW.dtype.kind == "f":
        lines_RW = planes_CHW[:, rows].sum(axis=0, dtype=np.float64).reshape(-1, _HASH_SAMPLES, width).sum(axis=1)
    else:
        # 32 bits hold the sum of four lines of 16 bits in 8,000 bands, and are added twice as fast as 64.
        areas_CRSW = planes_CHW.take(rows, axis=1).reshape(num_bands, _HASH_ROWS, _HASH_SAMPLES, width)
        sum_type = np.uint16 if planes_CHW.dtype == np.uint8 and num_bands <= _NARROW_BANDS else np.int32
        lines_RW = areas_CRSW.sum(axis=(0, 2), dtype=sum_type).astype(np.int64)
    sums = np.add.reduceat(lines_RW, columns, axis=1)
    # Means are compared by cross-multiplying; the heights of a row's areas are equal.
    darker = sums[:, :-1] * widths[1:] < sums[:, 1:] * widths[:-1]
    return int.from_bytes(np.packbits(darker, bitorder="little").tobytes(), "little")


def refusal(figures: TileFigures, recipe: Recipe, cloud_share: float | None) -> tuple[str, str] | None:
    """Return (reason code, detail) of the first filter that leaves the tile out, else None.

    Args:
        figures: of the tile.
        recipe: its min_… and max_… count.
        cloud_share: of the tile's pixels; None: not known, and no reason.
    """
    if figures.num_valid == 0 or figures.valid_share < recipe.min_valid_share:
        return "low_valid_share", f"{figures.valid_share:.3f} < {recipe.min_valid_share}"
    for code, value, least in [
        ("low_contrast", figures.contrast, recipe.min_contrast),
        ("low_entropy", figures.entropy, recipe.min_entropy),
    ]:
        if value < least:
            return code, f"{value:.4f} < {least}"
    for code, value, most in [
        ("black", figures.black_share, recipe.max_black_share),
        ("saturated", figures.saturated_share, recipe.max_saturated_share),
        ("cloudy", cloud_share or 0.0, recipe.max_cloud_share),
    ]:
        if value > most:
            return code, f"{value:.3f} > {most}"
    return None
