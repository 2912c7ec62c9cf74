"""What passes over foreign tars find out, as columns: a row per sample, with all its members."""

from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shards.indexing.faults import MAX_TOLD, Faults

SCANNED_MEMBER = pa.struct(
    [
        ("name", pa.string()),  # extension
        ("offset", pa.int64()),  # first byte of the content
        ("size", pa.int32()),
        ("sha256", pa.binary(32)),
    ]
)

SCANNED = pa.schema(
    [
        ("key", pa.string()),
        ("offset", pa.int64()),  # first byte of the sample's first header
        ("size", pa.int32()),  # bytes up to the end of its last member's padding
        ("crc32c", pa.uint32()),  # of these bytes
        ("members", pa.list_(pa.field("element", SCANNED_MEMBER))),
        ("label", pa.string()),  # text of the label member; null: it has none, or one that is no label
        ("label_fault", pa.string()),  # why it is none
    ]
)
"""Columns of what a pass finds out, a row per sample in the tar's order."""

MAX_LABEL = 200
"""Characters of a label."""
MAX_LABEL_BYTES = 4 * MAX_LABEL + 512  # of UTF-8, and some blanks
_ROWS_AT_ONCE = 16384


class ScannedSample:
    """A sample whose members are coming in."""

    def __init__(self, key: str, offset: int) -> None:
        self.key, self.offset = key, offset
        self.end, self.crc32c = offset, 0
        self.members: dict[str, tuple[int, int, bytes]] = {}
        self.label: bytes | None = None


class RowWriter:
    """Samples as columns: a bounded number of them as Python objects."""

    def __init__(self) -> None:
        self._tables = [SCANNED.empty_table()]
        self._waiting: list[ScannedSample] = []

    def add(self, sample: ScannedSample) -> None:
        """Take the next row."""
        self._waiting.append(sample)
        if len(self._waiting) >= _ROWS_AT_ONCE:
            self._flush()

    def table(self) -> pa.Table:
        """Return all rows (SCANNED)."""
        self._flush()
        return pa.concat_tables(self._tables).combine_chunks()

    def _flush(self) -> None:
        samples, self._waiting = self._waiting, []
        labels = [(None, None) if each.label is None else read_label(each.label) for each in samples]
        columns: list[Any] = [
            [sample.key for sample in samples],
            [sample.offset for sample in samples],
            [sample.end - sample.offset for sample in samples],
            [sample.crc32c for sample in samples],
            _member_lists(samples),
            [text for text, _ in labels],
            [fault for _, fault in labels],
        ]
        arrays = [
            column if isinstance(column, pa.Array) else pa.array(column, field.type)
            for column, field in zip(columns, SCANNED, strict=True)
        ]
        self._tables.append(pa.table(arrays, schema=SCANNED))


def _member_lists(samples: list[ScannedSample]) -> pa.Array:
    """Return the members as lists of structs, made from whole columns."""
    names = [name for sample in samples for name in sample.members]
    places = [place for sample in samples for place in sample.members.values()]
    columns = [names, *([place[field] for place in places] for field in range(3))]
    fields = [pa.array(column, field.type) for column, field in zip(columns, SCANNED_MEMBER, strict=True)]
    ends = pa.array(list(accumulate((len(sample.members) for sample in samples), initial=0)), pa.int32())
    return pa.ListArray.from_arrays(
        ends, pa.StructArray.from_arrays(fields, fields=list(SCANNED_MEMBER)), type=SCANNED.field("members").type
    )


def read_label(content: bytes) -> tuple[str | None, str | None]:
    """Return (text, None), or (None, why the content is no label)."""
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        return None, "is not UTF-8"
    if not 0 < len(text) <= MAX_LABEL or len(content) > MAX_LABEL_BYTES:
        return None, f"is empty or longer than {MAX_LABEL} characters"
    return text, None


def find_repeated(keys: pa.ChunkedArray, members: pa.ChunkedArray, faults: Faults) -> None:
    """Tell keys that come more than once: halves of a sample, or two samples."""
    counts = pc.value_counts(keys)
    again = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    for key in again.slice(0, MAX_TOLD).to_pylist():
        found = members.filter(pc.equal(keys, key)).to_pylist()
        names = [member["name"] for each in found for member in each]
        if len(names) == len(set(names)):
            faults.add(f"the members of sample {key!r} do not stand together: sort the files by name before packing")
        else:
            faults.add(f"{len(found)} samples have the key {key!r}")
    faults.add_many([], max(0, len(again) - MAX_TOLD))
