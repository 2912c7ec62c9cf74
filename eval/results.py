"""Results: one row per (model, data set, protocol, features), appended as each protocol is done.

The table is a Parquet file that is replaced as a whole, atomically, at each append: a killed evaluation leaves all
protocols that were done, and the same command goes on from there. Rows carry their evidence, so that models can be
compared image by image without computing anything again. Cost: 8 bytes per test image and row before compression,
4 bytes per image and pair of classes where pixels have classes.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from eval.statistics import Evidence
from shards import storage
from shards.errors import UserError

_FORMAT = b"pera-eval-results 5"  # another one where images are decoded otherwise: rows do not say how they were
_SCHEMA = pa.schema(
    [
        ("task", pa.string()), ("data", pa.string()), ("data_digest", pa.string()), ("split_digest", pa.string()),
        ("model", pa.string()), ("model_digest", pa.string()), ("normalisation", pa.string()), ("run", pa.string()),
        ("step", pa.int64()), ("samples_seen", pa.int64()), ("protocol", pa.string()), ("features", pa.string()),
        ("metric", pa.string()), ("value", pa.float64()), ("low", pa.float64()), ("high", pa.float64()),
        ("num_train", pa.int64()), ("num_test", pa.int64()), ("num_draws", pa.int64()), ("seed", pa.int64()),
        ("seconds", pa.float64()), ("detail", pa.string()), ("predictions", pa.list_(pa.int32())),
        ("evidence", pa.binary()),
    ],
    metadata={b"format": _FORMAT},
)  # fmt: skip
_HEAVY = ("predictions", "evidence")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure and what it stands for."""

    task: str
    data: str
    data_digest: str
    split_digest: str
    model: str
    model_digest: str
    """Of all that its features depend on, the normalisation included."""
    normalisation: str
    """By the figures of the model or of the dataset, or none."""
    run: str | None = None
    """URL of the run that exported the model, as it was given; None where the model has none."""
    step: int | None
    """Optimiser step of an export; `samples_seen` alike. None where the model has none."""
    samples_seen: int | None
    protocol: str
    features: str
    metric: str
    value: float
    """0…1; `low` and `high` are the ends of its 95 % bootstrap interval."""
    low: float
    high: float
    num_train: int
    num_test: int
    num_draws: int
    seed: int
    seconds: float
    """Time of the protocol without the extraction of features."""
    detail: dict[str, Any]
    """What else the protocol tells, JSON; `validation` is the metric on the validation part, or None."""
    predictions: NDArray[np.int64] | None
    """Class of each test image, in the order of the data set's ids; None where an image has not one class."""
    evidence: Evidence
    """What the metric was made of, test image by test image."""

    @property
    def key(self) -> tuple[Any, ...]:
        """Return what the row depends on: equal keys, equal figures."""
        return (self.data, self.data_digest, self.split_digest, self.model, self.model_digest, self.normalisation,
                self.protocol, self.features, self.num_draws, self.seed)  # fmt: skip

    def figures(self) -> dict[str, Any]:
        """Return everything but predictions and evidence, JSON-able."""
        return {name: getattr(self, name) for name in _SCHEMA.names if name not in _HEAVY}


class Results:
    """The rows in OUT/results.parquet."""

    def __init__(self, out: str) -> None:
        self._url = storage.join(out, "results.parquet")
        self._rows = {row.key: row for row in _read(self._url)} if storage.exists(self._url) else {}

    def get(self, key: tuple[Any, ...]) -> Row | None:
        """Return the row of a key, None if it is not there yet."""
        return self._rows.get(key)

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows, or replace those with their keys, and store the table: all of them or none."""
        self._rows |= {row.key: row for row in rows}
        out = io.BytesIO()
        table = pa.Table.from_pylist([_record(row) for row in self._rows.values()], _SCHEMA)
        pq.write_table(table, out, compression="zstd")
        storage.write_bytes(self._url, out.getvalue())


def _record(row: Row) -> dict[str, Any]:
    return row.figures() | {
        "detail": json.dumps(row.detail),
        "predictions": None if row.predictions is None else row.predictions.astype(np.int32),
        "evidence": encode_evidence(row.evidence),
    }


def encode_evidence(evidence: Evidence) -> bytes:
    """Return the units as a .npy file, and one of the places after it where there are some.

    Counts are uint32, which a mask of 4·10⁹ pixels would need.
    """
    units, out = evidence.units, io.BytesIO()
    np.save(out, units.astype(np.uint32) if units.ndim == 3 else units, allow_pickle=False)
    if evidence.places is not None:
        np.save(out, evidence.places, allow_pickle=False)
    return out.getvalue()


def decode_evidence(metric: str, data: bytes) -> Evidence:
    """Return the evidence of `encode_evidence`'s bytes.

    Raises:
        ValueError: the bytes are no .npy file.
    """
    file = io.BytesIO(data)
    units = np.load(file, allow_pickle=False)
    places = np.load(file, allow_pickle=False) if file.tell() < len(data) else None
    return Evidence(metric=metric, units=units.astype(np.int64) if units.ndim == 3 else units, places=places)


def _read(url: str) -> list[Row]:
    try:
        table = pq.read_table(io.BytesIO(storage.read_bytes(url)), use_threads=False)
    except pa.ArrowInvalid as error:
        raise UserError(f"{url} is damaged ({error}): remove it, or choose another --out") from error
    if not table.schema.equals(_SCHEMA) or (table.schema.metadata or {}).get(b"format") != _FORMAT:
        raise UserError(f"{url} is of another version, which is not taken up: remove it, or choose another --out")
    return [_row(record) for record in table.to_pylist()]


def _row(record: dict[str, Any]) -> Row:
    predictions = record["predictions"]
    values = {
        "detail": json.loads(record["detail"]),
        "predictions": None if predictions is None else np.array(predictions, np.int64),
        "evidence": decode_evidence(record["metric"], record["evidence"]),
    }
    return Row(**(record | values))
