"""Tile pixels to bytes and back: JPEG, PNG, WebP for 8-bit RGB or grey, NPY for everything else.

All of them are read by webdataset's and Hugging Face's own decoders. Cost on one core for 512² × 3:
see tests/bench/encode.py.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.int16] | NDArray[np.float32]

ENCODINGS = ("jpeg", "png", "webp", "npy")
_EXTENSIONS = {"jpeg": "jpg", "png": "png", "webp": "webp", "npy": "npy"}


def encode_image(pixels: Pixels, encoding: str, quality: int = 95) -> tuple[str, bytes]:
    """Return (extension, bytes) of an image [height, width, channels].

    Args:
        pixels: jpeg, png and webp take uint8 with 1 or 3 channels; npy takes any type.
        encoding: one of ENCODINGS; png and webp are lossless.
        quality: of jpeg, 1…100; chroma is never subsampled (4:4:4).

    Raises:
        ValueError: the encoding cannot hold such pixels.
    """
    out = io.BytesIO()
    if encoding == "npy":
        np.lib.format.write_array(out, np.ascontiguousarray(pixels), version=(1, 0), allow_pickle=False)
        return "npy", out.getvalue()
    if pixels.dtype != np.uint8 or pixels.shape[2] not in (1, 3):
        raise ValueError(f"{encoding} holds uint8 with 1 or 3 bands, not {pixels.dtype} with {pixels.shape[2]}")
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if encoding == "jpeg":
        image.save(out, "JPEG", quality=quality, subsampling=0)
    elif encoding == "png":
        image.save(out, "PNG", compress_level=1)
    elif encoding == "webp":
        image.save(out, "WEBP", lossless=True, quality=25, method=0)
    else:
        raise ValueError(f"encoding {encoding!r} is none of {', '.join(ENCODINGS)}")
    return _EXTENSIONS[encoding], out.getvalue()


def decode_image(extension: str, data: bytes) -> Pixels:
    """Return the pixels [height, width, channels] of an encoded image.

    Raises:
        ValueError: the bytes are damaged or of an unknown kind.
    """
    if extension == "npy":
        array: Pixels = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        return array
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            plain = image if image.mode in ("L", "RGB", "RGBA", "I;16") else image.convert("RGB")
            pixels = np.asarray(plain)
    # Pillow's PNG reader raises SyntaxError on broken chunks.
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot decode .{extension} image: {error}") from error
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
