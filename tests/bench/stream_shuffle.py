"""How well the order shuffles: distinct blocks and scenes in a batch; see `tests.bench.stream`.

Pure: 4 million rows of 53 kB in shards of 2,000. As ingest packs them, scenes are cut into units of few tiles, which
are mixed over all shards: a block is then a random choice, and blocks are what counts. Shards of others often hold one
scene behind the other: scenes of 1 to 400 tiles.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from shards.streaming.order import Order, OrderSettings, cut_blocks, default_lanes
from shards.tar import BLOCK

_ROWS, _SHARD_ROWS, _MEAN_BYTES, _MAX_SCENE = 4_000_000, 2000, 53_000, 400
_BATCHES = 100

Ints = NDArray[np.int64]


def print_tables() -> None:
    """Measure and print, for two global batches."""
    rng = np.random.default_rng(0)
    units_P = rng.integers(_MEAN_BYTES // 2, _MEAN_BYTES * 3 // 2, _ROWS).astype(np.uint32) // BLOCK
    scene_starts = np.cumsum(np.append(0, rng.integers(1, _MAX_SCENE + 1, _ROWS // 100)))
    print(f"\nshuffle: distinct in a batch, mean of {_BATCHES} over an epoch, {_ROWS / 1e6:g} M rows, default settings")
    print(f"{'G':>6}{'lanes':>7}{'':>9}{'blocks':>8}{'uniform':>9}{'ratio':>7}{'scenes':>9}{'uniform':>9}{'ratio':>7}")
    for global_batch in (256, 1024):
        settings = OrderSettings(seed=0, lanes=default_lanes(global_batch))
        blocks = cut_blocks(np.arange(0, _ROWS, _SHARD_ROWS), units_P, settings.block_bytes // BLOCK)
        order = Order(blocks, _ROWS, settings, "bench")
        cells = f"{global_batch:>6}{settings.lanes:>7}{'':>9}"
        for width, starts in ((8, blocks), (9, scene_starts)):
            ours = _mean_distinct(_batches(order, global_batch), starts)
            uniform = _mean_distinct(_uniform_batches(global_batch), starts)
            cells += f"{ours:>{width}.0f}{uniform:>9.0f}{ours / uniform:>7.2f}"
        print(cells, flush=True)


def _batches(order: Order, global_batch: int) -> Iterator[Ints]:
    for first in range(0, _ROWS - global_batch, _ROWS // _BATCHES):
        yield order.locate(np.arange(first, first + global_batch)).rows


def _uniform_batches(global_batch: int) -> Iterator[Ints]:
    rng = np.random.default_rng(1)
    for _ in range(_BATCHES):
        yield rng.choice(_ROWS, global_batch, replace=False)


def _mean_distinct(batches: Iterator[Ints], starts: Ints) -> float:
    """Return how many of the runs that begin at these rows a batch meets, on average."""
    return float(np.mean([len(np.unique(np.searchsorted(starts, rows, "right"))) for rows in batches]))
