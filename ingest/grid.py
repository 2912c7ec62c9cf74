"""The fixed grid of tiles over a scene: pure integer arithmetic."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray


def tile_origins(length: int, tile: int, stride: int, edge: Literal["shift", "drop", "pad"]) -> NDArray[np.int64]:
    """Return where tiles begin along one axis, in pixels, ascending.

    Args:
        length: of the scene along this axis, pixels.
        tile: side of a tile, pixels.
        stride: distance of neighbouring tiles, pixels, at least 1.
        edge: `drop` leaves out tiles that would leave the scene; `shift` adds a last tile that ends at the
            scene's edge (it overlaps its neighbour); `pad` lets the last tile hang over the edge.

    A scene shorter than a tile has no tile, or with `pad` one.
    """
    if edge == "pad":
        return np.arange(int(count_origins(np.array([length]), tile, stride, edge)[0]), dtype=np.int64) * stride
    if length < tile:
        return np.empty(0, np.int64)
    origins = np.arange(0, length - tile + 1, stride, dtype=np.int64)
    last = length - tile
    if edge == "shift" and origins[-1] != last:
        return np.append(origins, last)
    return origins


def count_origins(
    lengths: NDArray[np.int64], tile: int, stride: int, edge: Literal["shift", "drop", "pad"]
) -> NDArray[np.int64]:
    """Return the number of origins for many lengths at once; equals len(tile_origins(...)) for each."""
    beyond = np.maximum(0, lengths - tile)
    if edge == "drop":
        counts = beyond // stride + 1
    else:
        counts = -(-beyond // stride) + 1
    if edge == "pad":
        # With a stride wider than a tile, a further tile may begin beyond the scene.
        counts = np.minimum(counts, -(-lengths // stride))
    else:
        counts[lengths < tile] = 0
    return counts
