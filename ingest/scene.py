"""A scene of one file or several on one grid: find its bands, judge its header, read windows of it.

Runs inside the decoder process. Shapes: C bands, H × W pixels; windows count source pixels of the finest file.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from ingest import raster
from ingest.config import RGB, Recipe
from ingest.pixels import cloudy, upsample
from ingest.reader import Fetch, Reader, open_reader
from ingest.reasons import SceneRejectedError

# What unpacks to so many times its bytes is no picture of the ground: DEFLATE, the densest of the usual codecs, ends at
# 1032. Small files may: there is little to lose.
_BOMB_RATIO, _BOMB_BYTES = 2000, 2**30
_TILE_TYPES = ("uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")


@dataclass(frozen=True, kw_only=True)
class SceneFile:
    """One file of a scene as the decoder meets it."""

    band: str
    """What source_bands call it; empty for a scene of one file."""
    path: str
    """Local path, or the name that the opener knows it by."""
    opener: raster.Opener | None = None
    fetch: Fetch | None = None
    """Brings (offset, size) ranges near before they are read one by one."""
    num_bytes: int | None = None
    """Of the file; None: not known."""

    def driver(self) -> str:
        """Return the GDAL driver by the first bytes.

        Raises:
            SceneRejectedError: the file cannot be opened, or is no raster.
        """
        try:
            with (self.opener or open)(self.path, "rb") as file:
                head: bytes = file.read(raster.HEAD_BYTES)
        except FileNotFoundError as error:
            raise SceneRejectedError("missing", "cannot be opened") from error
        except PermissionError as error:
            raise SceneRejectedError("unreadable", "permission denied") from error
        return raster.driver_of(head)


class Bands(NamedTuple):
    """Which band of which open file supplies each band of the dataset, then the cloud band if there is one."""

    files: tuple[int, ...]
    indexes: tuple[int, ...]
    palette: bool


class Strip(NamedTuple):
    """A window of a scene."""

    values_CHW: NDArray[Any]
    valid_HW: NDArray[np.bool_] | None
    """None: all pixels have data."""
    cloudy_HW: NDArray[np.bool_] | None
    """None: there is no cloud band."""


class Scene:
    """An open scene; make it with `open_scene`."""

    def __init__(self, readers: Sequence[Reader], bands: Bands) -> None:
        self._readers, self.bands = readers, bands
        self._widths = [reader.source.width for reader in readers]
        self._palette = raster.palette_of(readers[0].source) if bands.palette else None

    @property
    def driver(self) -> str:
        """GDAL's name of the (first) file's format."""
        return self._readers[0].driver

    @property
    def sources(self) -> list[Any]:
        """The open files; only until the next read."""
        return [reader.source for reader in self._readers]

    @property
    def reference(self) -> Any:
        """The finest of the open files; only until the next read."""
        return max(self.sources, key=lambda source: source.width)

    def read(self, window: Window, recipe: Recipe) -> Strip:
        """Read a window, all bands in one call per file.

        A pixel is valid if any of the bands has data there, no band is NaN, and, where zero means no data, some band
        is not 0.

        Raises:
            SceneRejectedError: the bytes cannot be decoded.
        """
        num_bands = len(recipe.bands)
        if self._palette is not None:
            values, valid = self._read_palette(window)
        else:
            values, valid = self._read_bands(slice(0, num_bands), window)
        if values.dtype.kind == "f":
            finite = np.isfinite(values).all(axis=0)
            valid = finite if valid is None else valid & finite
        if recipe.zero_is_nodata:
            valid = _without_zeros(values, valid)
        cloud = None
        if recipe.cloud_band:
            quality, known = self._read_bands(slice(num_bands, num_bands + 1), window)
            cloud = cloudy(quality[0], recipe.cloud_values, recipe.cloud_bits)
            cloud = cloud if known is None else cloud & known
        return Strip(values, None if valid is None or valid.all() else valid, cloud)

    def _read_palette(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        assert self._palette is not None
        indexes, valid = self._read_file(0, [1], window)
        colours = self._palette[indexes[0]]
        opaque = colours[..., 3] > 0
        return np.ascontiguousarray(colours[..., :3].transpose(2, 0, 1)), opaque if valid is None else valid & opaque

    def _read_bands(self, chosen: slice, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        files, indexes = self.bands.files[chosen], self.bands.indexes[chosen]
        if len(set(files)) == 1:
            return self._read_file(files[0], indexes, window)
        parts = [self._read_file(file, [index], window) for file, index in zip(files, indexes, strict=True)]
        values = np.concatenate([values for values, _ in parts])
        masks = [valid for _, valid in parts if valid is not None]
        # Data in one band is enough, so one band without a mask is.
        return values, np.logical_or.reduce(masks) if len(masks) == len(parts) else None

    def _read_file(
        self, file: int, indexes: Sequence[int], window: Window
    ) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        step = max(self._widths) // self._widths[file]
        if step == 1:
            return self._readers[file].read(indexes, window)
        # A coarser file: its pixels that the window touches, each repeated, then cut.
        left, top = window.col_off // step, window.row_off // step
        right, bottom = -(-(window.col_off + window.width) // step), -(-(window.row_off + window.height) // step)
        values, valid = self._readers[file].read(indexes, Window(left, top, right - left, bottom - top))
        x, y = window.col_off - left * step, window.row_off - top * step
        cut = np.s_[:, y : y + window.height, x : x + window.width]
        fine = np.ascontiguousarray(upsample(values, step)[cut])
        return fine, None if valid is None else upsample(valid[None], step)[cut][0]


def _without_zeros(values_CHW: NDArray[Any], valid_HW: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Take pixels out that are 0 in all bands; None stays None where there is none."""
    if valid_HW is None and values_CHW[0].all():
        return None
    filled: NDArray[np.bool_] = np.logical_or.reduce(values_CHW, axis=0)
    return filled if valid_HW is None else valid_HW & filled


