"""Write a dataset version: content-addressed tables first, the create-only version file last.

Whatever crashes before the last step leaves files that no version names, never half a dataset.
"""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from shards import storage
from shards.errors import UserError
from shards.schema import TABLES, TableFile, Version, sha256_hex
from shards.tables import version_url

_ROWS_PER_FILE = 2_000_000
_ROWS_PER_GROUP = 65_536


def write_table(url: str, name: str, tables: Iterable[pa.Table]) -> tuple[TableFile, ...]:
    """Write a table as Parquet files of up to 2 million rows; return what a version says of them.

    Args:
        url: the dataset.
        name: samples, shards, scenes or rejects.
        tables: chunks of the table in their final order; only one file's rows are held at a time.
    """
    return tuple(_write_file(url, name, chunk) for chunk in _files(tables, name))


def _files(tables: Iterable[pa.Table], name: str) -> Iterator[pa.Table]:
    pending: list[pa.Table] = []
    rows = 0
    for table in tables:
        pending.append(table)
        rows += table.num_rows
        while rows >= _ROWS_PER_FILE:
            joined = pa.concat_tables(pending)
            yield joined.slice(0, _ROWS_PER_FILE)
            pending = [joined.slice(_ROWS_PER_FILE)]
            rows -= _ROWS_PER_FILE
    yield pa.concat_tables([TABLES[name].empty_table(), *pending])


def _write_file(url: str, name: str, table: pa.Table) -> TableFile:
    data = encode_table(table)
    digest = sha256_hex(data)
    relative = f"tables/{name}-{digest[:32]}.parquet"
    storage.write_bytes(storage.join(url, relative), data)
    return TableFile(url=relative, sha256=digest, num_rows=table.num_rows)


def encode_table(table: pa.Table) -> bytes:
    """Return the Parquet bytes of a table: zstd, row groups of 65,536, checksums; the same for the same rows."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.combine_chunks(),
        sink,
        compression="zstd",
        row_group_size=_ROWS_PER_GROUP,
        write_page_checksum=True,
    )
    data: bytes = sink.getvalue().to_pybytes()
    return data


def commit_version(url: str, version: Version) -> str:
    """Create the version file and return its URL; the same version again is no error.

    Raises:
        UserError: another version with this number was committed meanwhile.
    """
    target = version_url(url, version.version)
    data = version.to_json()
    if not storage.create_bytes(target, data) and storage.read_bytes(target) != data:
        raise UserError(f"{target} was committed by somebody else meanwhile: run again to build upon it")
    return target
