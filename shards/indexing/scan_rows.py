"""Scanned samples become rows of the samples table; vectorised, a bounded number of rows at a time.

The image of a sample is a member of its first series. Everything else goes into one hash, `json_sha256`: null where
there is nothing else; the sha256 of the member where it is called json and is the only one; otherwise the sha256 of
these bytes for each of them, in order of their names: `LENGTH:NAME;` (the length that of the name in UTF-8, decimal)
and the 32 bytes of the member's sha256.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shards.schema import SAMPLES

_PART_TYPE = SAMPLES.field("parts").type.value_type


@dataclass(frozen=True, kw_only=True)
class Members:
    """The members of many samples, one behind the other."""

    row_M: NDArray[np.int64]
    """Row of the sample, ascending."""
    names: pa.Array
    offsets: pa.Array
    sizes: pa.Array
    sha256: pa.Array
    num_rows: int

    @classmethod
    def of(cls, lists: pa.ChunkedArray, prefix: str = "") -> "Members":
        """Take the column members of SCANNED; the prefix comes before every name."""
        column = lists.combine_chunks()
        flat = column.flatten()
        names = flat.field("name")
        return cls(
            row_M=pc.list_parent_indices(column).to_numpy(),
            names=pc.binary_join_element_wise(prefix, names, "") if prefix else names,
            offsets=flat.field("offset"),
            sizes=flat.field("size"),
            sha256=flat.field("sha256"),
            num_rows=len(column),
        )

    def named(self, names: Collection[str]) -> NDArray[np.bool_]:
        """Return which members have one of the names: bool [M]."""
        found: NDArray[np.bool_] = pc.is_in(self.names, value_set=pa.array(sorted(names), pa.string())).to_numpy(
            zero_copy_only=False
        )
        return found

    def counts(self, chosen_M: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return how many of the chosen members each sample has: int64 [N]."""
        return np.bincount(self.row_M[chosen_M], minlength=self.num_rows)


def sample_rows(parts: Mapping[str, pa.Table], images: Collection[str], label_series: str | None) -> pa.Table:
    """Return rows of the samples table (SAMPLES), in the order of the scanned samples.

    Args:
        parts: by series, the first one that of the rows: scanned samples with a column shard, the same keys in the
            same order. Names of members begin with that of their series, unless it is the only one.
        images: names of members, of which each sample has exactly one in the first series.
        label_series: the series whose column label becomes that of the row; None: no labels.
    """
    several = len(parts) > 1
    members = [Members.of(table["members"], f"{name}." if several else "") for name, table in parts.items()]
    names = list(parts)
    first = parts[names[0]]
    is_image = members[0].named(images)
    assert (members[0].counts(is_image) == 1).all(), "samples without their one image"
    image = pa.array(np.flatnonzero(is_image))
    values: dict[str, Any] = {name: first[name] for name in ("key", "shard", "offset", "size", "crc32c")}
    values |= {
        "parts": _parts({name: parts[name] for name in names[1:]}) if several else None,
        "member": members[0].names.take(image),
        "member_offset": members[0].offsets.take(image),
        "member_size": members[0].sizes.take(image),
        "member_sha256": members[0].sha256.take(image),
        "json_sha256": _others_sha256(members, is_image),
        "label": parts[label_series]["label"] if label_series is not None else None,
    }
    filled = [values.get(field.name) for field in SAMPLES]
    columns = [
        pa.nulls(first.num_rows, field.type) if value is None else value.cast(field.type)
        for value, field in zip(filled, SAMPLES, strict=True)
    ]
    return pa.table(columns, schema=SAMPLES)


def _parts(others: Mapping[str, pa.Table]) -> pa.Array:
    """Return for each row a list with an element for every other series."""
    num_series = len(others)
    columns: list[list[pa.Array]] = []
    for name, table in others.items():
        series = pa.repeat(pa.scalar(name, pa.string()), table.num_rows)
        columns.append([series, *(table[key].combine_chunks() for key in ("shard", "offset", "size", "crc32c"))])
    num_rows = len(columns[0][0])
    by_row = pa.array(np.arange(num_series * num_rows).reshape(num_series, num_rows).T.ravel())
    fields = [pa.concat_arrays(each).take(by_row) for each in zip(*columns, strict=True)]
    ends = pa.array(np.arange(num_rows + 1, dtype=np.int32) * np.int32(num_series))
    return pa.ListArray.from_arrays(
        ends,
        pa.StructArray.from_arrays(fields, fields=list(_PART_TYPE)),
        type=SAMPLES.field("parts").type,
    )


def _others_sha256(members: Sequence[Members], is_image: NDArray[np.bool_]) -> pa.Array:
    """Return the hash of all members but the image for each sample, see the module: binary(32) [N]."""
    others = pa.array(~is_image)
    row_M = np.concatenate([members[0].row_M[~is_image], *(each.row_M for each in members[1:])])
    names = pa.concat_arrays([members[0].names.filter(others), *(each.names for each in members[1:])])
    sha256 = pa.concat_arrays([members[0].sha256.filter(others), *(each.sha256 for each in members[1:])])
    order = pc.sort_indices(pa.table({"row": row_M, "name": names}), [("row", "ascending"), ("name", "ascending")])
    row_M, names, sha256 = row_M[order.to_numpy()], names.take(order), sha256.take(order)
    counts = np.bincount(row_M, minlength=members[0].num_rows)
    alone = (counts == 1)[row_M] & pc.equal(names, "json").to_numpy(zero_copy_only=False)
    hashes_N = np.zeros((members[0].num_rows, 32), np.uint8)
    hashes_N[row_M[alone]] = _raw(sha256.filter(pa.array(alone)))
    mixed = ~alone
    rows = np.unique(row_M[mixed])
    lines = _lines(names.filter(pa.array(mixed)), sha256.filter(pa.array(mixed)))
    ends = np.concatenate([[0], np.cumsum(counts[rows])]).astype(np.int32)
    texts = pc.binary_join(pa.ListArray.from_arrays(pa.array(ends), lines), b"")
    if len(rows):
        digests = b"".join([hashlib.sha256(text).digest() for text in texts.to_pylist()])
        hashes_N[rows] = np.frombuffer(digests, np.uint8).reshape(-1, 32)
    buffers = [pa.array(counts > 0).buffers()[1], pa.py_buffer(hashes_N)]
    return pa.Array.from_buffers(pa.binary(32), len(counts), buffers)


def _lines(names: pa.Array, sha256: pa.Array) -> pa.Array:
    raw = names.cast(pa.binary())
    length = pc.binary_length(raw).cast(pa.string()).cast(pa.binary())
    return pc.binary_join_element_wise(length, b":", raw, b";", sha256.cast(pa.binary()), b"")


def _raw(hashes: pa.Array) -> NDArray[np.uint8]:
    """Return 32-byte hashes without nulls as uint8 [N, 32]."""
    values = np.frombuffer(hashes.buffers()[1] or b"", np.uint8)
    return values[hashes.offset * 32 : (hashes.offset + len(hashes)) * 32].reshape(-1, 32)