@contextlib.contextmanager
def open_scene(files: Sequence[SceneFile], recipe: Recipe) -> Iterator[Scene]:
    """Open the files of a scene that the recipe needs.

    Raises:
        SceneRejectedError: a file cannot be opened, or the scene cannot supply the recipe's bands on one grid.
    """
    with contextlib.ExitStack() as stack:
        needed = _needed(files, recipe)
        drivers = [file.driver() for file in needed]
        readers = [
            stack.enter_context(open_reader(file.path, driver, file.opener, file.fetch))
            for file, driver in zip(needed, drivers, strict=True)
        ]
        if files[0].band:
            bands = _bands_of_files([file.band for file in needed], recipe)
            _require_one_grid([reader.source for reader in readers])
        else:
            bands = find_bands(recipe, _facts(readers[0].source))
        yield Scene(readers, bands)


def _needed(files: Sequence[SceneFile], recipe: Recipe) -> list[SceneFile]:
    if not files[0].band:
        return list(files)
    by_band = {file.band: file for file in files}
    names = _names(recipe)
    missing = [name for name in names if name not in by_band]
    if missing:
        raise SceneRejectedError("bands_missing", f"no file for {', '.join(missing)}; has {', '.join(sorted(by_band))}")
    return [by_band[name] for name in dict.fromkeys(names)]


def _names(recipe: Recipe) -> list[str]:
    """Return what the files of a scene are called, band by band, then that of the cloud band."""
    bands = recipe.source_bands or recipe.bands
    return [str(band) for band in [*bands, *([recipe.cloud_band] if recipe.cloud_band else [])]]


def _bands_of_files(names: list[str], recipe: Recipe) -> Bands:
    files = tuple(names.index(name) for name in _names(recipe))
    return Bands(files, (1,) * len(files), palette=False)


