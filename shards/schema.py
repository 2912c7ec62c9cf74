"""The tables of a dataset: their columns, and the value objects of a version file.

Four tables, each a sequence of Parquet files named by the version:

- samples: one row per tile that lies in a shard, in the order of the shards;
- shards: one row per tar file;
- scenes: every scene of the inventory exactly once, with its end state;
- rejects: every scene and every tile that was left out, with a reason code.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

FORMAT = "pera-dataset"
FORMAT_VERSION = 1


def _floats(count: int = -1) -> pa.DataType:
    # "element" is the name that Parquet gives back: a table read equals the table written.
    return pa.list_(pa.field("element", pa.float64()), count)


_PART = pa.struct(
    [
        ("series", pa.string()),  # name of the modality, the beginning of its members' extensions
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int32()),
        ("crc32c", pa.uint32()),
    ]
)


SAMPLES = pa.schema(
    [
        ("key", pa.string()),  # unique in the dataset; names of the members start with it
        ("shard", pa.string()),  # id of the shard, see the shards table
        ("offset", pa.int64()),  # first byte of the sample's first tar header
        ("size", pa.int32()),  # bytes up to the end of its last member's padding
        ("crc32c", pa.uint32()),  # of these bytes
        # Members of the sample in other shards: one series of shards per modality, equal keys. Null: none.
        ("parts", pa.list_(pa.field("element", _PART))),
        ("member", pa.string()),  # extension of the image member, without dot
        ("member_offset", pa.int64()),  # first byte of the image itself
        ("member_size", pa.int32()),
        ("member_sha256", pa.binary(32)),
        ("json_sha256", pa.binary(32)),  # of indexed foreign samples: of all other members, see shards.indexing.index
        ("scene", pa.string()),  # id of the scene, see the scenes table
        ("x", pa.int32()),  # window in scene pixels: left
        ("y", pa.int32()),  # and top
        ("width", pa.int32()),  # tile pixels
        ("height", pa.int32()),
        ("crs", pa.string()),  # authority code if there is one, else WKT; null: none
        ("transform", _floats(6)),  # pixel to CRS: a, b, c, d, e, f (affine order); null: none
        ("bounds", _floats(4)),  # left, bottom, right, top in CRS units
        ("lon", pa.float64()),  # centre, WGS 84 degrees
        ("lat", pa.float64()),
        ("gsd_m", pa.float64()),  # ground sampling distance, metres
        ("time", pa.timestamp("ms", tz="UTC")),  # acquisition
        ("sensor", pa.string()),
        ("label", pa.string()),
        ("cell", pa.string()),  # cell of the split grid in which the centre lies; null: no place
        ("split", pa.string()),  # train, val, test, or border: across cells of different splits
        ("num_valid", pa.int32()),  # pixels with data
        ("valid_share", pa.float32()),  # share of pixels with data, 0..1
        ("contrast", pa.float32()),  # largest standard deviation of a band over valid pixels, share of the value range
        ("entropy", pa.float32()),  # largest of a band's 8-bit histogram over valid pixels, bits
        ("black_share", pa.float32()),  # share of valid pixels with all bands at the low end of the range
        ("saturated_share", pa.float32()),  # share of valid pixels with a band at the top of the range
        ("clipped_share", pa.float32()),  # share of valid pixels in which normalisation clipped a band
        ("cloud_share", pa.float32()),  # share of pixels that the quality band calls cloud or shadow; null: none
        ("band_sums", _floats()),  # sum of the valid values, per band; exact for integer types
        ("band_squares", _floats()),  # sum of their squares
        ("dhash", pa.uint64()),  # difference hash of the brightness: near-duplicates differ in few bits
    ]
)

SHARDS = pa.schema(
    [
        ("shard", pa.string()),  # id: sha256 of the file
        ("url", pa.string()),  # relative to the dataset, or absolute
        ("size", pa.int64()),  # bytes
        ("num_samples", pa.int32()),
        ("etag", pa.string()),  # of a foreign object when it was indexed; null: not known
    ]
)

_FILE = pa.struct(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("etag", pa.string()),
        ("band", pa.string()),  # what source_bands call it
    ]
)

INVENTORY = pa.schema(
    [
        ("scene", pa.string()),  # id: 16 hex digits, a hash of the path
        ("path", pa.string()),  # relative to the scenes' root, or a URL; of several files: their common name
        ("size", pa.int64()),  # bytes, of all files together
        ("etag", pa.string()),  # changes when the content may have
        ("archive", pa.string()),  # the zip file that holds it, as a path like the above; null: none
        ("files", pa.list_(pa.field("element", _FILE))),  # of a scene of several files; null: one file, `path`
        ("label", pa.string()),
        ("time", pa.timestamp("ms", tz="UTC")),
        ("sensor", pa.string()),
        ("acquisition", pa.string()),  # scenes with the same one are versions of each other; null: the only one
        ("version", pa.string()),  # of the acquisition: the highest is kept
        ("offset", pa.float64()),  # added to source values; null: as the recipe says
        ("reason", pa.string()),  # code why it is left out; null: to be used
        ("detail", pa.string()),
    ]
)
"""Columns of the scenes table that are known before a scene is opened."""

SCENES = pa.schema(
    [
        *INVENTORY,
        ("state", pa.string()),  # "used" or "rejected"
        ("num_tiles", pa.int32()),  # tiles in shards
        ("num_dropped", pa.int32()),  # tiles left out, see rejects
        ("driver", pa.string()),  # null from here on where the scene could not be opened
        ("width", pa.int32()),  # source pixels; of several files: of the finest
        ("height", pa.int32()),
        ("num_bands", pa.int32()),
        ("dtype", pa.string()),
        ("crs", pa.string()),  # of the source, authority code if there is one, else WKT
        ("transform", _floats(6)),  # source pixel to CRS
        ("gsd_m", pa.float64()),  # of the source
        ("nodata", pa.float64()),
        ("block_width", pa.int32()),  # pixels that are stored together
        ("block_height", pa.int32()),
        ("palette", pa.bool_()),  # colours come from a table in the file
        ("factor", pa.int32()),  # source pixels per tile pixel along one axis; null: warped
        ("grid_width", pa.int32()),  # pixels of the grid that tiles are cut from: after averaging or warping
        ("grid_height", pa.int32()),
        # From 1, in the order of the dataset's bands; then that of the cloud band, if there is one.
        ("band_indexes", pa.list_(pa.field("element", pa.int32()))),
        ("band_files", pa.list_(pa.field("element", pa.int32()))),  # row of `files` for each of them; null: one file
        ("low", _floats()),  # source value that became 0, per band; null: values as they are
        ("high", _floats()),  # source value that became the top of the range
    ]
)

REJECTS = pa.schema(
    [
        ("scene", pa.string()),
        ("path", pa.string()),
        ("x", pa.int32()),  # null: the whole scene
        ("y", pa.int32()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)

TABLES = {"samples": SAMPLES, "shards": SHARDS, "scenes": SCENES, "rejects": REJECTS}


@dataclass(frozen=True, kw_only=True)
class Band:
    """One band of every tile."""

    name: str
    mean: float
    """Over all valid pixels of the dataset, in the units of its type (0…255 for uint8)."""
    std: float
    """As the mean."""


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """One Parquet file of a table."""

    url: str
    """Relative to the dataset, or absolute."""
    sha256: str
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class Version:
    """What `versions/00000001.json` says; nothing of a dataset is visible before it exists."""

    version: int
    digest: str
    """64 hex digits that name the content, see `shards.digest`."""
    bands: tuple[Band, ...]
    dtype: str
    tile_px: int
    num_samples: int
    num_shards: int
    num_scenes: int
    num_rejected: int
    """Scenes, of `num_scenes`."""
    num_bytes: int
    """Of all shards."""
    tables: Mapping[str, tuple[TableFile, ...]]
    series: tuple[str, ...] = ()
    """Modalities, each in shards of its own: the first is that of the rows, the others are their parts. Empty: one."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """How it was made: scenes, configuration, seed, plan, toolchain."""

    def to_json(self) -> bytes:
        """Return the canonical bytes of the version file."""
        return canonical_json({"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}) + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> "Version":
        """Parse a version file.

        Raises:
            ValueError: not a version file, or of a format this code does not know.
        """
        try:
            values = json.loads(data)
            known = values.pop("format"), values.pop("format_version")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a version file: {error!r}") from error
        if known != (FORMAT, FORMAT_VERSION):
            raise ValueError(f"format {known} is not the known {(FORMAT, FORMAT_VERSION)}: update this package")
        try:
            return cls._from_values(values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a damaged version file: {error!r}") from error

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> "Version":
        values["bands"] = tuple(Band(**band) for band in values["bands"])
        values["tables"] = {
            name: tuple(TableFile(**file) for file in files) for name, files in values["tables"].items()
        }
        values["series"] = tuple(values.get("series", ()))
        return cls(**values)


def canonical_json(value: Any) -> bytes:
    """Return the one JSON text of a value: sorted keys, no spaces, ASCII, no NaN.

    Raises:
        ValueError: the value holds NaN or an infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def sha256_hex(data: bytes) -> str:
    """Return the sha256 of bytes as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()
