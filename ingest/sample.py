"""Sample scenes: small georeferenced GeoTIFFs that look like land from above, and labelled chips of the same land.

Chips come from the same textures as the scenes (`landcover`) under other looks and keys: no pixel of a scene is in
a chip. Every draw is keyed by (seed, scene or chip).

Cost: about 15 s of one core and 36 MB for 19 rasters and 560 chips.
"""

import io
import math
from dataclasses import dataclass

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from ingest.landcover import CLASSES, Look, Random, Shape, draw_chip, draw_land, draw_look, expose, to_uint8, to_uint16
from shards.keyed import generator
from shards.storage import exists, join, read_bytes, user_errors, write_bytes

CHIPS_PER_CLASS = 80


@dataclass(frozen=True, kw_only=True)
class SceneSpec:
    """Name, place and layout of one sample scene."""

    name: str
    epsg: int
    """UTM zone."""
    origin_m: tuple[int, int]
    """Easting and northing of the top left corner, metres."""
    gsd_m: float
    side_px: int
    layout: str
    """reflectance: uint16 blue, green, red, nir; alpha: uint8 RGBA; all others uint8 RGB: tiled, striped, swath (a
    turned footprint), and, of no use to anybody, empty, truncated, damaged."""


@dataclass(frozen=True, kw_only=True)
class SampleSummary:
    """What `write_sample` made and where."""

    scenes: str
    chips: str
    num_scenes: int
    """Readable scenes with land in them."""
    num_unusable: int
    """Empty, truncated and damaged rasters, put there on purpose."""
    num_chips: int
    classes: tuple[str, ...]


SCENES = tuple(
    SceneSpec(name=name, epsg=epsg, origin_m=origin_m, gsd_m=gsd_m, side_px=side_px, layout=layout)
    for name, epsg, origin_m, gsd_m, side_px, layout in (
        ("bohemia_a", 32633, (455_000, 5_548_000), 1.0, 768, "tiled"),
        ("bohemia_b", 32633, (459_300, 5_548_000), 1.0, 768, "tiled"),
        ("bohemia_c", 32633, (471_200, 5_530_400), 0.5, 1024, "tiled"),
        ("bohemia_d", 32633, (402_000, 5_571_000), 10.0, 768, "reflectance"),
        ("sacramento_a", 32610, (612_300, 4_266_500), 0.6, 960, "tiled"),
        ("sacramento_b", 32610, (640_120, 4_250_080), 2.5, 768, "striped"),
        ("sacramento_c", 32610, (598_000, 4_301_000), 3.0, 768, "reflectance"),
        ("sacramento_d", 32610, (655_000, 4_231_000), 1.0, 768, "alpha"),
        ("lima_a", 32718, (283_000, 8_661_000), 1.5, 768, "tiled"),
        ("lima_b", 32718, (301_500, 8_640_500), 0.8, 900, "striped"),
        ("lima_c", 32718, (264_000, 8_702_000), 5.0, 768, "reflectance"),
        ("victoria_a", 32755, (331_200, 5_810_400), 0.5, 1024, "tiled"),
        ("victoria_b", 32755, (352_800, 5_795_100), 2.0, 1024, "swath"),
        ("victoria_c", 32755, (310_000, 5_842_000), 1.2, 768, "tiled"),
        ("victoria_d", 32755, (290_000, 5_866_000), 10.0, 768, "reflectance"),
        ("nairobi_a", 32737, (254_000, 9_858_000), 0.7, 900, "tiled"),
        ("nairobi_empty", 32737, (262_000, 9_851_000), 1.0, 512, "empty"),
        ("nairobi_truncated", 32737, (263_000, 9_851_000), 1.0, 512, "truncated"),
        ("nairobi_damaged", 32737, (264_000, 9_851_000), 1.0, 512, "damaged"),
    )
)
UNUSABLE = ("empty", "truncated", "damaged")


def footprint(shape: Shape, angle: float) -> NDArray[np.bool_]:
    """Return where a sensor's swath, turned by `angle` against the grid, has data: bool [H, W]."""
    y, x = np.mgrid[: shape[0], : shape[1]] - (np.reshape(shape, (2, 1, 1)) - 1) / 2
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    return np.asarray((abs(across) < 0.4 * shape[0]) & (abs(along) < 0.52 * shape[1]))


