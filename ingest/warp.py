"""Resampling tiles to another CRS: the new grid, which source pixels a tile needs, and the warp itself.

Every tile is one call of GDAL's warper on arrays, in one thread, with fixed parameters, in one chunk: its pixels depend
on the tile alone, not on its neighbours or on how the scene is read. GDAL is told of no nodata value and no mask.
Instead the mask is warped as one more band beside bands that are 0 where there is no data, and the bands are divided by
it: what has no data has no weight, so it never bleeds into its neighbours, and no value is special.

Where a target pixel is n source pixels wide or more, n ≥ 2, `pixels.downsample` averages n × n of them first, in blocks
that count from the scene's corner; then bilinear, with a kernel as wide as the coarser of the two grids' pixels. Places
are right to an eighth of a (averaged) pixel: GDAL joins them linearly along pieces of a row.

Cost on one core for a tile of 512² × 3: `warp_tile` 25–50 ms (90 ms from a fourth of the pixel size) and about 30 MB
beside its window, `warp_window` 0.5 ms.
"""

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio
import rasterio.warp
from numpy.typing import NDArray
from rasterio import Affine
from rasterio._err import CPLE_BaseError  # GDAL's own errors, where rasterio passes them on as they are
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import CRSError, RasterioError
from rasterio.windows import Window

from ingest.config import Recipe
from ingest.pixels import clear, downsample
from ingest.raster import transformed
from ingest.reasons import SceneRejectedError
from shards.errors import UserError

