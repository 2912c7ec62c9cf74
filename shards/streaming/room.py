"""Room on the local disk for what a stream reads ahead: how far ahead, and whether it fits.

Where every shard lies on a local disk nothing is copied and no room is needed.
"""

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np

from shards import storage
from shards.dataset import Dataset
from shards.errors import UserError
from shards.storage.scratch import remove_left_scratch
from shards.streaming.mix import Mixture
from shards.tar import BLOCK

AHEAD_BYTES = 64 * 2**20
"""What a rank reads ahead by default: half a second of a store that gives it 1 Gbit/s."""
STEPS_PER_WORKER = 2
"""That a worker process has under way or ready: one to deliver, one to make."""
_MIN_STEPS, _MAX_STEPS = 2, 64


@dataclass(frozen=True, kw_only=True)
class CacheNeed:
    """The most that caches hold at a time, bytes; all 0 if every shard is on a local disk. See `footprint`."""

    rank_bytes: int
    """In the cache of any rank."""
    node_bytes: int
    """In the caches of the ranks of a node together."""
    first_bytes: int
    """What a rank fetches before it has its first step."""


def default_ahead_steps(datasets: Sequence[Dataset], mixture: Mixture, global_batch: int, world: int) -> int:
    """Return how many steps a rank should read ahead: as many as hold `AHEAD_BYTES`, 2 to 64."""
    means = [mean_bytes(dataset) * weight for dataset, weight in zip(datasets, mixture.weights, strict=True)]
    step_bytes = sum(means) / sum(mixture.weights) * global_batch / world
    return min(max(ceil(AHEAD_BYTES / step_bytes), _MIN_STEPS), _MAX_STEPS)


def mean_bytes(dataset: Dataset) -> float:
    """Return the mean size of a dataset's samples in their shards, bytes."""
    return float(sum(rows.units_P.mean(dtype=np.float64) for rows in (dataset.rows, *dataset.parts))) * BLOCK


def is_remote(dataset: Dataset) -> bool:
    """Say whether any shard of a dataset lies in a store, so that a cache is needed."""
    return not all(shard.local for shard in dataset.shards)


def cache_folder(url: str | None, options: str = "--") -> Path:
    """Return the folder for caches: by default the temporary folder.

    Args:
        url: as chosen; need not be there yet.
        options: what stands before the names of the options in a message.

    Raises:
        UserError: it is in a store.
    """
    if not url:
        return Path(tempfile.gettempdir())
    if not storage.is_local(url):
        raise UserError(f"{options}cache is {url}: a cache has to be on a local disk, give a folder there")
    return storage.local_path(url)


def require_fits(
    need: CacheNeed, *, folder: Path, limit_bytes: int | None = None, node_ranks: int = 1, options: str = "--"
) -> None:
    """Make sure that the caches fit in their limit and on their disk, from which those of killed processes are removed.

    Args:
        need: of the stream.
        folder: of the caches; need not be there yet.
        limit_bytes: of a rank's cache.
        node_ranks: ranks that share the disk of the folder.
        options: what stands before the names of the options in a message.

    Raises:
        UserError: they do not fit, with the numbers.
    """
    smaller = f"lower {options}window, {options}lanes or {options}block_mb"
    if limit_bytes is not None and need.rank_bytes > limit_bytes:
        numbers = f"needs {bytes_text(need.rank_bytes)}, allowed {bytes_text(limit_bytes)}"
        raise UserError(f"the cache of a rank {numbers}: raise {options}cache_gb, or {smaller}")
    with suppress(OSError):  # not there yet, or not to be listed
        remove_left_scratch("stream", folder)
    absolute = folder.absolute()
    free = shutil.disk_usage(next(each for each in (absolute, *absolute.parents) if each.exists())).free
    needed = need.node_bytes if node_ranks > 1 else need.rank_bytes
    if needed > free:
        numbers = f"{node_ranks} ranks need {bytes_text(needed)} in {folder}, {bytes_text(free)} are free"
        raise UserError(f"the caches of {numbers}: free some, give another disk by {options}cache, or {smaller}")


def bytes_text(count: float) -> str:
    """Return a size for people: 3.1 GB."""
    for unit, power in (("TB", 12), ("GB", 9), ("MB", 6)):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
