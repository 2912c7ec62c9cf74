"""Image files to pixels with named bands: Pillow for PNG, JPEG, WebP, BMP; GDAL (rasterio) where the format is geo.

A PNG of 16 bits goes to GDAL, too: of colours Pillow would give 8 of them.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile

from shards.images import decode_image

PLAIN_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
GEO_EXTENSIONS = frozenset({".tif", ".tiff", ".jp2"})
EXTENSIONS = PLAIN_EXTENSIONS | GEO_EXTENSIONS
RGB = ("red", "green", "blue")
_ADDRESS, _MEMORY_FILE = re.compile(r" at 0x[0-9a-fA-F]+"), re.compile(r"/vsimem/[^\s'\"`,;:)]*")
_MAX_TOLD = 400
_PNG_START, _PNG_BITS_AT = b"\x89PNG\r\n\x1a\n", 24  # in its first chunk, which has a fixed form


class UnreadableImageError(ValueError):
    """The bytes of one image cannot be used; the message is the reason."""


@contextlib.contextmanager
def labelled_chips() -> Iterator[None]:
    """Keep rasterio from warning that a chip has no place on Earth; to be entered on the main thread."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def extension(path: str) -> str:
    """Return the lower-case extension of a path, with its dot."""
    return PurePosixPath(path).suffix.lower()


def decode(path: str, data: bytes) -> tuple[NDArray[np.generic], tuple[str, ...]]:
    """Return (pixels [height, width, bands], band names) of an image file's bytes.

    Grey becomes red = green = blue, a palette its colours, an alpha channel is dropped; more bands take the names that
    the file gives them, else those of their colour interpretation, else band_1, band_2, … Floats without data by the
    file's nodata value, mask or alpha are NaN. Pixels of integers that are its nodata value in all bands are 0, as in
    shards of ours.

    Raises:
        UnreadableImageError: damaged, truncated, of another format or of complex numbers.
    """
    try:
        pixels, bands = _decode_geo(data) if needs_gdal(path, data) else _decode_plain(path, data)
    # Pillow raises SyntaxError for some broken PNGs.
    except (OSError, ValueError, SyntaxError, RasterioError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(reason(error)) from error
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2), RGB
    return pixels, bands


def needs_gdal(path: str, data: bytes) -> bool:
    """Say whether GDAL has to read an image file: its format is geo, or it is a PNG of 16 bits."""
    is_wide_png = data.startswith(_PNG_START) and data[_PNG_BITS_AT : _PNG_BITS_AT + 1] == bytes([16])
    return extension(path) in GEO_EXTENSIONS or is_wide_png


def image_size(path: str, data: bytes) -> tuple[int, int] | None:
    """Return height and width that an image file's header states; None where it is damaged."""
    try:
        if extension(path) in GEO_EXTENSIONS:
            with MemoryFile(data) as memory, memory.open() as image:
                return image.height, image.width
        with Image.open(io.BytesIO(data)) as picture:
            return picture.height, picture.width
    except MemoryError:
        raise
    # Pillow's readers pass on whatever damaged bytes lead to.
    except Exception:
        return None


def reason(error: BaseException) -> str:
    """Return what an error says, in one line that is the same in every run: no address, no name of a file in memory."""
    told = _ADDRESS.sub("", " ".join(str(error).split()))
    return _MEMORY_FILE.sub("file", told)[:_MAX_TOLD]


def _decode_plain(path: str, data: bytes) -> tuple[NDArray[np.generic], tuple[str, ...]]:
    pixels = decode_image(extension(path)[1:], data)
    return (pixels if pixels.shape[2] == 1 else pixels[:, :, :3]), RGB


def _decode_geo(data: bytes) -> tuple[NDArray[np.generic], tuple[str, ...]]:
    with MemoryFile(data) as memory, memory.open() as image:
        names = _band_names(image)
        chosen = [index for index, name in enumerate(names) if name != "alpha"]
        pixels = image.read([index + 1 for index in chosen])
        if pixels.dtype.kind == "c":
            raise UnreadableImageError(f"{pixels.dtype}, no measurements that a model takes: write its amplitude")
        if [image.colorinterp[index] for index in chosen] == [ColorInterp.palette]:
            return _colours(image.colormap(chosen[0] + 1), pixels[0]), RGB
        if pixels.dtype.kind == "f":
            # A number that stands for no data would count as a measurement; NaN does not.
            pixels[image.read_masks([index + 1 for index in chosen]) == 0] = np.nan
        elif any(image.nodatavals[index] for index in chosen):
            # So would −9999. Bands may saturate at the value, as at 255: only together are they no data.
            pixels[:, ~image.read_masks([index + 1 for index in chosen]).any(axis=0)] = 0
    return np.moveaxis(pixels, 0, 2), tuple(names[index] for index in chosen)


def _colours(palette: Mapping[int, tuple[int, ...]], indexes: NDArray[np.unsignedinteger]) -> NDArray[np.uint8]:
    """Return the colours [H, W, 3] of a palette's indexes [H, W]; what it lacks is black."""
    table = np.zeros((np.iinfo(indexes.dtype).max + 1, 3), np.uint8)
    for index, colour in palette.items():
        table[index] = colour[:3]
    colours: NDArray[np.uint8] = table[indexes]
    return colours


def _band_names(image: "rasterio.DatasetReader") -> list[str]:
    described = [(text or "").strip().lower() for text in image.descriptions]
    if all(described) and len(set(described)) == len(described):
        return described
    colours = [colour.name for colour in image.colorinterp]
    if not set(RGB) <= set(colours) and image.count in (3, 4):
        return [*RGB, "band_4"][: image.count]
    unique = [colour if colours.count(colour) == 1 else "" for colour in colours]
    plain = {"", "undefined", "gray"}
    return [f"band_{index + 1}" if name in plain else name for index, name in enumerate(unique)]
