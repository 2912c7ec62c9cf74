"""Tile pixels to bytes and back: JPEG, PNG, WebP for 8-bit RGB or grey, NPY for everything else.

All of them are read by webdataset's and Hugging Face's own decoders. Cost on one core for 512² × 3:
see tests/bench/encode.py.

JPEG is decoded by libjpeg-turbo, which Pillow has inside it, too: called without Pillow it gives the same pixels in
less time (tests/bench/decode.py). What it has a complaint about goes to Pillow, whose word counts.
"""

import io
import math
import re
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.int16] | NDArray[np.float32]

ENCODINGS = ("jpeg", "png", "webp", "npy")
# Turned into 8 bits, their values would be lost without a word.
_WIDER_MODES = ("I", "I;16B", "I;16L", "I;16N")
_EXACT_MODES = ("L", "RGB", "RGBA", "I;16", "F")
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_NPY_HEADER_BYTES = 2**16 + 10  # more than numpy takes
_TOLD_CHARS = 200  # of what numpy and Pillow say: it may quote the damaged bytes
_TIFF_BITS = 258
_JPEG_START = b"\xff\xd8"
_EXTENSIONS = {"jpeg": "jpg", "png": "png", "webp": "webp", "npy": "npy"}


def encode_image(
    pixels: Pixels, encoding: str, quality: int = 95, picture: Image.Image | None = None
) -> tuple[str, bytes]:
    """Return (extension, bytes) of an image [height, width, channels].

    Args:
        pixels: jpeg, png and webp take uint8 with 1 or 3 channels; npy takes any type.
        encoding: one of ENCODINGS; png and webp are lossless.
        quality: of jpeg, 1…100; chroma is never subsampled (4:4:4).
        picture: what `to_picture` made of the pixels, where it was needed before.

    Raises:
        ValueError: the encoding cannot hold such pixels.
    """
    out = io.BytesIO()
    if encoding == "npy":
        array = pixels if pixels.flags.c_contiguous else interleave(pixels.transpose(2, 0, 1))
        np.lib.format.write_array(out, array, version=(1, 0), allow_pickle=False)
        return "npy", out.getvalue()
    if not is_picture(pixels):
        raise ValueError(f"{encoding} holds uint8 with 1 or 3 bands, not {pixels.dtype} with {pixels.shape[2]}")
    image = picture or to_picture(pixels)
    if encoding == "jpeg":
        image.save(out, "JPEG", quality=quality, subsampling=0)
    elif encoding == "png":
        image.save(out, "PNG", compress_level=1)
    elif encoding == "webp":
        image.save(out, "WEBP", lossless=True, quality=25, method=0)
    else:
        raise ValueError(f"encoding {encoding!r} is none of {', '.join(ENCODINGS)}")
    return _EXTENSIONS[encoding], out.getvalue()


def is_picture(pixels: Pixels) -> bool:
    """Say whether Pillow can hold the pixels: uint8 with 1 or 3 channels."""
    return pixels.dtype == np.uint8 and pixels.shape[2] in (1, 3)


def to_picture(pixels: Pixels) -> Image.Image:
    """Return Pillow's image of uint8 pixels [height, width, 1 or 3]; planes that lie together cost least."""
    planes_CHW = pixels.transpose(2, 0, 1)
    if len(planes_CHW) == 1:
        return Image.fromarray(planes_CHW[0])
    if planes_CHW.flags.c_contiguous:
        # Pillow joins planes four times as fast as numpy interleaves them.
        return Image.merge("RGB", [Image.fromarray(plane) for plane in planes_CHW])
    return Image.fromarray(pixels)


def interleave(strip_CHW: NDArray[Any]) -> NDArray[Any]:
    """Return a contiguous copy [H, W, C] of [C, H, W]; band by band, much cheaper than numpy's own transposing."""
    out = np.empty((*strip_CHW.shape[1:], len(strip_CHW)), strip_CHW.dtype)
    for band, values in enumerate(strip_CHW):
        out[:, :, band] = values
    return out


def decode_image(
    extension: str, data: bytes | memoryview, *, padded: bool = False, out: NDArray[Any] | None = None
) -> Pixels:
    """Return the pixels [height, width, channels] of an encoded image; perhaps read-only.

    Args:
        extension: jpg, png, …, without a point.
        data: the file.
        padded: give three bands of 8 bits as a view of four bytes a pixel, as crops are best cut from; else, and
            whatever else there is, in one piece.
        out: where the pixels are to lie; it is returned if the image has its shape and type. What it holds is not
            defined otherwise, nor after an error. A JPEG is decoded to where it is, if in one piece and not padded.

    Raises:
        ValueError: the bytes are damaged or of an unknown kind, or hold no image of one or more bands of numbers.
        MemoryError: the machine has no room for a picture; that says nothing about the bytes.
    """
    if extension == "npy":
        pixels = _read_npy(data)
    else:
        found = _read_jpeg(data, padded, out) if data[:2] == _JPEG_START else None
        pixels = _read_picture(extension, data, padded) if found is None else found
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if out is None or not _fits(out, pixels.shape, pixels.dtype):
        return pixels
    if not np.may_share_memory(pixels, out):
        out[...] = pixels
    return out


