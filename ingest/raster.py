"""The rim to GDAL: open a scene that may be hostile, read strips of it, say where it lies.

The content picks the driver, not the extension (a VRT named .tif would open other files and URLs): first
bytes decide, and only drivers of an allow-list are ever tried.
"""

import errno
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import rasterio
import rasterio.warp
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # GDAL's own errors, where rasterio passes them on as they are
from rasterio.enums import MaskFlags
from rasterio.errors import CRSError, RasterioError
from rasterio.windows import Window

from ingest.config import RGB, Recipe
from ingest.reasons import SceneRejectedError
from shards import storage

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
_TILE_TYPES = ("uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a scene's header says."""

    driver: str
    width: int
    height: int
    num_bands: int
    dtype: str
    crs: str | None
    """Authority code such as EPSG:32633 if there is one, else WKT."""
    transform: tuple[float, ...] | None
    """Pixel to CRS as (a, b, c, d, e, f); None without georeference."""
    gsd_m: float | None
    nodata: float | None
    time: datetime | None
    band_indexes: tuple[int, ...]
    """From 1, in the order of the recipe's bands."""


def sniff(url: str) -> str:
    """Return the GDAL driver for a file by its first bytes.

    Raises:
        SceneRejectedError: missing, unreadable, empty or not a raster of a known format.
    """
    if storage.is_local(url) and storage.local_path(url).exists() and not storage.local_path(url).is_file():
        raise SceneRejectedError("not_a_raster", "not a regular file")  # reading a pipe would wait for ever
    try:
        head = storage.read_range(url, 0, 16)
    except FileNotFoundError as error:
        raise SceneRejectedError("missing", "cannot be opened") from error
    except PermissionError as error:
        raise SceneRejectedError("unreadable", "permission denied") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            raise SceneRejectedError("missing", "a link that leads in a circle, or too long a name") from error
        raise
    if not head:
        raise SceneRejectedError("empty_file", "0 bytes")
    for magic, driver in _MAGIC:
        if head.startswith(magic):
            return driver
    raise SceneRejectedError("not_a_raster", f"begins with {head[:8].hex()}")


@contextmanager
def open_scene(url: str, driver: str) -> Iterator[Any]:
    """Open a scene for reading: a local file in place, a remote one by ranged reads through fsspec.

    Raises:
        SceneRejectedError: GDAL cannot open it.
    """
    fs, path = storage.filesystem(url)
    watched = None if storage.is_local(url) else _WatchedFilesystem(fs)
    options = {"opener": watched} if watched else {}
    try:
        with _rejecting(), rasterio.open(path, driver=driver, **options) as source:
            yield source
    except SceneRejectedError:
        if watched and watched.fault:
            raise watched.fault from None
        raise


@contextmanager
def _rejecting() -> Iterator[None]:
    """Turn what GDAL says of a file's content into a rejection."""
    try:
        yield
    except (RasterioError, CRSError, CPLE_BaseError) as error:
        raise SceneRejectedError("corrupt", one_line(error)) from error


class _WatchedFilesystem:
    """Keeps the first I/O fault below GDAL, which itself would call a broken connection a damaged file."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs
        self.fault: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fs, name)

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        """Open a file whose faults are kept; that a side file is missing is none."""
        try:
            return _WatchedFile(self._fs.open(path, mode, **options), self)
        except FileNotFoundError:
            raise
        except OSError as error:
            self.fault = self.fault or error
            raise


class _WatchedFile:
    def __init__(self, file: Any, owner: _WatchedFilesystem) -> None:
        self._file, self._owner = file, owner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_WatchedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int = -1) -> bytes:
        try:
            return bytes(self._file.read(size))
        except OSError as error:
            self._owner.fault = self._owner.fault or error
            raise


def read_header(source: Any, recipe: Recipe) -> Header:
    """Read and judge the header of an open scene.

    Raises:
        SceneRejectedError: too large, of an unusable type, or without the recipe's bands.
    """
    indexes = find_bands(
        recipe, source.count, [name or "" for name in source.descriptions], [c.name for c in source.colorinterp]
    )
    dtypes = {source.dtypes[index - 1] for index in indexes}
    dtype = dtypes.pop()
    if dtypes or dtype not in _TILE_TYPES:
        raise SceneRejectedError("wrong_dtype", f"{dtype} is not one of {', '.join(_TILE_TYPES)} for all bands")
    wanted = {"none": "uint8", "keep": recipe.dtype}.get(recipe.normalisation)
    if wanted and dtype != wanted:
        raise SceneRejectedError("wrong_dtype", f"{dtype}, while normalisation {recipe.normalisation} takes {wanted}")
    num_bytes = source.width * source.height * source.count * np.dtype(dtype).itemsize
    if num_bytes > recipe.max_scene_gb * 1e9:
        raise SceneRejectedError("too_large", f"{num_bytes / 1e9:.1f} GB uncompressed > {recipe.max_scene_gb} GB")
    finite = all(math.isfinite(value) for value in source.transform[:6])
    with _rejecting():
        crs = _crs_name(source.crs) if finite else None
        gsd_m = _gsd_m(source) if crs else None
    placed = finite and (crs is not None or not source.transform.is_identity)
    nodata = None if source.nodata is None or math.isnan(source.nodata) else float(source.nodata)
    return Header(
        driver=source.driver,
        width=source.width,
        height=source.height,
        num_bands=source.count,
        dtype=dtype,
        crs=crs,
        transform=tuple(source.transform)[:6] if placed else None,
        gsd_m=gsd_m,
        nodata=nodata,
        time=parse_time(source.tags().get("TIFFTAG_DATETIME", "")),
        band_indexes=indexes,
    )


def find_bands(recipe: Recipe, count: int, descriptions: list[str], colours: list[str]) -> tuple[int, ...]:
    """Return which band of a scene (from 1) supplies each of the recipe's bands.

    In this order: as the recipe says; bands described by these names; bands with these colour
    interpretations; for red, green, blue the first three of a 3- or 4-band scene without a palette; one grey band
    for all where the recipe allows it.

    Raises:
        SceneRejectedError: the scene cannot supply them.
    """
    if recipe.source_bands:
        if max(recipe.source_bands) > count:
            raise SceneRejectedError("bands_missing", f"has {count} bands, recipe wants {list(recipe.source_bands)}")
        return recipe.source_bands
    for names in ([name.lower() for name in descriptions], colours):
        if all(names.count(band) == 1 for band in recipe.bands):
            return tuple(names.index(band) + 1 for band in recipe.bands)
    if recipe.bands == RGB and count in (3, 4) and "palette" not in colours:
        return (1, 2, 3)
    if recipe.replicate_grey and count == 1 and "palette" not in colours:
        return (1,) * len(recipe.bands)
    raise SceneRejectedError("bands_missing", f"has {count} bands ({', '.join(colours[:6])})")


def read_strip(
    source: Any, indexes: tuple[int, ...], window: Window, *, zero_is_nodata: bool
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return (values [C, H, W], valid [H, W]) of a window, all bands in one call.

    A pixel is valid if any of the bands has data there (nodata value, mask or alpha band), no band is NaN,
    and, where zero means no data, some band is not 0.

    Raises:
        SceneRejectedError: the bytes cannot be decoded.
    """
    with _rejecting():
        values = source.read(list(indexes), window=window)
        flags = [source.mask_flag_enums[index - 1] for index in indexes]
        if all(MaskFlags.all_valid in flag for flag in flags):
            valid = np.ones(values.shape[1:], np.bool_)
        else:
            valid = source.read_masks(list(indexes), window=window).any(axis=0)
    if values.dtype.kind == "f":
        valid &= np.isfinite(values).all(axis=0)
    if zero_is_nodata:
        valid &= values.any(axis=0)
    return values, valid


def lonlat(crs: str, xs: NDArray[np.float64], ys: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return WGS 84 degrees [2, P] of points in a CRS; NaN where there is no way."""
    try:
        result = np.array(rasterio.warp.transform(crs, "EPSG:4326", xs, ys), np.float64)
    except (RasterioError, CRSError, CPLE_BaseError):
        return np.full((2, len(xs)), np.nan)
    return np.where(np.isfinite(result), result, np.nan)


def parse_time(text: str) -> datetime | None:
    """Return the moment that a TIFF DateTime tag names, as UTC; None if it names none."""
    for pattern in ("%Y:%m:%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S"):
        try:
            return datetime.strptime(text.strip()[:19], pattern).replace(tzinfo=UTC)
        except ValueError:
            continue
    return None


def one_line(error: BaseException) -> str:
    """Return an error's innermost message without line breaks and paths: the same wherever a scene lies."""
    while error.__cause__ is not None:
        error = error.__cause__
    message = re.sub(r"(?:/vsi|/|[a-z0-9]+://).*/", "", " ".join(str(error).split()))
    return message[:200] or type(error).__name__


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
