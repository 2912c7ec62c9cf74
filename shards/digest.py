"""The dataset digest: 64 hex digits that name a dataset's content and nothing else.

It covers the bands and their type, every sample's key and the sha256 of its members (the JSON member holds
all its metadata), and every scene's end state. It does not cover URLs, times, shard boundaries, versions of
tools or plans: a move or a new plan that changes no content changes no digest.

Definition: sha256 over the header line and the sorted sha256 leaves of all sample and scene lines. Sorting
makes it independent of any order; it costs 32 bytes of memory per row and about 3 µs.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

_SAMPLE_COLUMNS = ("key", "member", "member_sha256", "json_sha256")
_SCENE_COLUMNS = ("scene", "path", "state", "reason", "num_tiles")


def content_digest(bands: Sequence[str], dtype: str, samples: Iterable[pa.Table], scenes: Iterable[pa.Table]) -> str:
    """Return the digest of a dataset as 64 hex digits.

    Args:
        bands: names, in order.
        dtype: numpy name of the tiles' type.
        samples: chunks of the samples table, in any order.
        scenes: chunks of the scenes table, in any order.
    """
    leaves = [*_leaves(b"sample", samples, _SAMPLE_COLUMNS), *_leaves(b"scene", scenes, _SCENE_COLUMNS)]
    total = hashlib.sha256(_line([b"dataset", dtype, *bands]))
    # "V32" compares as bytes; sorting 32-byte strings of type S would strip trailing zeros.
    array = np.frombuffer(b"".join(leaves), np.uint8).reshape(-1, 32)
    order = np.lexsort(array.view(">u8").T[::-1])
    total.update(array[order].tobytes())
    return total.hexdigest()


def _leaves(kind: bytes, tables: Iterable[pa.Table], columns: Sequence[str]) -> Iterator[bytes]:
    for table in tables:
        for batch in table.select(list(columns)).to_batches(max_chunksize=65536):
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield hashlib.sha256(_line([kind, *values])).digest()


def _line(values: Iterable[bytes | str | int | None]) -> bytes:
    """Join values so that no two different lists give the same bytes: each with its length, null as -1."""
    parts = []
    for value in values:
        raw = value if isinstance(value, bytes) else str(value).encode()
        parts.append(b"-1;" if value is None else b"%d:%s;" % (len(raw), raw))
    return b"".join(parts)
