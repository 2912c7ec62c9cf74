"""Versions of a dataset and their tables, whole and checked; see `shards.columns` for a few columns of large ones."""

import re
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from shards import storage
from shards.errors import UserError
from shards.schema import TABLES, Version, sha256_hex


def list_versions(url: str) -> list[int]:
    """Return the numbers of all versions of a dataset, ascending; empty where there is none."""
    folder = storage.join(url, "versions")
    if not storage.exists(folder):
        return []
    names = [info.path for info in storage.list_files(folder)]
    return sorted(int(name[:8]) for name in names if re.fullmatch(r"\d{8}\.json", name))


def version_url(url: str, number: int) -> str:
    """Return the URL of a version file."""
    return storage.join(url, "versions", f"{number:08d}.json")


def read_version(url: str, number: int | None = None) -> Version:
    """Read a version, the newest by default.

    Raises:
        UserError: there is no dataset or no such version there, or its format is unknown.
    """
    with storage.user_errors(url):
        numbers = list_versions(url)
    if not numbers:
        raise UserError(f"{url} holds no dataset (no versions/*.json): make one with `python -m ingest --out {url}`")
    if number is not None and number not in numbers:
        raise UserError(f"{url} has no version {number}, only {numbers}")
    try:
        return Version.from_json(storage.read_bytes(version_url(url, number or numbers[-1])))
    except ValueError as error:
        raise UserError(f"{version_url(url, number or numbers[-1])}: {error}") from error


def read_table(url: str, version: Version, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table (samples, shards, scenes, rejects) of a version; whole files are checked by their sha256.

    Raises:
        UserError: a file of the table is missing or is not the one that the version names.
    """
    parts = iter_table(url, version, name, columns, dictionary=("shard", "scene"))
    return pa.concat_tables(parts).unify_dictionaries()


def iter_table(
    url: str, version: Version, name: str, columns: Sequence[str] | None = None, *, dictionary: Sequence[str] = ()
) -> Iterator[pa.Table]:
    """Yield a table of a version file by file (at most 2 million rows each); each is checked by its sha256.

    Costs the memory of one file's bytes and of the chosen columns. Chosen columns that `shards.schema` knows and
    an older dataset lacks are null; with no choice the columns are those of the file.

    Args:
        url: the dataset.
        version: which names the files.
        name: samples, shards, scenes or rejects.
        columns: which to read, in this order; all by default.
        dictionary: string columns to read as codes into a dictionary, which is another one in each file.

    Raises:
        UserError: a file of the table is missing or is not the one that the version names.
    """
    for file in version.tables[name]:
        file_url = storage.join(url, file.url)
        with storage.user_errors(file_url):
            data = storage.read_bytes(file_url)
        if sha256_hex(data) != file.sha256:
            raise UserError(f"{file_url} is damaged: its sha256 is not the one in version {version.version}")
        names = pq.read_schema(pa.BufferReader(data)).names
        coded = [column for column in dictionary if column in names]
        yield _chosen_columns(pq.ParquetFile(pa.BufferReader(data), read_dictionary=coded), name, columns)


def _chosen_columns(parquet: pq.ParquetFile, name: str, columns: Sequence[str] | None) -> pa.Table:
    # Arrow's threads may let go of our bytes after the read, for which they need the interpreter: a process that ends
    # at that moment is aborted (apache/arrow#34314).
    if columns is None:
        return parquet.read(use_threads=False)
    there = [column for column in columns if column in parquet.schema_arrow.names]
    table = parquet.read(columns=there, use_threads=False)
    for column in columns:
        if column not in there:
            table = table.append_column(column, pa.nulls(table.num_rows, TABLES[name].field(column).type))
    return table.select(list(columns))
