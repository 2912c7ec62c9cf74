"""What a dataset is made of and how; all of `Recipe` decides bytes, the rest of `IngestConfig` does not."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

RGB = ("red", "green", "blue")
PATTERN_GROUPS = ("scene", "band", "time", "acquisition", "version", "sensor", "label")
"""Named groups that `file_pattern` may have."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides the dataset's bytes besides the scenes themselves."""

    seed: int = 0
    """Decides how tiles are mixed over shards."""
    tile_px: int = 512
    """Side of a tile, pixels."""
    stride_px: int = 0
    """Distance of neighbouring tiles, pixels; 0: tile_px (no overlap)."""
    edge: Literal["shift", "drop", "pad"] = "shift"
    """What happens where the grid leaves the scene: shift the last tile inwards, drop it, or pad it with nodata."""
    bands: tuple[str, ...] = RGB
    """Names of the dataset's bands, in order."""
    source_bands: tuple[int | str, ...] = ()
    """What supplies each band: a number (from 1), a band's description, or with file_pattern a file's `band`.

    Empty: found by description, colour or position.
    """
    file_pattern: str = ""
    """Regular expression that finds out about a file from its path; empty: every file is a scene.

    Of the syntax that RE2 and Python share. Named groups, all optional: scene (files with equal text make one scene of
    several files), band (names a file in source_bands), time (YYYYMMDD, with or without THHMMSS), acquisition and
    version (of one acquisition the highest version is kept), sensor, label. Files that do not match are left out as
    pattern_mismatch.
    """
    replicate_grey: bool = False
    """Let a one-band scene supply all bands."""
    normalisation: Literal["auto", "none", "linear", "percentile", "keep"] = "auto"
    """Values to uint8: as they are (none), low…high → 0…255 (linear), per scene and band (percentile); keep: no uint8.

    auto: none for uint8, percentile for all other types.
    """
    dtype: Literal["uint8", "uint16", "int16", "float32"] = "uint8"
    """Type of the tiles; other than uint8 only with normalisation keep, which takes scenes of this type alone."""
    low: float = 0.0
    """Of linear: the value, after offset and scale, that becomes 0."""
    high: float = 10000.0
    """Of linear: the value, after offset and scale, that becomes 255."""
    offset: float = 0.0
    """Added to source values first (Sentinel-2 from baseline 04.00 on: -1000); with keep the type's range clips.

    A pixel without data stays without data. A list or STAC item that names an offset of its own wins.
    """
    offset_pattern: str = ""
    """Regular expression: the offset is for scenes alone whose path it finds; empty: for all."""
    scale: float = 1.0
    """Of linear: the sum of value and offset is multiplied by it (Landsat C2 surface reflectance: 0.0000275)."""
    percentiles: tuple[float, float] = (1.0, 99.0)
    """Of percentile: the shares, in percent, that become 0 and 255."""
    target_gsd_m: float = 0.0
    """Average n × n source pixels, n the whole number that comes nearest to this distance, metres; 0: as they are.

    With warp_crs: the pixel size of the new grid.
    """
    warp_crs: str = ""
    """Resample tiles to this CRS (EPSG:3857, …; utm: each scene's own zone), bilinear; empty: the native grid."""
    zero_is_nodata: bool = True
    """A pixel that is 0 in all bands has no data, also where the scene does not say so (undeclared black collars)."""
    min_valid_share: float = 0.75
    """Tiles with a smaller share of pixels with data are left out (0…1)."""
    min_contrast: float = 0.004
    """Tiles whose bands all vary less than this share of the value range (standard deviation) are left out."""
    min_entropy: float = 0.0
    """Tiles whose bands all have less entropy than this (bits of their 8-bit histogram, 0…8) are left out."""
    max_black_share: float = 1.0
    """Tiles with a larger share of valid pixels whose bands are all at the low end of the range are left out (0…1)."""
    max_saturated_share: float = 1.0
    """Tiles with a larger share of valid pixels with a band at the top of the range are left out (0…1)."""
    cloud_band: int | str = ""
    """The quality band that tells clouds, named as in source_bands; empty: none."""
    cloud_values: tuple[int, ...] = ()
    """Values of the cloud band that mean cloud or shadow (Sentinel-2 SCL: 3, 8, 9, 10)."""
    cloud_bits: tuple[int, ...] = ()
    """Bits of the cloud band, from 0, of which any means cloud or shadow (Landsat QA_PIXEL: 1, 2, 3, 4)."""
    max_cloud_share: float = 1.0
    """Tiles with a larger share of cloudy pixels are left out (0…1)."""
    drop_duplicates: bool = True
    """Of tiles with equal pixels in the whole dataset keep one: that with the smallest key, of a scene that is
    still there if any is."""
    val_share: float = 0.0
    """Share of the ground (cells of split_cell_km) whose tiles are marked `val` in the column split (0…1)."""
    test_share: float = 0.0
    """Likewise `test`. Tiles that lie across cells of different splits are marked `border`."""
    split_cell_km: float = 20.0
    """Side of the cells that are dealt out to train, val and test, kilometres; without a place: by scene."""
    encoding: Literal["auto", "jpeg", "png", "webp", "npy"] = "auto"
    """Of tiles; auto: jpeg for uint8 with 1 or 3 bands, npy for the rest."""
    jpeg_quality: int = 95
    """1…100; chroma is never subsampled."""
    shard_mb: float = 64.0
    """Size of a shard to aim for, 10⁶ bytes."""
    label_from: Literal["none", "folder"] = "none"
    """Take a scene's label from the name of its folder."""
    sensor: str = ""
    """Written into every tile's metadata."""
    max_scene_gb: float = 32.0
    """Scenes with more uncompressed bytes (10⁹) are rejected: decompression bombs."""
    max_scene_cpu_s: float = 600.0
    """Pieces of a scene (see the plan's units) whose decoding takes more CPU time, seconds, are left out."""

    def __post_init__(self) -> None:
        for name, low, high in [
            ("seed", -(2**63), 2**63 - 1),
            ("tile_px", 16, 4096),
            ("stride_px", 0, 4096),
            ("min_valid_share", 0, 1),
            ("min_contrast", 0, 1),
            ("jpeg_quality", 1, 100),
            ("shard_mb", 0.1, 4096),
            ("max_scene_gb", 1e-6, 1e6),
            ("max_scene_cpu_s", 0.1, 1e6),
            ("low", -1e30, 1e30),
            ("high", -1e30, 1e30),
            ("offset", -1e30, 1e30),
            ("scale", 1e-30, 1e30),
            ("target_gsd_m", 0, 1e6),
            ("min_entropy", 0, 8),
            ("max_black_share", 0, 1),
            ("max_saturated_share", 0, 1),
            ("max_cloud_share", 0, 1),
            ("val_share", 0, 1),
            ("test_share", 0, 1),
            ("split_cell_km", 0.1, 5000),
        ]:
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}: choose a value from {low} to {high}")
        if not self.bands or len(set(self.bands)) != len(self.bands):
            raise ValueError(f"bands are {list(self.bands)}: name at least one, none twice")
        if self.source_bands and (
            len(self.source_bands) != len(self.bands) or not all(map(_is_band, self.source_bands))
        ):
            raise ValueError(
                f"source_bands {list(self.source_bands)} do not give one number from 1 or name for each of "
                f"{list(self.bands)}"
            )
        _require_patterns(self)
        if self.dtype != "uint8" and self.normalisation != "keep":
            raise ValueError(f"dtype {self.dtype} needs normalisation keep: {self.normalisation} makes uint8")
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(f"percentiles {self.percentiles} are not ascending within 0…100")
        if self.val_share + self.test_share > 1:
            raise ValueError(f"val_share {self.val_share} and test_share {self.test_share} are more than the whole")
        if self.warp_crs and not self.target_gsd_m:
            raise ValueError(f"warp_crs {self.warp_crs} needs the new grid's pixel size: give target_gsd_m")
        if self.cloud_band and not _is_band(self.cloud_band):
            raise ValueError(f"cloud_band is {self.cloud_band}: give a number from 1, or a name")
        if bool(self.cloud_band) != bool(self.cloud_values or self.cloud_bits):
            raise ValueError("cloud_band needs cloud_values or cloud_bits, and they need it")
        if any(not 0 <= bit < 64 for bit in self.cloud_bits):
            raise ValueError(f"cloud_bits are {list(self.cloud_bits)}: count from 0 to 63")
        if self.max_cloud_share < 1 and not self.cloud_band:
            raise ValueError(f"max_cloud_share {self.max_cloud_share} needs a cloud_band")
        if self.encoding in ("jpeg", "png", "webp") and (self.dtype != "uint8" or len(self.bands) not in (1, 3)):
            raise ValueError(f"encoding {self.encoding} holds 1 or 3 bands of uint8: choose npy or auto")


