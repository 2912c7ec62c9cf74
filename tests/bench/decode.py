"""What a JPEG costs to decode, beside Pillow alone: `python -m tests.bench.decode`.

One core, chips and tiles as the stream's benchmark draws them. `plain` is what evaluation and tools ask for, `padded`
what crops are cut from. All take turns; a figure is the median of them, a ratio that of neighbours in time.
"""

import io
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image

from shards.images import decode_image
from tests.bench.stream_data import IMAGE_SETS, draw_jpegs

_IMAGES, _TURNS, _PIXELS_PER_TURN = 32, 21, 10_000_000


def by_pillow(data: bytes) -> np.ndarray:
    """Decode as most loaders do."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def plain(data: bytes) -> np.ndarray:
    """Decode to pixels that lie together."""
    return decode_image("jpg", data)


def padded(data: bytes) -> np.ndarray:
    """Decode to pixels of four bytes."""
    return decode_image("jpg", data, padded=True)


def main() -> None:
    """Print the table."""
    ways = (by_pillow, plain, padded)
    print(f"{'':16}" + "".join(f"{way.__name__ + ' ms':>14}{'ratio':>8}" for way in ways))
    for images in IMAGE_SETS:
        jpegs = draw_jpegs(replace(images, count=_IMAGES))
        repeats = max(1, _PIXELS_PER_TURN // (_IMAGES * images.side_px**2))
        turns = [[_decode_ms(way, jpegs, repeats) for way in ways] for _ in range(_TURNS)]
        cells = [
            f"{statistics.median(turn[place] for turn in turns):>14.3f}"
            f"{statistics.median(turn[0] / turn[place] for turn in turns):>8.2f}"
            for place in range(len(ways))
        ]
        print(f"{images.name:16}" + "".join(cells), flush=True)


def _decode_ms(way: Callable[[bytes], np.ndarray], jpegs: list[bytes], repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        for jpeg in jpegs:
            way(jpeg)
    return (time.perf_counter() - begin) * 1000 / (repeats * len(jpegs))


if __name__ == "__main__":
    main()
