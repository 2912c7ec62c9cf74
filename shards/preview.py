"""A contact sheet of a dataset: what the tiles look like, at a glance."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.dataset import Dataset
from shards.errors import UserError
from shards.images import Pixels, decode_image
from shards.keyed import permute

_GAP_PX = 4
_RGB = ("red", "green", "blue")


def contact_sheet(dataset: Dataset, num_tiles: int = 48, tile_px: int = 128) -> Image.Image:
    """Return a picture of up to `num_tiles` samples, drawn evenly and always the same ones.

    Multi-band tiles show red, green, blue where they have them, else their first band; types other
    than uint8 are stretched between the 2nd and 98th percentile of each tile.

    Raises:
        CorruptSampleError: a sample is damaged.
        UserError: an image does not decode.
    """
    count = min(num_tiles, dataset.num_samples)
    columns = max(1, math.ceil(math.sqrt(count * 1.5)))
    rows = max(1, math.ceil(count / columns))
    step = tile_px + _GAP_PX
    sheet = Image.new("RGB", (columns * step + _GAP_PX, rows * step + _GAP_PX), (24, 24, 28))
    names = [band.name for band in dataset.bands]
    for place, index in enumerate(permute(np.arange(count), dataset.num_samples, key=0)):
        sample = dataset.read(int(index))
        try:
            pixels = decode_image(sample.ext, sample.image)
        except ValueError as error:
            told = f"{dataset.name(int(index))}, key {sample.key}: {error}"
            raise UserError(f"{told}; `python -m shards select` makes a version without it") from error
        picture = Image.fromarray(displayable(pixels, names)).resize((tile_px, tile_px), Image.Resampling.LANCZOS)
        sheet.paste(picture, (_GAP_PX + place % columns * step, _GAP_PX + place // columns * step))
    return sheet


def displayable(pixels: Pixels, bands: list[str]) -> NDArray[np.uint8]:
    """Return uint8 [height, width, 3] for the eye from a tile [height, width, bands], which may have other bands."""
    has_rgb = set(_RGB) <= set(bands) and pixels.shape[2] == len(bands)
    chosen = [bands.index(name) for name in _RGB] if has_rgb else [0, 0, 0]
    rgb = pixels[:, :, chosen]
    if rgb.dtype == np.uint8:
        return np.ascontiguousarray(rgb, np.uint8)
    low, high = np.nanpercentile(rgb, [2, 98])
    scaled = (rgb.astype(np.float32) - low) * (255 / max(high - low, 1e-6))
    stretched: NDArray[np.uint8] = np.nan_to_num(scaled).clip(0, 255).astype(np.uint8)
    return stretched