def _is_band(band: int | str) -> bool:
    return band >= 1 if isinstance(band, int) else bool(band)


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe's fields (not those of a whole ingest configuration) as JSON holds them."""
    return {field.name: _plain(getattr(recipe, field.name)) for field in fields(Recipe)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def recipe_json(recipe: Recipe) -> str:
    """Return the recipe as canonical JSON text: sorted keys, no spaces."""
    return json.dumps(recipe_values(recipe), sort_keys=True, separators=(",", ":"))


def recipe_of(values: Mapping[str, Any]) -> Recipe:
    """Return the recipe that `recipe_values` described; options that it does not name have their defaults.

    Raises:
        ValueError: an option that this version does not know, or a value that it refuses.
    """
    unknown = sorted(values.keys() - {field.name for field in fields(Recipe)})
    if unknown:
        raise ValueError(f"unknown options {', '.join(unknown)}: made by another version of ingest")
    chosen: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return Recipe(**chosen)


def _require_patterns(recipe: Recipe) -> None:
    for name in ("file_pattern", "offset_pattern"):
        try:
            found = re.compile(getattr(recipe, name)).groupindex
        except re.error as error:
            raise ValueError(f"{name} {getattr(recipe, name)!r} is no regular expression: {error}") from error
        unknown = set(found) - set(PATTERN_GROUPS)
        if unknown:
            raise ValueError(f"{name} has a group {sorted(unknown)[0]}: known are {', '.join(PATTERN_GROUPS)}")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How and where a run works; nothing of it decides bytes."""

    allow: tuple[str, ...] = ()
    """URL prefixes that a list may name besides its own folder, such as s3://archive/ or https://host/."""
    workers: int = 0
    """Processes on this machine; 0: one per core. Has no influence on the data."""
    address: str = ""
    """An existing Ray cluster to run on (its workers count then): HOST:PORT of its head, from one of its machines, or
    ray://HOST:10001 from any other. Each machine needs the same packages, and access of its own to scenes and output:
    a shared disk, or the store's settings (AWS_…) where `ray start` runs. Empty: a local one for this run."""
    attempts: int = 4
    """How often a group of work is tried before the run goes on without it and ends with exit code 1."""
    group_deadline_s: float = 3600.0
    """A group that takes longer, seconds, is stopped and tried again."""
    scene_deadline_s: float = 1800.0
    """A decoder that gives no answer about one piece of a scene for so long, seconds of the clock, is stopped; its
    group is tried again."""
    single_writer: bool = False
    """Nobody else writes to `out`: needed for stores that cannot create a file only if it is not there yet."""

    def __post_init__(self) -> None:
        for name, low, high in [
            ("workers", 0, 4096),
            ("attempts", 1, 100),
            ("group_deadline_s", 1, 1e7),
            ("scene_deadline_s", 1, 1e7),
        ]:
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}: choose a value from {low} to {high}")


@dataclass(frozen=True, kw_only=True)
class IngestConfig(Recipe, RunOptions):
    """One ingest run."""

    scenes: str
    """Folder or bucket URL with the scenes, searched recursively (zip files are folders); or a list of them.

    A list: a .csv or .parquet file with a column url or path (and label, time, sensor, acquisition, version, offset
    if known), a STAC ItemCollection or catalogue (.json), or stac-geoparquet (.parquet).
    """
    out: str
    """Folder or bucket URL of the dataset to make."""

    def __post_init__(self) -> None:
        Recipe.__post_init__(self)
        RunOptions.__post_init__(self)

    def recipe(self) -> Recipe:
        """Return the recipe alone."""
        return Recipe(**{field.name: getattr(self, field.name) for field in fields(Recipe)})


@dataclass(frozen=True, kw_only=True)
class RebuildConfig(RunOptions):
    """Building a version again from its own record."""

    rebuild: str
    """The dataset: a folder or bucket URL."""
    version: int | None = None
    """Its version; the newest by default."""
    out: str
    """Folder or bucket URL to build into; holds no dataset yet."""
    scenes: str = ""
    """Where the scenes lie now, if they were moved; empty: where they lay."""