def scene_bytes(spec: SceneSpec, seed: int) -> bytes:
    """Draw one scene and encode it as GeoTIFF; the same spec and seed give the same bytes."""
    look = draw_look(spec.gsd_m, spec.epsg // 100 == 327, generator(seed, "sample", spec.name, "look"))
    data = encode_geotiff(draw_scene(spec, look, generator(seed, "sample", spec.name, "land")), spec, look)
    if spec.layout == "truncated":  # as by a broken transfer: the header is whole, pixels are missing
        return data[: len(data) // 3]
    return bytes(16) + data[16:] if spec.layout == "damaged" else data


def draw_scene(spec: SceneSpec, look: Look, rng: Random) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Draw the pixels of a scene [H, W, C] in the type and band order of its layout; 0 is nodata."""
    shape = (spec.side_px, spec.side_px)
    if spec.layout == "empty":
        return np.zeros((*shape, 3), np.uint8)
    seen = expose(draw_land(shape, look, rng), look, rng)
    if spec.layout == "reflectance":
        return to_uint16(seen[..., [2, 1, 0, 3]])
    pixels = to_uint8(seen[..., :3])
    if spec.layout not in ("swath", "alpha"):
        return pixels
    valid = footprint(shape, rng.uniform(0.15, 0.35)).astype(np.uint8)[..., None]
    return np.dstack([pixels * valid, 255 * valid]) if spec.layout == "alpha" else pixels * valid


def encode_geotiff(pixels: NDArray[np.uint8] | NDArray[np.uint16], spec: SceneSpec, look: Look) -> bytes:
    """Encode [H, W, C] as a DEFLATE GeoTIFF with CRS, transform, band names and acquisition time.

    Nodata is 0, except where an alpha band says what is valid.
    """
    names = ["blue", "green", "red", "nir"] if spec.layout == "reflectance" else ["red", "green", "blue", "alpha"]
    height, width, count = pixels.shape
    blocks = {} if spec.layout == "striped" else {"tiled": True, "blockxsize": 256, "blockysize": 256}
    # GDAL_PAM_ENABLED: metadata go into the file, never beside it.
    with rasterio.Env(GDAL_PAM_ENABLED=False, GDAL_NUM_THREADS=1), MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            height=height,
            width=width,
            count=count,
            dtype=pixels.dtype.name,
            crs=f"EPSG:{spec.epsg}",
            transform=Affine(spec.gsd_m, 0.0, spec.origin_m[0], 0.0, -spec.gsd_m, spec.origin_m[1]),
            nodata=None if spec.layout == "alpha" else 0,
            photometric="minisblack" if spec.layout == "reflectance" else "rgb",
            compress="deflate",
            predictor=2,
            **blocks,
        ) as raster:
            raster.colorinterp = [ColorInterp[name] for name in names[:count]]
            raster.descriptions = names[:count]
            raster.update_tags(TIFFTAG_DATETIME=f"2023:{look.month:02d}:15 10:30:00")
            raster.write(np.moveaxis(pixels, -1, 0))
        return bytes(memory.read())


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode uint8 [H, W, 3] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _write(url: str, data: bytes) -> None:
    """Write a file unless it is there with this content: its time stays, and ingest knows it again."""
    if not exists(url) or read_bytes(url) != data:
        write_bytes(url, data)


def write_sample(out: str, seed: int = 0) -> SampleSummary:
    """Write scenes/*.tif, a stray scenes/README.txt and chips/CLASS/NNNN.png under `out`.

    Args:
        out: folder or URL; files of the same name are replaced.
        seed: another seed draws other land at the same places.

    Raises:
        UserError: `out` cannot be written.
    """
    scenes, chips = join(out, "scenes"), join(out, "chips")
    with user_errors(out):
        for spec in SCENES:
            _write(join(scenes, f"{spec.name}.tif"), scene_bytes(spec, seed))
        _write(join(scenes, "README.txt"), b"Synthetic land, drawn by `python -m ingest sample`: no real place.\n")
        for name in CLASSES:
            for number in range(CHIPS_PER_CLASS):
                _write(join(chips, name, f"{number:04d}.png"), encode_png(draw_chip(name, seed, number)))
    num_unusable = sum(spec.layout in UNUSABLE for spec in SCENES)
    return SampleSummary(
        scenes=scenes,
        chips=chips,
        num_scenes=len(SCENES) - num_unusable,
        num_unusable=num_unusable,
        num_chips=len(CLASSES) * CHIPS_PER_CLASS,
        classes=CLASSES,
    )