def _require_one_grid(sources: Sequence[Any]) -> None:
    reference = max(sources, key=lambda source: source.width)
    for source in sources:
        step = reference.width // source.width
        if (source.width * step, source.height * step) != (reference.width, reference.height):
            sizes = f"{source.width}×{source.height} and {reference.width}×{reference.height}"
            raise SceneRejectedError("misaligned", f"files of {sizes} pixels")
        if source.crs != reference.crs or not _cover_each_other(source, reference):
            raise SceneRejectedError("misaligned", "files with different CRS, origin or pixel size")


def _cover_each_other(source: Any, reference: Any) -> bool:
    """Say whether the corners of two files lie within half a pixel of the finer one; False where they are NaN."""
    tolerance = abs(reference.transform.determinant) ** 0.5 / 2
    shares = [(0, 0), (1, 0), (0, 1), (1, 1)]
    places = [[file.transform @ (x * file.width, y * file.height) for x, y in shares] for file in (source, reference)]
    return all(math.dist(mine, other) <= tolerance for mine, other in zip(*places, strict=True))


@dataclass(frozen=True, kw_only=True)
class BandFacts:
    """What a file says of its bands."""

    count: int
    descriptions: Sequence[str] | None
    """Empty where a band has none; None: there are such that are not UTF-8."""
    colours: Sequence[str]
    """Colour interpretations by rasterio's names."""


def _facts(source: Any) -> BandFacts:
    return BandFacts(
        count=source.count,
        descriptions=raster.descriptions_of(source),
        colours=[colour.name for colour in source.colorinterp],
    )


def find_bands(recipe: Recipe, facts: BandFacts) -> Bands:
    """Return which bands of a one-file scene supply the recipe's bands and its cloud band.

    In this order: as the recipe says; bands described by these names; bands with these colour interpretations; for
    red, green, blue the first three of a 3- or 4-band scene without a palette, or a palette's colours; one grey band
    for all where the recipe allows it. Descriptions that name some of the recipe's bands count alone; where they say
    more than a band's number, or cannot be read, or one of the first three has a colour interpretation (alpha: two
    bands and their mask), these are not taken for red, green and blue.

    Raises:
        SceneRejectedError: the scene cannot supply them.
    """
    indexes, palette = _find_indexes(recipe, facts)
    if recipe.cloud_band:
        indexes = (*indexes, _index_of(recipe.cloud_band, facts))
    return Bands((0,) * len(indexes), indexes, palette)


def _find_indexes(recipe: Recipe, facts: BandFacts) -> tuple[tuple[int, ...], bool]:
    if recipe.source_bands:
        return tuple(_index_of(band, facts) for band in recipe.source_bands), False
    bands, described = [band.lower() for band in recipe.bands], _lower_names(facts)
    for names in (described, list(facts.colours)):
        if all(names.count(band) == 1 for band in bands):
            return tuple(names.index(band) + 1 for band in bands), False
        if set(names) & set(bands):  # some, or one of them twice: then what else there is says nothing better
            raise _bands_missing(facts)
    palette = "palette" in facts.colours
    if recipe.bands == RGB and facts.count in (3, 4) and not _is_coloured(facts) and not _is_described(facts):
        return (1, 2, 3), False
    if recipe.bands == RGB and facts.count == 1 and palette:
        return (1, 1, 1), True
    if recipe.replicate_grey and facts.count == 1 and not palette:
        return (1,) * len(recipe.bands), False
    raise _bands_missing(facts)


def _bands_missing(facts: BandFacts) -> SceneRejectedError:
    names = facts.descriptions if facts.descriptions and _is_described(facts) else facts.colours
    told = "" if facts.descriptions is not None else ", descriptions that are not UTF-8"
    return SceneRejectedError("bands_missing", f"has {facts.count} bands ({', '.join(names[:6])}){told}")


def _is_coloured(facts: BandFacts) -> bool:
    """Say whether one of the first three bands is said to be something: grey is what GDAL writes if told nothing."""
    return not set(facts.colours[:3]) <= {"gray", "undefined"}


