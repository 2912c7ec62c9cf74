"""What a dataset is made of and how; all of `Recipe` decides bytes, the rest of `IngestConfig` does not."""

from dataclasses import dataclass
from typing import Literal

RGB = ("red", "green", "blue")


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
    source_bands: tuple[int, ...] = ()
    """Which band of a scene (from 1) supplies each name; empty: found by description, colour or position."""
    replicate_grey: bool = False
    """Let a one-band scene supply all bands."""
    normalisation: Literal["auto", "none", "linear", "percentile", "keep"] = "auto"
    """Values to uint8: as they are (none), low…high → 0…255 (linear), per scene and band (percentile); keep: no uint8.

    auto: none for uint8, percentile for all other types.
    """
    dtype: Literal["uint8", "uint16", "int16", "float32"] = "uint8"
    """Type of the tiles; other than uint8 only with normalisation keep, which takes scenes of this type alone."""
    low: float = 0.0
    """Of linear: the source value, after the offset, that becomes 0."""
    high: float = 10000.0
    """Of linear: the source value, after the offset, that becomes 255."""
    offset: float = 0.0
    """Of linear: added to source values first (Sentinel-2 from baseline 04.00 on: -1000)."""
    percentiles: tuple[float, float] = (1.0, 99.0)
    """Of percentile: the shares, in percent, that become 0 and 255."""
    zero_is_nodata: bool = True
    """A pixel that is 0 in all bands has no data, also where the scene does not say so (undeclared black collars)."""
    min_valid_share: float = 0.75
    """Tiles with a smaller share of pixels with data are left out (0…1)."""
    min_contrast: float = 0.004
    """Tiles whose bands all vary less than this share of the value range (standard deviation) are left out."""
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
            ("low", -1e30, 1e30),
            ("high", -1e30, 1e30),
            ("offset", -1e30, 1e30),
        ]:
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}: choose a value from {low} to {high}")
        if not self.bands or len(set(self.bands)) != len(self.bands):
            raise ValueError(f"bands are {list(self.bands)}: name at least one, none twice")
        if self.source_bands and (len(self.source_bands) != len(self.bands) or min(self.source_bands) < 1):
            raise ValueError(
                f"source_bands {list(self.source_bands)} do not give one number from 1 for each of {list(self.bands)}"
            )
        if self.dtype != "uint8" and self.normalisation != "keep":
            raise ValueError(f"dtype {self.dtype} needs normalisation keep: {self.normalisation} makes uint8")
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(f"percentiles {self.percentiles} are not ascending within 0…100")
        if self.encoding in ("jpeg", "png", "webp") and (self.dtype != "uint8" or len(self.bands) not in (1, 3)):
            raise ValueError(f"encoding {self.encoding} holds 1 or 3 bands of uint8: choose npy or auto")


@dataclass(frozen=True, kw_only=True)
class IngestConfig(Recipe):
    """One ingest run."""

    scenes: str
    """Folder or bucket URL with the scenes, searched recursively."""
    out: str
    """Folder or bucket URL of the dataset to make."""
    workers: int = 0
    """Processes on this machine; 0: one per core. Has no influence on the data."""
    address: str = ""
    """An existing Ray cluster to run on (its workers count then); empty: a local one for this run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.workers <= 4096:
            raise ValueError(f"workers is {self.workers}: choose a value from 0 (one per core) to 4096")
