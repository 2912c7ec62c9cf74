"""Image files to pixels with named bands: Pillow for PNG, JPEG, WebP, BMP; GDAL (rasterio) where the format is geo."""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile

from shards.images import decode_image

PLAIN_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
GEO_EXTENSIONS = frozenset({".tif", ".tiff", ".jp2"})
EXTENSIONS = PLAIN_EXTENSIONS | GEO_EXTENSIONS
RGB = ("red", "green", "blue")
_ADDRESS, _MEMORY_FILE = re.compile(r" at 0x[0-9a-fA-F]+"), re.compile(r"/vsimem/[^\s'\"`,;:)]*")
_MAX_TOLD = 400


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

    Grey becomes red = green = blue, an alpha channel is dropped; more bands take the names that the file gives them,
    else those of their colour interpretation, else band_1, band_2, …

    Raises:
        UnreadableImageError: damaged, truncated or of another format.
    """
    try:
        pixels, bands = _decode_geo(data) if extension(path) in GEO_EXTENSIONS else _decode_plain(path, data)
    # Pillow raises SyntaxError for some broken PNGs.
    except (OSError, ValueError, SyntaxError, RasterioError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(reason(error)) from error
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2), RGB
    return pixels, bands


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
    return np.moveaxis(pixels, 0, 2), tuple(names[index] for index in chosen)


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
