"""The dataset digest: 64 hex digits that name a dataset's content and nothing else.

It covers the bands and their type, every sample's key and the sha256 of its members (the JSON member holds
all its metadata), and every scene's end state. It does not cover URLs, times, shard boundaries, versions of
tools or plans: a move or a new plan that changes no content changes no digest.

Definition: sha256 over the header line and the sorted sha256 leaves of all sample and scene lines. Sorting
makes it independent of any order.

Cost, measured with 2 and 4 million rows on one core: 32 bytes of memory per row and 5 to 15 MB in all, besides the
table that is being read (50 million tiles: 1.6 GB); 2 µs per row.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_SAMPLE_COLUMNS = ("key", "member", "member_sha256", "json_sha256")
_SCENE_COLUMNS = ("scene", "path", "state", "reason", "num_tiles")
_LEAF_BYTES = 32
# Rows whose lines are Python objects at one time: 5 MB.
_ROWS_AT_ONCE = 16384
# Leaves that are spread over the buckets at one time: 2 MiB, 8 kB for each.
_LEAVES_WAITING = 65536


def content_digest(bands: Sequence[str], dtype: str, samples: Iterable[pa.Table], scenes: Iterable[pa.Table]) -> str:
    """Return the digest of a dataset as 64 hex digits.

    Args:
        bands: names, in order.
        dtype: numpy name of the tiles' type.
        samples: chunks of the samples table, in any order.
        scenes: chunks of the scenes table, in any order.
    """
    leaves = _Leaves()
    for kind, tables, columns in (("sample", samples, _SAMPLE_COLUMNS), ("scene", scenes, _SCENE_COLUMNS)):
        for table in tables:
            for batch in table.select(list(columns)).to_batches(max_chunksize=_ROWS_AT_ONCE):
                leaves.add(_hashed(_lines(kind, batch)))
    total = hashlib.sha256(b"".join(map(_field, ["dataset", dtype, *bands])))
    for part in leaves.drain():
        total.update(part)
    return total.hexdigest()


class _Leaves:
    """Leaves in 256 buckets by their first byte: sorting needs a copy of one bucket, not of all.

    Leaves are hashes, so the buckets are about equal. A bucket is a list of pieces of about 8 kB: one buffer that
    grows would leave holes in memory (measured: 45 bytes per leaf instead of 34).
    """

    def __init__(self) -> None:
        self._buckets: list[list[bytes]] = [[] for _ in range(256)]
        self._waiting: list[bytes] = []
        self._num_waiting = 0

    def add(self, leaves: bytes) -> None:
        """Take leaves, one behind the other."""
        self._waiting.append(leaves)
        self._num_waiting += len(leaves) // _LEAF_BYTES
        if self._num_waiting >= _LEAVES_WAITING:
            self._spread()

    def _spread(self) -> None:
        leaves_N32 = _as_leaves(b"".join(self._waiting))
        first_N = leaves_N32[:, 0]
        ends = np.cumsum(np.bincount(first_N, minlength=256)) * _LEAF_BYTES
        ordered = leaves_N32[np.argsort(first_N, kind="stable")].tobytes()
        for bucket, start, end in zip(self._buckets, [0, *ends.tolist()], ends.tolist(), strict=False):
            if end > start:
                bucket.append(ordered[start:end])
        self._waiting, self._num_waiting = [], 0

    def drain(self) -> Iterator[bytes]:
        """Yield all leaves in ascending order, one bucket at a time, and forget them."""
        self._spread()
        for bucket in self._buckets:
            leaves_N32 = _as_leaves(b"".join(bucket))
            bucket.clear()
            # As four big-endian numbers: sorting strings of type S would strip trailing zeros.
            yield leaves_N32[np.lexsort(leaves_N32.view(">u8").T[::-1])].tobytes()


def _as_leaves(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8).reshape(-1, _LEAF_BYTES)


def _hashed(lines: pa.Array) -> bytes:
    return b"".join([hashlib.sha256(line).digest() for line in lines.to_pylist()])


def _lines(kind: str, batch: pa.RecordBatch) -> pa.Array:
    """Return the line of each row, binary [N]."""
    fields = [pa.scalar(_field(kind), pa.binary()), *map(_fields, batch.columns)]
    return pc.binary_join_element_wise(*fields, b"")


def _fields(column: pa.Array) -> pa.Array:
    """Return each value so that no two different lists give the same bytes: with its length, null as -1."""
    if pa.types.is_fixed_size_binary(column.type):
        # Of these rows alone: a slice's cast takes time for all rows that lie before it.
        column = column.take(pa.array(np.arange(len(column))))
    elif not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        column = column.cast(pa.string())
    raw = column.cast(pa.binary())
    length = pc.binary_length(raw).cast(pa.string()).cast(pa.binary())
    return pc.coalesce(pc.binary_join_element_wise(length, b":", raw, b";", b""), pa.scalar(b"-1;", pa.binary()))


def _field(value: str) -> bytes:
    raw = value.encode()
    return b"%d:%s;" % (len(raw), raw)
