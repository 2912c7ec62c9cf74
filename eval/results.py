"""Results: one row per (model, data set, protocol, features), appended as each is computed.

The table is a Parquet file that is replaced as a whole, atomically, at each append: a killed evaluation leaves all
rows that were done, and the same command goes on from there. Rows carry their predictions, so that models can be
compared image by image without computing anything again.
"""

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shards import storage
from shards.errors import UserError

_SCHEMA = pa.schema(
    [
        ("task", pa.string()), ("data", pa.string()), ("data_digest", pa.string()), ("split_digest", pa.string()),
        ("model", pa.string()), ("model_digest", pa.string()), ("protocol", pa.string()), ("features", pa.string()),
        ("metric", pa.string()), ("value", pa.float64()), ("low", pa.float64()), ("high", pa.float64()),
        ("num_train", pa.int64()), ("num_test", pa.int64()), ("num_draws", pa.int64()), ("seed", pa.int64()),
        ("seconds", pa.float64()), ("detail", pa.string()), ("predictions", pa.list_(pa.int32())),
    ]
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure and what it stands for."""

    task: str
    data: str
    data_digest: str
    split_digest: str
    model: str
    model_digest: str
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
    """What else the protocol tells, JSON."""
    predictions: NDArray[np.int64]
    """Class of each test image, in the order of the data set's paths."""

    @property
    def key(self) -> tuple[Any, ...]:
        """Return what the row depends on: equal keys, equal figures."""
        return (self.data, self.data_digest, self.split_digest, self.model, self.model_digest, self.protocol,
                self.features, self.num_draws, self.seed)  # fmt: skip

    def figures(self) -> dict[str, Any]:
        """Return everything but the predictions, JSON-able."""
        return {name: getattr(self, name) for name in _SCHEMA.names if name != "predictions"}


class Results:
    """The rows in OUT/results.parquet."""

    def __init__(self, out: str) -> None:
        self._url = storage.join(out, "results.parquet")
        self._rows = {row.key: row for row in _read(self._url)} if storage.exists(self._url) else {}

    def get(self, key: tuple[Any, ...]) -> Row | None:
        """Return the row of a key, None if it is not there yet."""
        return self._rows.get(key)

    def append(self, row: Row) -> None:
        """Add a row, or replace the one with its key, and store the table."""
        self._rows[row.key] = row
        records = [row.figures() | {"detail": json.dumps(row.detail), "predictions": row.predictions.tolist()}
                   for row in self._rows.values()]  # fmt: skip
        out = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(records, _SCHEMA), out, compression="zstd")
        storage.write_bytes(self._url, out.getvalue())


def _read(url: str) -> list[Row]:
    try:
        table = pq.read_table(io.BytesIO(storage.read_bytes(url)))
    except pa.ArrowInvalid as error:
        raise UserError(f"{url} is damaged ({error}): remove it, or choose another --out") from error
    if table.schema.names != _SCHEMA.names:
        raise UserError(f"{url} has other columns than this version writes: remove it, or choose another --out")
    return [
        Row(**(record | {"detail": json.loads(record["detail"]), "predictions": np.array(record["predictions"])}))
        for record in table.to_pylist()
    ]
