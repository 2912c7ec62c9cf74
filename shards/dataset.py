"""Open a dataset version and read its samples by index.

Opening costs the read of five columns of the samples table and 6 bytes of memory per sample and series; a sample is
then one positioned read of a local file, or one ranged request to a store, and its checksum is always compared.
"""

import os
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from typing import NamedTuple, NoReturn

import google_crc32c
import pyarrow as pa
import pyarrow.compute as pc

from shards import storage, tar
from shards.columns import iter_columns
from shards.errors import UserError
from shards.rows import Place, Rows, read_rows
from shards.schema import Band, Version, sha256_hex
from shards.storage.reading import count_traffic
from shards.storage.retry import StorageError, count_retry
from shards.tables import iter_table, read_version

_MAX_OPEN_FILES = 64
_USERS = (PermissionError, IsADirectoryError, NotADirectoryError)  # for `storage.user_errors` to tell


class Sample(NamedTuple):
    """One sample as it lies in its shard: its image, and the tar bytes that hold what else it has."""

    key: str
    ext: str
    """Extension of the image member: jpg, png, webp, npy."""
    image: memoryview
    """Part of a piece, not copied: a copy of 50 kB would cost half of what reading it does. No view can be pickled."""
    pieces: Sequence[bytes]
    """Tar bytes of the sample, of each series."""
    series: Sequence[str]
    """Their names; a member's extension begins with a name that is not empty: "nir.npy"."""

    @property
    def members(self) -> dict[str, bytes]:
        """All members by extension, the image and the JSON among them.

        Raises:
            ValueError: the bytes are no tar members.
        """
        return {
            _in_series(tar.key_and_extension(name)[1], series): data[offset : offset + size]
            for series, data in zip(self.series, self.pieces, strict=True)
            for name, offset, size in tar.members(data)
        }

    @property
    def metadata(self) -> bytes:
        """JSON, or empty where the sample has none; errors as `members`."""
        return self.members.get(_in_series("json", self.series[0]), b"")


class CorruptSampleError(RuntimeError):
    """A sample's bytes are not those the table promises: names the shard, the sample and the fault."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar file of a dataset."""

    url: str
    size: int
    """Bytes."""
    etag: str | None
    """Of a foreign object when it was indexed."""
    local: bool
    """Lies on a disk of this machine."""