def _is_described(facts: BandFacts) -> bool:
    """Say whether descriptions tell more than the bands' numbers ("Band 1", "layer_2"), or cannot be read."""
    if facts.descriptions is None:
        return True
    numbered = (
        re.fullmatch(rf"((band|layer|channel|b)?[ _-]?0*{number})?", name.strip().lower())
        for number, name in enumerate(facts.descriptions, 1)
    )
    return not all(numbered)


def _lower_names(facts: BandFacts) -> list[str]:
    return [name.lower() for name in facts.descriptions or ()]


def _index_of(band: int | str, facts: BandFacts) -> int:
    """Return the number, from 1, of the band that a number or description names."""
    names = _lower_names(facts)
    if isinstance(band, str) and names.count(band.lower()) == 1:
        return names.index(band.lower()) + 1
    if isinstance(band, str) or band > facts.count:
        raise SceneRejectedError("bands_missing", f"has {facts.count} bands, recipe wants {band}")
    return band


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a scene's header says; the fields are columns of the scenes table."""

    driver: str
    width: int
    height: int
    num_bands: int
    dtype: str
    crs: str | None
    transform: tuple[float, ...] | None
    gsd_m: float | None
    nodata: float | None
    time: datetime | None
    block_width: int
    block_height: int
    palette: bool
    band_indexes: tuple[int, ...]
    band_files: tuple[int, ...] | None


def read_header(scene: Scene, files: Sequence[SceneFile], recipe: Recipe) -> Header:
    """Read and judge the header of an open scene.

    A georeference that places nothing counts as none, see `raster.place_of`.

    Raises:
        SceneRejectedError: too large, or of an unusable type.
    """
    source = scene.reference
    used = len(recipe.bands)
    dtype = _dtype(scene, used, recipe)
    num_bytes = source.width * source.height * max(source.count, used) * np.dtype(dtype).itemsize
    if num_bytes > recipe.max_scene_gb * 1e9:
        raise SceneRejectedError("too_large", f"{num_bytes / 1e9:.1f} GB uncompressed > {recipe.max_scene_gb} GB")
    stored = sum(file.num_bytes or 0 for file in files)
    if num_bytes > _BOMB_BYTES and all(file.num_bytes for file in files) and num_bytes > _BOMB_RATIO * stored:
        raise SceneRejectedError("too_large", f"{stored} bytes announce {num_bytes / 1e9:.1f} GB")
    crs, transform, gsd_m = raster.place_of(source)
    block_height, block_width = source.block_shapes[0]
    places = [files.index(file) for file in _needed(files, recipe)]
    return Header(
        driver=scene.driver,
        width=source.width,
        height=source.height,
        num_bands=len(files) if files[0].band else source.count,
        dtype=dtype,
        crs=crs,
        transform=transform,
        gsd_m=gsd_m,
        nodata=_nodata(source),
        time=raster.time_of(source),
        block_width=block_width,
        block_height=block_height,
        palette=scene.bands.palette,
        band_indexes=scene.bands.indexes,
        band_files=tuple(places[file] for file in scene.bands.files) if files[0].band else None,
    )


def _dtype(scene: Scene, used: int, recipe: Recipe) -> str:
    dtypes = {
        scene.sources[file].dtypes[index - 1]
        for file, index in zip(scene.bands.files[:used], scene.bands.indexes[:used], strict=True)
    }
    dtype = str(dtypes.pop())
    if dtypes or dtype not in _TILE_TYPES or (scene.bands.palette and dtype != "uint8"):
        raise SceneRejectedError("wrong_dtype", f"{dtype} is not one of {', '.join(_TILE_TYPES)} for all bands")
    wanted = {"none": "uint8", "keep": recipe.dtype}.get(recipe.normalisation)
    if wanted and dtype != wanted:
        raise SceneRejectedError("wrong_dtype", f"{dtype}, while normalisation {recipe.normalisation} takes {wanted}")
    return dtype


def _nodata(source: Any) -> float | None:
    # JSON has no NaN and no infinity; such values are never valid anyway.
    return float(source.nodata) if source.nodata is not None and math.isfinite(source.nodata) else None
