"""What each tile encoding costs and saves: `python -m tests.bench.encode`.

Tiles of 512² × 3 bytes cut from the sample scenes, one core. Prints milliseconds to encode and decode and the
size, each as a ratio to JPEG, from the median of several rounds: the ground for `encoding: auto`.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np

from ingest.landcover import draw_land, draw_look, expose, to_uint8
from shards.images import ENCODINGS, decode_image, encode_image
from shards.keyed import generator

_TILES = 6
_ROUNDS = 5


def main() -> None:
    """Print the table."""
    tiles = [_tile(number) for number in range(_TILES)]
    rows = {}
    for encoding in ENCODINGS:
        encoded = [encode_image(tile, encoding) for tile in tiles]
        encode_ms = _median_ms(lambda encoding=encoding: [encode_image(tile, encoding) for tile in tiles])
        decode_ms = _median_ms(lambda encoded=encoded: [decode_image(*item) for item in encoded])
        rows[encoding] = encode_ms, decode_ms, sum(len(data) for _, data in encoded) / _TILES
    print(f"{'':6}{'encode ms':>12}{'ratio':>7}{'decode ms':>12}{'ratio':>7}{'kB':>8}{'ratio':>7}")
    for encoding, figures in rows.items():
        cells = [
            f"{value / scale:>12.2f}{value / base:>7.1f}"
            for value, base, scale in zip(figures, rows["jpeg"], (1, 1, 1000), strict=True)
        ]
        print(f"{encoding:6}" + "".join(cells))


def _tile(number: int) -> np.ndarray:
    rng = generator("bench", number)
    look = draw_look(1.0, south=False, rng=rng)
    return to_uint8(expose(draw_land((512, 512), look, rng), look, rng)[..., :3])


def _median_ms(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        work()
        times.append((time.perf_counter() - begin) * 1000 / _TILES)
    return statistics.median(times)


if __name__ == "__main__":
    main()