class Dataset:
    """A version of a dataset, ready for random access; may be pickled to workers, which open their own files."""

    def __init__(self, url: str, version: Version) -> None:
        self.url = url
        self.version = version
        self.digest = version.digest
        self.bands: tuple[Band, ...] = version.bands
        self.dtype = version.dtype
        self.tile_px = version.tile_px
        self.num_samples = version.num_samples
        """Count of samples, N."""
        self.layout = layout_digest(version)
        shards = pa.concat_tables(iter_table(url, version, "shards", ["shard", "url", "size", "etag"])).to_pydict()
        urls = [storage.join(url, place) for place in shards["url"]]
        self.shards = [
            Shard(url=place, size=size, etag=etag, local=storage.is_local(place))
            for place, size, etag in zip(urls, shards["size"], shards["etag"], strict=True)
        ]
        self._series = version.series or ("",)
        self._image_members: set[str] = set()
        samples = self._iter_samples()
        try:
            self.rows = read_rows(samples, version.num_samples, shards["shard"])
            self.parts = tuple(self._read_part(number, shards["shard"]) for number in range(len(version.series[1:])))
        except ValueError as error:
            raise UserError(f"{url} version {version.version} is damaged: {error}") from error
        self._files = _LocalFiles()
        self._first_etags = _FirstEtags()

    def _iter_samples(self) -> Iterator[pa.Table]:
        columns = ["shard", "offset", "size", "crc32c", "member"]
        for table in iter_columns(self.url, self.version, "samples", columns):
            for chunk in table["member"].chunks:
                self._image_members.update(chunk.dictionary.to_pylist())
            yield table

    def _read_part(self, number: int, shard_names: Sequence[str]) -> Rows:
        """Read the places of the samples in another series than the first."""
        tables = iter_columns(self.url, self.version, "samples", ["parts"])
        return read_rows((_part(table["parts"], number) for table in tables), self.version.num_samples, shard_names)

    def places(self, row: int) -> list[Place]:
        """Return where the bytes of a row's sample lie, one place for each series.

        Raises:
            IndexError: the row is not in [0, N).
        """
        if not 0 <= row < self.num_samples:
            raise IndexError(f"sample {row} outside [0, {self.num_samples})")
        return [rows.place(row) for rows in (self.rows, *self.parts)]

    def places_of(self, rows: Sequence[int]) -> list[tuple[Place, ...]]:
        """Return what `places` does for each of several rows, which are in [0, N)."""
        return list(zip(*(each.places(rows) for each in (self.rows, *self.parts)), strict=True))

    def read(self, row: int) -> Sample:
        """Read the sample at a row of the samples table; safe to call from several threads.

        Raises:
            IndexError: the row is not in [0, N).
            CorruptSampleError: its bytes do not match the recorded length and checksum, read twice.
            UserError: its shard is missing, has changed, or may not be read.
            StorageError: the store kept failing, or the local disk does.
        """
        return self.parse(row, self.read_places(row, self.places(row)))

    def read_places(self, row: int, places: Sequence[Place]) -> list[bytes]:
        """Read a row's bytes where they lie, one piece for each series, checked; errors as `read`."""
        data = self._read_whole(row, places)
        if data is None:
            # Flipped on the way, perhaps: what is bad must not depend on that.
            if not self.is_local(places):
                count_retry("checksum")
            data = self._read_whole(row, places)
        if data is None:
            raise self.fault(row, places)
        return data

    def _read_whole(self, row: int, places: Sequence[Place]) -> list[bytes] | None:
        """Read a row's bytes once; None if some are not those of the table."""
        data: list[bytes] = []
        # All in one: a call for each part of it would cost a tenth of what reading a small image does.
        for place in places:
            number, offset, size, crc32c = place
            shard = self.shards[number]
            try:
                if shard.local:
                    file = self._files.opened(shard.url)  # held by its name until it is read
                    piece = os.pread(file.fileno(), size, offset)
                else:
                    piece = storage.read_range(shard.url, offset, size)
            except Exception as error:
                self._tell(row, place, error)
            if len(piece) != size or google_crc32c.value(piece) != crc32c:
                return None
            data.append(piece)
        return data

    def _tell(self, row: int, place: Place, error: Exception) -> NoReturn:
        """Raise what a row could not be read for."""
        shard = self.shards[place.shard]
        if isinstance(error, FileNotFoundError):
            raise self.missing(row, [place]) from error
        with storage.user_errors(shard.url):
            if shard.local and isinstance(error, OSError) and not isinstance(error, _USERS):
                told = f"sample {row} cannot be read from {shard.url}: {error.strerror or error}"
                raise StorageError(f"{told}; check the disk or its mount", "disk") from error
            raise error

    def is_local(self, places: Sequence[Place]) -> bool:
        """Say whether a row's bytes lie on a disk of this machine."""
        return all(self.shards[place.shard].local for place in places)

    def missing(self, row: int, places: Sequence[Place]) -> UserError:
        """Return the error for a row that lies in a shard that is not there."""
        gone = [self.shards[place.shard].url for place in places if not storage.exists(self.shards[place.shard].url)]
        return UserError(f"{', '.join(gone)}: not there (sample {row} lies in it); restore it or rebuild the dataset")

    def fault(self, row: int, places: Sequence[Place]) -> Exception:
        """Find out why a row's bytes do not match: its shard changed, or the sample is damaged."""
        with storage.user_errors(self.shards[places[0].shard].url):
            try:
                for place in places:
                    self._require_same(place.shard)
            except FileNotFoundError:
                return self.missing(row, places)
            except UserError as error:
                return error
        return CorruptSampleError(f"{self.name(row)} does not match its checksum")

    def require_unchanged(self, shard: int) -> None:
        """Find out, once in each process, whether a shard in a store is the one of the tables.

        Raises:
            UserError: it has another size, or another ETag than when it was indexed.
            FileNotFoundError: it is not there.
        """
        if shard in self._first_etags or self.shards[shard].local:
            return
        with self._first_etags.look_at(shard):
            if shard not in self._first_etags:
                self._require_same(shard)

    def _require_same(self, number: int) -> None:
        shard = self.shards[number]
        if not shard.local:
            count_traffic(heads=1)
        found = storage.stat(shard.url)
        if found.size != shard.size:
            raise UserError(f"{shard.url} changed: {found.size} bytes, not the {shard.size} of the dataset")
        first = self._first_etags.setdefault(number, found.etag)
        for known, when in ((shard.etag, "indexed"), (first, "first read")):
            if known and found.etag != known:
                raise UserError(f"{shard.url} changed: its ETag is {found.etag}, not {known} as when {when}")

    def parse(self, row: int, pieces: Sequence[bytes]) -> Sample:
        """Find the image in the tar bytes of a row's sample, one piece for each series.

        Raises:
            CorruptSampleError: the bytes are no tar members, or have no image.
        """
        try:
            return parse_sample(pieces, self._series, self._image_members)
        except ValueError as error:
            raise CorruptSampleError(f"{self.name(row)}: {error}") from error

    def name(self, row: int) -> str:
        """Return what to call a row's sample in a message."""
        place = self.rows.place(row)
        return f"sample {row} (byte {place.offset} of {self.shards[place.shard].url})"


