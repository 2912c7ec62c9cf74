"""Scenes from a list: a CSV or Parquet table with a column url or path, one row per scene or file.

Read batch by batch; what is wrong with a row is said with its number (the first row after the header is 1).
Cost: a few µs per row, memory for one batch; a list in a store is copied to the disk first.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from ingest.places import Places
from ingest.sources import BATCH_ROWS, found, kind_of, text
from shards import storage
from shards.errors import UserError

_PLACES = ("url", "path")
_OPTIONAL = ("label", "time", "sensor", "acquisition", "version", "offset", "id")


def read_list(scenes: str, places: Places) -> Iterator[pa.Table]:
    """Yield the rows of a list (FOUND); what names a place that is not allowed has the reason not_allowed.

    Columns besides url or path: label, time (ISO date or time; UTC if it does not say), sensor, acquisition, version,
    offset, id. Others are ignored.

    Raises:
        UserError: no such file, no such table, no column url or path, a row without a place, a wrong time or offset.
    """
    read = _read_csv if kind_of(scenes) == "csv" else _read_parquet
    row = 1
    try:
        with on_disk(scenes) as path:
            for batch in read(scenes, path):
                if batch.num_rows:
                    yield _found(scenes, batch, row, places)
                row += batch.num_rows
    except pa.ArrowInvalid as error:
        raise UserError(f"{scenes} cannot be read from row {row} on: {error}") from error


@contextmanager
def on_disk(url: str) -> Iterator[Path]:
    """Give a file's path on this disk; one in a store is copied to a temporary folder, whole and of one version.

    Raises:
        UserError: it is not there, or may not be read.
    """
    with storage.user_errors(url), TemporaryDirectory() as folder:
        if storage.is_local(url):
            path = storage.local_path(url)
        else:
            path, known = Path(folder, "copy"), storage.stat(url)
            storage.fetch(url, path, size=known.size, etag=known.etag)
        yield path


def _read_csv(scenes: str, path: Path) -> Iterator[pa.RecordBatch]:
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    with path.open("rb") as file, pyarrow.csv.open_csv(file, parse_options=parse) as header:
        names = wanted_columns(scenes, header.schema.names)
    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        include_columns=names,
        strings_can_be_null=True,
        null_values=[""],
    )
    with path.open("rb") as file:
        yield from pyarrow.csv.open_csv(file, parse_options=parse, convert_options=convert)


def _read_parquet(scenes: str, path: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as table:
        names = wanted_columns(scenes, table.schema_arrow.names)
        yield from table.iter_batches(BATCH_ROWS, columns=names)


def wanted_columns(scenes: str, names: Sequence[str]) -> list[str]:
    """Return the columns to read of a list, the place first.

    Raises:
        UserError: neither url nor path is there, or a column stands twice.
    """
    place = next((name for name in _PLACES if name in names), None)
    if place is None:
        raise UserError(f"{scenes} has no column url or path: its columns are {', '.join(names)}")
    wanted = [place, *(name for name in _OPTIONAL if name in names)]
    twice = next((name for name in wanted if list(names).count(name) > 1), None)
    if twice:
        raise UserError(f"{scenes} has the column {twice} twice: rename one")
    return wanted


def _found(scenes: str, batch: pa.RecordBatch, first_row: int, places: Places) -> pa.Table:
    where = _Where(scenes, first_row)
    columns = {name: batch.column(name) for name in batch.schema.names}
    named = next(columns.pop(name) for name in _PLACES if name in columns)
    hrefs = [where.require(row, href) for row, href in enumerate(where.cast(named, pa.string(), "path").to_pylist())]
    paths = [places.find(href) for href in hrefs]
    rejected = [path is None for path in paths]
    values: dict[str, Any] = {
        name: where.times(column) if name == "time" else where.cast(column, _type(name), name)
        for name, column in columns.items()
    }
    return found(
        path=[href if path is None else path for href, path in zip(hrefs, paths, strict=True)],
        row=range(first_row, first_row + batch.num_rows),
        reason=["not_allowed" if refused else None for refused in rejected],
        **values,
    )


def _type(name: str) -> pa.DataType:
    return pa.float64() if name == "offset" else pa.string()


class _Where:
    """Casts a batch's columns, and names list and row where that fails."""

    def __init__(self, scenes: str, first_row: int) -> None:
        self._scenes = scenes
        self._first_row = first_row

    def _error(self, row: int, what: str) -> UserError:
        return UserError(f"{self._scenes} row {self._first_row + row}: {what}")

    def require(self, row: int, href: str | None) -> str:
        if not href:
            raise self._error(row, "neither url nor path: name the file, or leave out the row")
        return text(href)

    def cast(self, column: Any, kind: pa.DataType, name: str) -> Any:
        if kind == pa.string() and pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)  # what some programs write where there is none
        try:
            values = pc.cast(column, kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise self._error(*self._culprit(column, kind, name)) from error
        if kind == pa.float64():
            row = pc.index(pc.is_finite(values), False).as_py()
            if row >= 0:
                raise self._error(row, f"{name} {column[row]} is no finite number")
        return values

    def _culprit(self, column: Any, kind: pa.DataType, name: str) -> tuple[int, str]:
        for row in range(len(column)):
            try:
                pc.cast(column.slice(row, 1), kind)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                wanted = "number" if kind == pa.float64() else "text"
                return row, f"{name} {column[row].as_py()!r} is no {wanted}"
        return 0, f"{name} of type {column.type} is no {kind}"

    def times(self, column: Any) -> Any:
        if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
            return pc.cast(column, pa.timestamp("ms"), safe=False).cast(pa.timestamp("ms", "UTC"))
        values = self.cast(column, pa.string(), "time").to_pylist()
        return pa.array([self._time(row, value) for row, value in enumerate(values)], pa.timestamp("ms", "UTC"))

    def _time(self, row: int, value: str | None) -> datetime | None:
        try:
            return parse_time(value) if value else None
        except ValueError as error:
            raise self._error(
                row, f"time {value!r} is no ISO date or time (2018-01-31, 2018-01-31T10:00:00Z)"
            ) from error


def parse_time(value: str | datetime | date) -> datetime:
    """Return an ISO date or time as UTC, which it is meant to be in if it does not say.

    Raises:
        ValueError: no such time.
    """
    if isinstance(value, str):
        value = datetime.fromisoformat(value.strip())
    elif not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{value} is out of range in UTC") from error
