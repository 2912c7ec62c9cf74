"""Some columns of a large table, without the rest: what a stream needs to open a dataset of many million samples.

Only the chosen columns' bytes are read, from a store by ranged requests. The whole file's sha256 is not compared (that
would read ten times as much); pages carry checksums, and a sample's bytes are compared with their own in any case.

Cost: 35 ns per row of five columns and 40 MB while it runs, on a thread of its own (tests/bench/stream.py).
"""

import io
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import repeat, takewhile

import pyarrow as pa
import pyarrow.parquet as pq

from shards import storage
from shards.errors import UserError
from shards.schema import TABLES, Version

_BATCH_ROWS = 2**16  # a row group of ours: larger batches cost three times the memory and gain nothing


def iter_columns(url: str, version: Version, name: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield columns of a table of a version, at most 65,536 rows at a time; string columns as dictionary codes.

    Args:
        url: the dataset.
        version: which names the table's files.
        name: samples, shards, scenes or rejects.
        columns: which; those that an older dataset lacks are null.

    Raises:
        UserError: a file is missing, damaged, or has another number of rows than the version says.
    """
    # A thread reads the next rows while the caller works on these.
    calls = repeat(partial(next, _iter_files(url, version, name, columns), None))
    yield from takewhile(lambda table: table is not None, storage.in_order(1, calls))
    # What Arrow keeps for its next table would stay for as long as a stream runs.
    pa.default_memory_pool().release_unused()


def _iter_files(url: str, version: Version, name: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    for file in version.tables[name]:
        file_url = storage.join(url, file.url)
        with storage.user_errors(file_url):
            try:
                yield from _iter_file(file_url, file.num_rows, name, columns)
            except (pa.ArrowException, OSError) as error:
                if isinstance(error, FileNotFoundError | PermissionError | storage.StorageError):
                    raise
                raise UserError(f"{file_url} is damaged ({error}): see `python -m shards verify {url}`") from error


def _iter_file(url: str, num_rows: int, name: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    source = storage.local_path(url) if storage.is_local(url) else pa.PythonFile(_RangeFile(url), mode="r")
    strings = [column for column in columns if pa.types.is_string(TABLES[name].field(column).type)]
    parquet = pq.ParquetFile(source, read_dictionary=strings, pre_buffer=True, page_checksum_verification=True)
    if parquet.metadata.num_rows != num_rows:
        raise UserError(f"{url} has {parquet.metadata.num_rows} rows, not the {num_rows} that the version names")
    there = [column for column in columns if column in parquet.schema_arrow.names]
    # Threads would save a tenth of the time, and keep 20 MB.
    for batch in parquet.iter_batches(_BATCH_ROWS, columns=there, use_threads=False):
        table = pa.Table.from_batches([batch])  # pa.table would import pandas: 0.3 s and 20 MB
        for column in columns:
            if column not in there:
                table = table.append_column(column, pa.nulls(table.num_rows, TABLES[name].field(column).type))
        yield table.select(list(columns))


class _RangeFile(io.RawIOBase):
    """A remote file that is read by ranges, with the retries of every other read."""

    def __init__(self, url: str) -> None:
        self._url, self._position = url, 0
        self._size = storage.stat(url).size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def size(self) -> int:
        return self._size

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = {0: 0, 1: self._position, 2: self._size}[whence] + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        size = self._size - self._position if size < 0 else size
        data = storage.read_range(self._url, self._position, max(0, min(size, self._size - self._position)))
        self._position += len(data)
        return data