def open_dataset(url: str, version: int | None = None) -> Dataset:
    """Open a dataset, its newest version by default.

    Raises:
        UserError: there is none, or its tables are damaged.
    """
    return Dataset(url, read_version(url, version))


def layout_digest(version: Version) -> str:
    """Return 64 hex digits that name rows, shards and places: what an order of samples depends on besides the content.

    Two datasets of one content digest may differ in it: after a rebuild with other shard sizes, say.
    """
    return sha256_hex("".join(file.sha256 for file in version.tables["samples"]).encode())


def is_whole(data: bytes | memoryview, place: Place) -> bool:
    """Say whether a sample's bytes are those of the table."""
    return len(data) == place.size and google_crc32c.value(data) == place.crc32c


def _part(parts: pa.ChunkedArray, number: int) -> pa.Table:
    """Return shard, offset, size, crc32c of one element of each list."""
    element = pc.list_element(parts, number)
    return pa.table({name: pc.struct_field(element, name) for name in ("shard", "offset", "size", "crc32c")})


def parse_sample(pieces: Sequence[bytes], series: Sequence[str], image_members: Set[str]) -> Sample:
    """Find the image in the tar bytes of one sample.

    What comes after it is not looked at: tables have samples of one image alone.

    Args:
        pieces: of each series, the extent of the sample in its shard, as the table has it (`is_whole`).
        series: their names.
        image_members: extensions, one of which is the image.

    Raises:
        ValueError: the bytes are no tar members, or have no image.
    """
    for prefix, data in zip(series, pieces, strict=True):
        # As a rule the image comes first, and is found in less than half the time.
        first = tar.first_file(data)
        if first and _in_series(first[1], prefix) in image_members:
            key, extension, end = first
            return Sample(key, extension.rpartition(".")[2], memoryview(data)[tar.BLOCK : end], pieces, series)
        for name, offset, size in tar.members(data, checked=True):
            key, extension = tar.key_and_extension(name)
            if _in_series(extension, prefix) in image_members:
                content = memoryview(data)[offset : offset + size]
                return Sample(key, extension.rpartition(".")[2], content, pieces, series)
    raise ValueError(f"no member is an image ({', '.join(sorted(image_members))})")


def _in_series(extension: str, series: str) -> str:
    return f"{series}.{extension}" if series else extension


class _FirstEtags(dict[int, str]):
    """ETags of shards as this process saw them first."""

    def __init__(self) -> None:
        super().__init__()
        self._looks: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)

    def look_at(self, shard: int) -> threading.Lock:
        """Return what keeps other threads from asking the store for the same shard."""
        return self._looks[shard]

    def __reduce__(self) -> tuple[type["_FirstEtags"], tuple[()]]:
        return _FirstEtags, ()


class _LocalFiles:
    """Positioned reads with a bounded number of open local files; descriptors never cross a process border."""

    def __init__(self) -> None:
        # Dropping the last reference closes a file: after any read that another thread has under way.
        self.opened = lru_cache(_MAX_OPEN_FILES)(_open)

    def __reduce__(self) -> tuple[type["_LocalFiles"], tuple[()]]:
        return _LocalFiles, ()


def _open(url: str) -> FileIO:
    return storage.local_path(url).open("rb", buffering=0)
