"""The order of samples: a pure function of (seed, epoch, dataset digest), never of ranks or workers.

The stream is an endless sequence of positions 0, 1, 2, …; epoch e holds the positions [eN, (e+1)N), and
inside an epoch a keyed permutation says which sample stands where. So every sample comes exactly once per
epoch, and the whole state of a stream is one number: how many samples were consumed.
"""

import numpy as np
from numpy.typing import NDArray

from shards.keyed import hash64, permute


def locate(
    positions: NDArray[np.int64], num_samples: int, seed: int, digest: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (epochs, sample indices), int64 arrays like `positions`.

    Args:
        positions: int64 array of any shape, values ≥ 0.
        num_samples: N, samples in the dataset, at least 1.
        seed: another seed gives another order.
        digest: the dataset's digest, so that other data do not inherit an order by accident.
    """
    positions = np.asarray(positions, np.int64)
    epochs, places = np.divmod(positions, num_samples)
    indices = np.empty_like(places)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = permute(places[here], num_samples, hash64("order", seed, int(epoch), digest))
    return epochs, indices


def rank_positions(step: int, global_batch: int, rank: int, world: int, start: int = 0) -> NDArray[np.int64]:
    """Return the positions that a rank takes at a step: an equal cut of the global batch, int64 [G / world].

    Args:
        step: counts from 0.
        global_batch: G; global batch k holds the positions [start + kG, start + (k+1)G).
        rank: in [0, world).
        world: number of ranks; divides G.
        start: samples consumed before step 0.

    Raises:
        ValueError: the number of ranks does not divide the global batch.
    """
    if global_batch % world:
        raise ValueError(f"global batch {global_batch} is not divisible by {world} ranks")
    share = global_batch // world
    first = start + step * global_batch + rank * share
    return np.arange(first, first + share, dtype=np.int64)
