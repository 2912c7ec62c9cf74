"""Datasets that are places of samples alone, for tests of orders and plans: nothing can be read from them."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from shards.rows import read_rows

BLOCK = 512


def places_only(sizes: Sequence[int], digest: str, *, per_shard: int = 10**9, gap: Any = 0, local: bool = False) -> Any:
    """Return what a stream asks of a dataset: samples of these sizes one after another, in units of 512 bytes.

    Args:
        sizes: of the samples.
        digest: of the dataset.
        per_shard: samples of a shard.
        gap: units between any two samples, or behind each.
        local: whether the shards lie on a local disk.
    """
    numbers = np.arange(len(sizes))
    columns = {
        "shard": pa.array([f"s{number}" for number in (numbers // per_shard).tolist()]),
        "offset": (np.cumsum(np.add(sizes, gap)) - sizes - gap) * BLOCK,
        "size": np.asarray(sizes, np.int32) * BLOCK,
        "crc32c": numbers.astype(np.uint32),
    }
    names = columns["shard"].unique().to_pylist()
    rows = read_rows([pa.table(columns)], len(sizes), names)
    shards = [SimpleNamespace(local=local) for _ in names]
    return SimpleNamespace(
        url=f"places of {digest}",
        version=SimpleNamespace(version=1),
        digest=digest,
        layout=f"layout of {digest}",
        num_samples=len(sizes),
        rows=rows,
        parts=(),
        shards=shards,
    )