_METRES_PER_DEGREE = math.pi / 180 * 6_371_008.8  # mean Earth radius, IUGG
_EDGE_POINTS = 21  # per side, as PROJ's own bounds transformation takes
_LARGEST_SPREAD = 16  # times the pixels that the scene's area needs; a scene rotated by 45° needs 2
_MEMORY_MB = 1024  # the largest tile (4096² × 4) fits: never more than one chunk
_FIT_FLOAT32 = ("uint8", "int8", "uint16", "int16", "float32")  # without loss


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Pixels on the ground."""

    crs: str
    """Authority code or WKT."""
    transform: tuple[float, ...]
    """Pixel to CRS: a, b, c, d, e, f."""
    width: int
    height: int


def require_target(name: str) -> None:
    """Refuse a warp_crs that is neither of a map nor of degrees.

    Raises:
        UserError: it names another CRS, or none that PROJ knows.
    """
    if name == "utm":
        return
    try:
        with rasterio.Env():  # which keeps what PROJ has to say off the terminal
            crs = CRS.from_user_input(name)
        fits = bool(crs.is_projected or crs.is_geographic)
    except (ValueError, RasterioError, CPLE_BaseError):
        fits = False
    if not fits:
        raise UserError(f"--warp_crs {name} is no CRS of a map: give a code such as EPSG:3857, or utm")


def target_grid(crs: str | None, transform: tuple[float, ...] | None, width: int, height: int, recipe: Recipe) -> Grid:
    """Return the north-up grid that holds a scene in the recipe's warp_crs.

    Pixels are target_gsd_m wide in the CRS's own metres (in degrees of a geographic one as many as they make at the
    equator), and their edges lie on whole multiples of it, so that grids of all scenes fit together. Around the
    antimeridian a geographic grid goes on beyond ±180°.

    Args:
        crs: of the scene.
        transform: of the scene, a…f.
        width: of the scene, pixels.
        height: of the scene, pixels.
        recipe: its warp_crs ("utm": the zone of the scene's centre, beyond 84° N and 80° S polar) and target_gsd_m.

    Raises:
        SceneRejectedError: no CRS, or PROJ knows no way for all of the scene.
    """
    if crs is None or transform is None:
        raise SceneRejectedError("no_place", f"no CRS to warp to {recipe.warp_crs} from")
    source = Grid(crs=crs, transform=transform, width=width, height=height)
    if not math.isfinite(sum(transform)) or Affine(*transform).is_degenerate:
        raise SceneRejectedError("no_place", f"its transform {list(transform)} spans no area")
    target = _utm(source) if recipe.warp_crs == "utm" else recipe.warp_crs
    step = _step(target, recipe.target_gsd_m)
    left, bottom, right, top = _extent(source, target, step)
    corner = (step, 0.0, left * step, 0.0, -step, top * step)
    grid = Grid(crs=target, transform=corner, width=max(right - left, 1), height=max(top - bottom, 1))
    # A scene that the antimeridian tears apart spreads over all of the map; the comparison is false for NaN too.
    needed = width * height / max(_source_px(grid, crs, _linear(transform)), 1e-9) ** 2
    if not grid.width * grid.height <= _LARGEST_SPREAD * max(needed, 4096):
        raise SceneRejectedError("no_place", f"spreads over {grid.width} x {grid.height} pixels in {target}")
    return grid


def _extent(source: Grid, target: str, step: float) -> tuple[int, int, int, int]:
    """Return left, bottom, right and top of a scene in another CRS, whole steps."""
    along, across = np.linspace(0, source.width, _EDGE_POINTS), np.linspace(0, source.height, _EDGE_POINTS)
    first, last_column, last_row = (np.full(_EDGE_POINTS, at) for at in (0, source.width, source.height))
    columns = np.concatenate([along, along, first, last_column, [source.width / 2]])
    rows = np.concatenate([first, last_row, across, across, [source.height / 2]])
    xs, ys = _transform(source.crs, target, *_apply(source.transform, columns, rows))
    if not (np.isfinite(xs).all() and np.isfinite(ys).all()):
        raise SceneRejectedError("no_place", f"parts of the scene have no place in {target}")
    if _is_geographic(target):
        xs = xs[-1] + (xs - xs[-1] + 180) % 360 - 180
    # Rounded first, so that the last bit of another PROJ build cannot add a row of pixels.
    (left, right), (bottom, top) = (np.round([axis.min() / step, axis.max() / step], 6).tolist() for axis in (xs, ys))
    return math.floor(left), math.floor(bottom), math.ceil(right), math.ceil(top)


def warp_window(grid: Grid, x: int, y: int, side: int, source: Grid) -> Window | None:
    """Return the source pixels that a target tile needs, halo included; None if it lies outside of the source.

    Args:
        grid: of the target.
        x: left edge of the tile, target pixels.
        y: its top edge.
        side: of the tile, pixels.
        source: the scene's own grid.
    """
    steps = np.linspace(0, side, _EDGE_POINTS)
    columns, rows = (part.reshape(-1) for part in np.meshgrid(x + steps, y + steps))
    xs, ys = _transform(grid.crs, source.crs, *_apply(grid.transform, columns, rows))
    finite = np.isfinite(xs) & np.isfinite(ys)
    if not finite.any():
        return None
    if _is_geographic(source.crs):
        middle = _apply(source.transform, np.array([source.width / 2]), np.array([source.height / 2]))[0]
        xs = middle + (xs - middle + 180) % 360 - 180
    columns, rows = _apply(tuple(~Affine(*source.transform))[:6], xs[finite], ys[finite])
    # Curved edges leave the sampled points by far less than a hundredth of the tile.
    spread = max(np.ptp(columns), np.ptp(rows))
    halo = 2 + 2 * math.ceil(spread / side) + spread / 100
    factor = max(1, int(_source_px(grid, source.crs, _linear(source.transform))))
    left, right = _blocks(columns.min() - halo, columns.max() + halo, factor, source.width)
    top, bottom = _blocks(rows.min() - halo, rows.max() + halo, factor, source.height)
    return Window(left, top, right - left, bottom - top) if left < right and top < bottom else None


def warp_tile(
    values_CHW: NDArray[Any],
    valid_HW: NDArray[np.bool_],
    source_transform: tuple[float, ...],
    source_crs: str,
    grid: Grid,
    x: int,
    y: int,
    side: int,
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return (values [C, side, side] of the same type, valid [side, side]) of a target tile.

    A pixel is valid if at least half the weight of its source pixels is; what is not valid is 0. Integers are
    rounded.

    Args:
        values_CHW: source values of the window of `warp_window`.
        valid_HW: which of them are data.
        source_transform: of this window, a…f; a, b, d, e are those of the scene.
        source_crs: of the scene.
        grid: of the target.
        x: left edge of the tile, target pixels.
        y: its top edge.
        side: of the tile, pixels.

    Raises:
        SceneRejectedError: PROJ knows no way.
    """
    source_px = _source_px(grid, source_crs, _linear(source_transform))
    factor = max(1, int(source_px))
    if factor > 1:
        values_CHW, valid_HW = downsample(*_fill_blocks(values_CHW, valid_HW, factor), factor)
    wide = np.float32 if values_CHW.dtype.name in _FIT_FLOAT32 else np.float64
    weighted = np.concatenate([clear(values_CHW, valid_HW).astype(wide), valid_HW[None].astype(wide)])
    warped = np.zeros((len(weighted), side, side), wide)
    a, b, c, d, e, f = grid.transform
    kernel = factor / max(source_px, 1.0)
    with _rejecting(source_crs, grid.crs):
        rasterio.warp.reproject(
            weighted,
            warped,
            src_transform=Affine(*source_transform) @ Affine.scale(factor),
            src_crs=_crs(source_crs),
            dst_transform=Affine(a, b, a * x + b * y + c, d, e, d * x + e * y + f),
            dst_crs=_crs(grid.crs),
            resampling=Resampling.bilinear,
            num_threads=1,
            warp_mem_limit=_MEMORY_MB,
            init_dest_nodata=False,
            # Left alone, GDAL takes the width of the kernel from each window, so that it differs from tile to tile.
            XSCALE=kernel,
            YSCALE=kernel,
        )
    weights = warped[-1]
    valid = weights >= 0.5
    with np.errstate(invalid="ignore", divide="ignore"):
        result = np.where(valid, warped[:-1] / weights, 0)
    if values_CHW.dtype.kind in "iu":
        info = np.iinfo(values_CHW.dtype)
        result = np.rint(result).clip(info.min, info.max)
    return result.astype(values_CHW.dtype), valid


@contextmanager
def _rejecting(source_crs: str, target_crs: str) -> Iterator[None]:
    """Turn what PROJ and GDAL say of a CRS into a rejection."""
    try:
        yield
    except (RasterioError, CRSError, CPLE_BaseError) as error:
        reason = " ".join(str(error).split())
        raise SceneRejectedError("no_place", f"{source_crs} to {target_crs}: {reason}"[:200]) from error


@functools.lru_cache(maxsize=64)
def _crs(name: str) -> CRS:
    return CRS.from_user_input(name)


def _is_geographic(crs: str) -> bool:
    return bool(_crs(crs).is_geographic)


def _apply(
    transform: tuple[float, ...], columns: NDArray[np.float64], rows: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b, c, d, e, f = transform
    return a * columns + b * rows + c, d * columns + e * rows + f


def _transform(
    source_crs: str, target_crs: str, xs: NDArray[np.float64], ys: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points in another CRS; not finite where PROJ knows no way."""
    with _rejecting(source_crs, target_crs):
        points = transformed(_crs(source_crs), _crs(target_crs), xs, ys)
    return points[0], points[1]


def _step(crs: str, gsd_m: float) -> float:
    """Return metres in the units of a CRS."""
    with _rejecting(crs, crs):
        found = _crs(crs)
        if found.is_geographic:
            return gsd_m / _METRES_PER_DEGREE
        return gsd_m / float(found.linear_units_factor[1])


def _utm(source: Grid) -> str:
    """Return the UTM zone of a scene's centre, by the plain 6° rule, or near a pole the polar one."""
    column, row = np.array([source.width / 2]), np.array([source.height / 2])
    lons, lats = _transform(source.crs, "EPSG:4326", *_apply(source.transform, column, row))
    if not (np.isfinite(lons[0]) and np.isfinite(lats[0])):
        raise SceneRejectedError("no_place", "its centre has no longitude and latitude")
    lon, lat = float(lons[0]), float(lats[0])
    if lat >= 84:
        return "EPSG:32661"
    if lat < -80:
        return "EPSG:32761"
    zone = int((lon + 180) % 360 // 6) % 60 + 1
    return f"EPSG:{32600 + zone}" if lat >= 0 else f"EPSG:{32700 + zone}"


@functools.lru_cache(maxsize=64)
def _source_px(grid: Grid, source_crs: str, linear: tuple[float, ...]) -> float:
    """Return how many source pixels a target pixel is wide, at the middle of the grid; NaN: no way there.

    The linear part of the source's transform is a, b, d, e.
    """
    columns = grid.width / 2 + np.array([0.0, 1.0, 0.0])
    rows = grid.height / 2 + np.array([0.0, 0.0, 1.0])
    xs, ys = _transform(grid.crs, source_crs, *_apply(grid.transform, columns, rows))
    if _is_geographic(source_crs):
        xs = xs[0] + (xs - xs[0] + 180) % 360 - 180
    area = abs((xs[1] - xs[0]) * (ys[2] - ys[0]) - (xs[2] - xs[0]) * (ys[1] - ys[0]))
    a, b, d, e = linear
    # Rounded: twice is twice on every PROJ build.
    return round(math.sqrt(area / abs(a * e - b * d)), 6)


def _linear(transform: tuple[float, ...]) -> tuple[float, ...]:
    a, b, _, d, e, _ = transform
    return a, b, d, e


def _blocks(first: float, last: float, factor: int, length: int) -> tuple[int, int]:
    """Return the range of whole blocks of pixels that holds first…last, cut at the scene's edges."""
    return max(0, math.floor(first / factor) * factor), min(length, math.ceil(last / factor) * factor)


def _fill_blocks(
    values_CHW: NDArray[Any], valid_HW: NDArray[np.bool_], factor: int
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Fill up the last blocks, which the scene's edge cuts, with pixels without data."""
    height, width = valid_HW.shape
    beyond = (0, -height % factor), (0, -width % factor)
    return np.pad(values_CHW, ((0, 0), *beyond)), np.pad(valid_HW, beyond)