def _fits(out: NDArray[Any], shape: tuple[int, ...], dtype: Any) -> bool:
    return out.shape == shape and out.dtype == dtype


def _read_npy(data: bytes | memoryview) -> NDArray[Any]:
    """Return the array of an NPY file, in this machine's byte order; memory is taken only for values that are there."""
    file = io.BytesIO(data[:_NPY_HEADER_BYTES])
    try:
        shape, is_fortran, dtype = _NPY_HEADERS[np.lib.format.read_magic(file)](file)
    except KeyError as error:
        raise ValueError(f"cannot decode .npy image: version {error} of the format is unknown") from error
    # numpy reads the header as Python's source: what is wrong with it has many names, TokenError or MemoryError too.
    except Exception as error:
        raise ValueError(f"cannot decode .npy image: {_one_line(error)}") from error
    if dtype.kind not in "biuf":
        raise ValueError(f"cannot decode .npy image: it holds {_one_line(dtype)}, not numbers")
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"shape {_one_line(shape)} is not [height, width, bands]")
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes > len(data) - file.tell():
        raise ValueError(f"cannot decode .npy image: {num_bytes} bytes announced, {len(data) - file.tell()} are there")
    values = np.frombuffer(data, dtype, math.prod(shape), file.tell())
    return values.reshape(shape, order="F" if is_fortran else "C").astype(dtype.newbyteorder("="))


def _read_jpeg(data: bytes | memoryview, padded: bool, out: NDArray[Any] | None) -> NDArray[np.uint8] | None:
    """Return what Pillow would make of a JPEG of one or three bands; None where Pillow is to say what it is."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        form = {"Gray": "GRAY", "YCbCr": "RGBX" if padded else "RGB", "RGB": "RGBX" if padded else "RGB"}.get(colours)
        if form is None or int(height) * int(width) > (Image.MAX_IMAGE_PIXELS or math.inf):
            return None
        shape, place = (int(height), int(width), 1 if form == "GRAY" else 3), None
        if out is not None and out.flags.c_contiguous and not padded and _fits(out, shape, np.uint8):
            place = out
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, form, fastdct=False, fastupsample=False, buffer=place)
    except ValueError:
        return None
    return pixels[:, :, :3]


def _read_picture(extension: str, data: bytes | memoryview, padded: bool) -> NDArray[Any]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            is_halved = _is_halved(image)
            image.load()
            mode = image.mode
            plain = image if mode in (*_EXACT_MODES, *_WIDER_MODES) else image.convert("RGB")
            pixels = _in_place(plain) if padded and plain.mode == "RGB" else np.asarray(plain)
    except MemoryError:
        raise
    # Pillow's readers pass on whatever damaged bytes lead to: struct.error, SyntaxError, IndexError, …
    except Exception as error:
        raise ValueError(f"cannot decode .{extension} image: {_one_line(error)}") from error
    if mode in _WIDER_MODES or is_halved:
        told = f"{mode} and 16 bits" if is_halved else mode
        raise ValueError(f"a .{extension} image of mode {told} has no exact form here: store it as .npy")
    return pixels


def _is_halved(image: Image.Image) -> bool:
    """Say whether Pillow gives 8 of the 16 bits of an image that it has not loaded yet, as it does of colours."""
    if image.mode.startswith(("I", "F")):
        return False
    is_stated = any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))
    # The tiles of a TIFF whose bands lie in planes do not state it.
    return is_stated or 16 in getattr(image, "tag_v2", {}).get(_TIFF_BITS, ())


def _in_place(image: Image.Image) -> NDArray[np.uint8]:
    """Return a picture of three bands as Pillow holds it, four bytes a pixel: a copy would cost a tenth of decoding."""
    # Here and not above: who only encodes does without Arrow, whose libraries are large.
    import pyarrow as pa

    try:
        flat = pa.array(image).flatten().to_numpy(zero_copy_only=True)
    except ValueError:  # above 16 MiB Pillow keeps it in several blocks
        return np.asarray(image)
    pixels: NDArray[np.uint8] = flat.reshape(image.height, image.width, 4)[:, :, :3]
    return pixels


def _one_line(told: object) -> str:
    # Pillow names the file in memory by its address, which is another one in every run.
    return re.sub(r" ?<_io\.BytesIO object at 0x[0-9a-f]+>", "", " ".join(str(told).split()))[:_TOLD_CHARS]
