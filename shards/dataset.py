"""Open a dataset version and read its samples by index.

Opening costs the read of four columns of the samples table (24 bytes of memory per sample); a sample is then
one positioned read of a local file, or one ranged request to a store, and its checksum is always compared.
"""

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards import storage, tar
from shards.errors import UserError
from shards.schema import TABLES, Band, Version, sha256_hex

_MAX_OPEN_FILES = 64


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample as it lies in its shard."""

    key: str
    ext: str
    """Extension of the image member: jpg, png, webp, npy."""
    image: bytes
    metadata: bytes
    """JSON, or empty where the sample has none."""


class CorruptSampleError(RuntimeError):
    """A sample's bytes are not those the table promises: names the shard, the sample and the fault."""


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
    if columns is None:
        return parquet.read()
    there = [column for column in columns if column in parquet.schema_arrow.names]
    table = parquet.read(columns=there)
    for column in columns:
        if column not in there:
            table = table.append_column(column, pa.nulls(table.num_rows, TABLES[name].field(column).type))
    return table.select(list(columns))


class Dataset:
    """A version of a dataset, ready for random access; may be pickled to workers, which open their own files."""

    def __init__(self, url: str, version: Version) -> None:
        self.url = url
        self.version = version
        self.digest = version.digest
        self.bands: tuple[Band, ...] = version.bands
        self.dtype = version.dtype
        self.tile_px = version.tile_px
        shards = read_table(url, version, "shards", ["shard", "url"])
        urls = dict(zip(shards["shard"].to_pylist(), shards["url"].to_pylist(), strict=True))
        samples = read_table(url, version, "samples", ["shard", "offset", "size", "crc32c"])
        codes = samples["shard"].combine_chunks()
        self._shard_urls = [storage.join(url, urls[name]) for name in codes.dictionary.to_pylist()]
        self._shard_P = codes.indices.to_numpy().astype(np.int32)
        self._offset_P = samples["offset"].to_numpy()
        self._size_P = samples["size"].to_numpy()
        self._crc_P = samples["crc32c"].to_numpy()
        self._files = _LocalFiles()

    @property
    def num_samples(self) -> int:
        """Count of samples, N."""
        return len(self._offset_P)

    def read(self, index: int) -> Sample:
        """Read the sample at a row of the samples table; safe to call from several threads.

        Raises:
            IndexError: the index is not in [0, N).
            CorruptSampleError: its bytes do not match the recorded length and checksum.
        """
        if not 0 <= index < self.num_samples:
            raise IndexError(f"sample {index} outside [0, {self.num_samples})")
        url = self._shard_urls[self._shard_P[index]]
        offset, size = int(self._offset_P[index]), int(self._size_P[index])
        data = self._files.pread(url, offset, size) if storage.is_local(url) else storage.read_range(url, offset, size)
        if len(data) != size or google_crc32c.value(data) != int(self._crc_P[index]):
            raise CorruptSampleError(f"sample {index} (byte {offset} of {url}) does not match its checksum")
        return parse_sample(data)


def open_dataset(url: str, version: int | None = None) -> Dataset:
    """Open a dataset, its newest version by default.

    Raises:
        UserError: there is none, or its tables are damaged.
    """
    return Dataset(url, read_version(url, version))


def parse_sample(data: bytes) -> Sample:
    """Split the tar bytes of one sample into image and metadata.

    Raises:
        ValueError: the bytes are no tar members, or none of them is an image.
    """
    contents: dict[str, bytes] = {}
    key = ""
    for member in tar.members(data):
        key, _, extension = member.name.partition(".")
        contents[extension] = data[member.offset : member.offset + member.size]
    metadata = contents.pop("json", b"")
    if len(contents) != 1:
        raise ValueError(f"sample {key!r} has {len(contents)} image members, not one")
    ((extension, image),) = contents.items()
    return Sample(key=key, ext=extension, image=image, metadata=metadata)


class _LocalFiles:
    """Positioned reads with a bounded number of open local files; descriptors never cross a process border."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Any] = OrderedDict()

    def __reduce__(self) -> tuple[type["_LocalFiles"], tuple[()]]:
        return _LocalFiles, ()

    def pread(self, url: str, offset: int, size: int) -> bytes:
        with self._lock:
            file = self._open.pop(url, None) or storage.local_path(url).open("rb", buffering=0)
            self._open[url] = file
            if len(self._open) > _MAX_OPEN_FILES:
                # Dropping the last reference closes it, after any read that another thread has under way.
                self._open.popitem(last=False)
        return os.pread(file.fileno(), size, offset)
