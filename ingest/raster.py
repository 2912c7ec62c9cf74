"""The rim to GDAL: open one file that may be hostile, read windows of it, say where it lies.

The content picks the driver, not the extension (a VRT named .tif would open other files and URLs): first bytes
decide, and only drivers of an allow-list are ever tried. This module runs inside the decoder process alone.
"""

import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np
import rasterio
import rasterio.warp
from numpy.typing import NDArray
from rasterio._err import (  # GDAL's own, where rasterio passes them on
    CPLE_BaseError,
    CPLE_NotSupportedError,
    CPLE_OutOfMemoryError,
)
from rasterio.enums import MaskFlags
from rasterio.errors import CRSError, RasterioError
from rasterio.windows import Window

from ingest.reasons import SceneRejectedError

_MAGIC = [
    (b"II*\0", "GTiff"),
    (b"MM\0*", "GTiff"),
    (b"II+\0", "GTiff"),
    (b"MM\0+", "GTiff"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JP2OpenJPEG"),
    (b"\xff\x4f\xff\x51", "JP2OpenJPEG"),
]
# What an affine transform may reach, in units of a CRS: beyond, figures that are made of it would overflow.
_FARTHEST = 1e100
_FIRST_YEAR = 1826  # of photographs
HEAD_BYTES = 16
"""How many of a file's first bytes `driver_of` wants."""
Opener = Callable[..., Any]


def driver_of(head: bytes) -> str:
    """Return the GDAL driver for a file by its first bytes.

    Raises:
        SceneRejectedError: empty or not a raster of a known format.
    """
    if not head:
        raise SceneRejectedError("empty_file", "0 bytes")
    for magic, driver in _MAGIC:
        if head.startswith(magic):
            return driver
    raise SceneRejectedError("not_a_raster", f"begins with {head[:8].hex()}")


@contextmanager
def open_raster(path: str, driver: str, opener: Opener | None = None) -> Iterator[Any]:
    """Open a file for reading: in place, or through an opener (path, mode) → binary file.

    Raises:
        SceneRejectedError: GDAL cannot open it.
    """
    with _rejecting():
        source = rasterio.open(path, driver=driver, **({"opener": opener} if opener else {}))
    with source:
        yield source


@contextmanager
def _rejecting() -> Iterator[None]:
    """Turn what GDAL says of a file's content into a rejection."""
    try:
        yield
    except CPLE_OutOfMemoryError as error:
        raise MemoryError(str(error)) from error
    except (RasterioError, CRSError, CPLE_BaseError) as error:
        if "memory" in one_line(error).lower():
            raise MemoryError(str(error)) from error
        raise SceneRejectedError("corrupt", one_line(error)) from error
    except UnicodeDecodeError as error:
        raise SceneRejectedError("corrupt", "its header holds text that is not UTF-8") from error


class _LibjpegWarnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        _, mark, text = record.getMessage().partition("JPEGLib:")
        if mark:
            self.found.append(text)


@contextmanager
def _heeding_libjpeg() -> Iterator[None]:
    """Reject damaged JPEG inside a TIFF: GDAL has a setting for libjpeg's warnings, but for JPEG files alone."""
    warnings, logger = _LibjpegWarnings(), logging.getLogger("rasterio._err")
    logger.addHandler(warnings)
    try:
        yield
    finally:
        logger.removeHandler(warnings)
    if warnings.found:
        raise SceneRejectedError("corrupt", f"libjpeg: {warnings.found[0][:200]}")


def palette_of(source: Any) -> NDArray[np.uint8]:
    """Return a file's colour table as uint8 [256, 4]: red, green, blue, alpha.

    Raises:
        SceneRejectedError: the table cannot be read.
    """
    with _rejecting():
        try:
            entries = source.colormap(1)
        except ValueError as error:
            raise SceneRejectedError("corrupt", "its colour table is missing") from error
    table = np.zeros((256, 4), np.uint8)
    for value, colour in entries.items():
        if 0 <= value < 256:
            table[value] = colour
    return table


def has_gaps(source: Any, indexes: Sequence[int]) -> bool:
    """Say whether a file knows pixels without data in these bands. Costs 0.1 ms for each band that the file has.

    Raises:
        SceneRejectedError: the bytes cannot be decoded.
    """
    with _rejecting():
        flags = source.mask_flag_enums
    return not all(MaskFlags.all_valid in flags[index - 1] for index in indexes)


def read_window(
    source: Any, indexes: Sequence[int], window: Window, gaps: bool | None = None
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Return (values [C, H, W], valid [H, W]) of a window, all bands in one call; valid is None where all are.

    A pixel is valid if any of the bands has data there: by nodata value, mask or alpha band.

    Args:
        source: an open file.
        indexes: of the bands, from 1.
        window: of the file's pixels.
        gaps: what `has_gaps` says, where that is known.

    Raises:
        SceneRejectedError: the bytes cannot be decoded.
    """
    with _rejecting(), _heeding_libjpeg():
        values = source.read(list(indexes), window=window)
        if not (has_gaps(source, indexes) if gaps is None else gaps):
            return values, None
        return values, source.read_masks(list(indexes), window=window).any(axis=0)


def block_ranges(source: Any, indexes: Sequence[int], window: Window) -> list[tuple[int, int]]:
    """Return (offset, size) of the stored blocks that a window of a GeoTIFF needs, ascending, without repeats."""
    block_height, block_width = source.block_shapes[0]
    columns = range(window.col_off // block_width, -(-(window.col_off + window.width) // block_width))
    rows = range(window.row_off // block_height, -(-(window.row_off + window.height) // block_height))
    bands = sorted(set(indexes)) if source.interleaving and source.interleaving.name == "band" else [indexes[0]]
    found = set()
    for band in bands:
        for column in columns:
            for row in rows:
                place = f"{column}_{row}"
                offset = source.get_tag_item(f"BLOCK_OFFSET_{place}", "TIFF", bidx=band)
                size = source.get_tag_item(f"BLOCK_SIZE_{place}", "TIFF", bidx=band)
                if offset and size:
                    found.add((int(offset), int(size)))
    return sorted(found)


def transformed(source: Any, target: Any, xs: NDArray[np.float64], ys: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points [2, P] in another CRS; NaN where PROJ knows no way. CRS: as rasterio takes them.

    Raises:
        RasterioError, CRSError, CPLE_NotSupportedError: there is none from one CRS to the other at all.
    """
    try:
        points = np.array(rasterio.warp.transform(source, target, xs, ys), np.float64)
    except CPLE_NotSupportedError:
        raise
    except CPLE_BaseError:
        # Of a single point, perhaps. GDAL complains about the first 20 and then hands out infinities without a word:
        # one by one, a point's fate does not hang on its neighbours or on what came before.
        points = np.array([_transformed_point(source, target, *point) for point in zip(xs, ys, strict=True)]).T
    return np.where(np.isfinite(points), points, np.nan)


def _transformed_point(source: Any, target: Any, x: float, y: float) -> tuple[float, float]:
    try:
        (x,), (y,) = rasterio.warp.transform(source, target, [x], [y])
    except CPLE_BaseError:
        return math.nan, math.nan
    return x, y


def lonlat(crs: str, xs: NDArray[np.float64], ys: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return WGS 84 degrees [2, P] of points in a CRS; NaN where there is no way."""
    try:
        return transformed(crs, "EPSG:4326", xs, ys)
    except (RasterioError, CRSError, CPLE_BaseError):
        return np.full((2, len(xs)), np.nan)


def parse_time(text: str) -> datetime | None:
    """Return the moment that a TIFF DateTime tag names, as UTC; None if it names none."""
    for pattern in ("%Y:%m:%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S"):
        try:
            moment = datetime.strptime(text.strip()[:19], pattern).replace(tzinfo=UTC)
        except ValueError:
            continue
        # The year 1 is what some programs write where they have no date.
        return moment if moment.year >= _FIRST_YEAR else None
    return None


def time_of(source: Any) -> datetime | None:
    """Return the moment of an open file's TIFF DateTime tag; None if it has none that can be read."""
    try:
        return parse_time(source.get_tag_item("TIFFTAG_DATETIME") or "")
    except UnicodeDecodeError:
        return None


def descriptions_of(source: Any) -> list[str] | None:
    """Return what an open file calls its bands, "" where nothing; None if any of it is not UTF-8."""
    try:
        return [name or "" for name in source.descriptions]
    except UnicodeDecodeError:
        return None


def one_line(error: BaseException) -> str:
    """Return an error's innermost message without line breaks and paths: the same wherever a scene lies."""
    while error.__cause__ is not None:
        error = error.__cause__
    message = re.sub(r"(?:/vsi|/|[a-z0-9]+://).*/", "", " ".join(str(error).split()))
    return message[:200] or type(error).__name__


def place_of(source: Any) -> tuple[str | None, tuple[float, ...] | None, float | None]:
    """Return (CRS, pixel to CRS as (a, b, c, d, e, f), GSD in metres) of an open file; None where it has none.

    The CRS is an authority code such as EPSG:32633 if there is one, else WKT. A georeference that places nothing counts
    as none: its corners or its GSD are not finite (or above 1e100), its pixels have no area, or there is a CRS alone.

    Raises:
        SceneRejectedError: the georeference is damaged.
    """
    transform = source.transform
    if transform.is_identity:  # rasterio's word for none
        return None, None, None
    corners = [transform @ (x, y) for x in (0, source.width) for y in (0, source.height)]
    # All comparisons are false for NaN.
    if not (all(abs(value) < _FARTHEST for corner in corners for value in corner) and abs(transform.determinant) > 0):
        return None, None, None
    with _rejecting():
        crs = _crs_name(source.crs)
        gsd_m = _gsd_m(source) if crs else None
    if gsd_m is not None and not 1 / _FARTHEST < gsd_m < _FARTHEST:
        return None, None, None
    return crs, tuple(transform)[:6], gsd_m


def _crs_name(crs: Any) -> str | None:
    if not crs:
        return None
    authority = crs.to_authority()
    return ":".join(authority) if authority else str(crs.to_wkt())


def _gsd_m(source: Any) -> float:
    """Return the side of a square with a pixel's area on the ground, metres, at the scene's centre."""
    transform = source.transform
    area = abs(transform.determinant)
    if source.crs.is_geographic:
        _, lat = transform @ (source.width / 2, source.height / 2)
        metres_per_degree = math.pi / 180 * 6_371_008.8  # mean Earth radius, IUGG
        return math.sqrt(area * max(math.cos(math.radians(lat)), 1e-6)) * metres_per_degree
    factor = source.crs.linear_units_factor[1] if source.crs.is_projected else 1.0
    return math.sqrt(area) * float(factor)
