"""Open a dataset version and read its samples by index.

Opening costs the read of five columns of the samples table and 6 bytes of memory per sample and series; a sample is
then one positioned read of a local file, or one ranged request to a store, and its checksum is always compared.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import pyarrow as pa
import pyarrow.compute as pc

from shards import storage, tar
from shards.columns import iter_columns
from shards.errors import UserError
from shards.rows import Place, Rows, read_rows
from shards.schema import Band, Version, sha256_hex
from shards.tables import iter_table, read_version

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
    members: Mapping[str, bytes]
    """All of them by extension, the image and the JSON among them."""


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
        self.layout = layout_digest(version)
        shards = pa.concat_tables(iter_table(url, version, "shards", ["shard", "url", "size", "etag"])).to_pydict()
        urls = [storage.join(url, place) for place in shards["url"]]
        self.shards = [
            Shard(url=place, size=size, etag=etag, local=storage.is_local(place))
            for place, size, etag in zip(urls, shards["size"], shards["etag"], strict=True)
        ]
        self._image_members: set[str] = set()
        samples = self._iter_samples()
        try:
            self.rows = read_rows(samples, version.num_samples, shards["shard"])
            self.parts = tuple(self._read_part(number, shards["shard"]) for number in range(len(version.series[1:])))
        except ValueError as error:
            raise UserError(f"{url} version {version.version} is damaged: {error}") from error
        self._files = _LocalFiles()
        self._first_etags = _FirstEtags()

    @property
    def num_samples(self) -> int:
        """Count of samples, N."""
        return len(self.rows)

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

    def read(self, row: int) -> Sample:
        """Read the sample at a row of the samples table; safe to call from several threads.

        Raises:
            IndexError: the row is not in [0, N).
            CorruptSampleError: its bytes do not match the recorded length and checksum.
            UserError: its shard is missing or has changed.
        """
        return self.parse(row, self.read_places(row, self.places(row)))

    def read_places(self, row: int, places: Sequence[Place]) -> list[bytes]:
        """Read a row's bytes where they lie, one piece for each series, checked; errors as `read`."""
        try:
            data = [self._read_bytes(place) for place in places]
        except FileNotFoundError as error:
            raise self.missing(row, places) from error
        if not all(map(is_whole, data, places)):
            raise self.fault(row, places)
        return data

    def _read_bytes(self, place: Place) -> bytes:
        shard = self.shards[place.shard]
        if shard.local:
            return self._files.pread(shard.url, place.offset, place.size)
        return storage.read_range(shard.url, place.offset, place.size)

    def is_local(self, places: Sequence[Place]) -> bool:
        """Say whether a row's bytes lie on a disk of this machine."""
        return all(self.shards[place.shard].local for place in places)

    def missing(self, row: int, places: Sequence[Place]) -> UserError:
        """Return the error for a row that lies in a shard that is not there."""
        gone = [self.shards[place.shard].url for place in places if not storage.exists(self.shards[place.shard].url)]
        return UserError(f"{', '.join(gone)}: not there (sample {row} lies in it); restore it or rebuild the dataset")

    def fault(self, row: int, places: Sequence[Place]) -> Exception:
        """Find out why a row's bytes do not match: its shard changed, or the sample is damaged."""
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
        if shard not in self._first_etags and not self.shards[shard].local:
            self._require_same(shard)

    def _require_same(self, number: int) -> None:
        shard = self.shards[number]
        found = storage.stat(shard.url)
        if found.size != shard.size:
            raise UserError(f"{shard.url} changed: {found.size} bytes, not the {shard.size} of the dataset")
        first = self._first_etags.setdefault(number, found.etag)
        for known, when in ((shard.etag, "indexed"), (first, "first read")):
            if known and found.etag != known:
                raise UserError(f"{shard.url} changed: its ETag is {found.etag}, not {known} as when {when}")

    def parse(self, row: int, pieces: Sequence[bytes]) -> Sample:
        """Split the tar bytes of a row's sample, one piece for each series, into its members.

        Raises:
            CorruptSampleError: the bytes are no tar members, or do not have exactly one image.
        """
        try:
            return parse_sample(pieces, self.version.series or ("",), self._image_members)
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


def parse_sample(pieces: Sequence[bytes], series: Sequence[str], image_members: Collection[str]) -> Sample:
    """Split the tar bytes of one sample into its members.

    Args:
        pieces: of each series, the extent of the sample in its shard.
        series: their names; a member's extension begins with a name that is not empty: "nir.npy".
        image_members: extensions, one of which is the image.

    Raises:
        ValueError: the bytes are no tar members, or do not have exactly one image.
    """
    contents: dict[str, bytes] = {}
    key = ""
    for prefix, data in zip(series, pieces, strict=True):
        for member in tar.members(data):
            key, extension = tar.key_and_extension(member.name)
            name = f"{prefix}.{extension}" if prefix else extension
            contents[name] = data[member.offset : member.offset + member.size]
    images = [extension for extension in contents if extension in image_members]
    if len(images) != 1:
        raise ValueError(f"sample {key!r} has {len(images)} image members, not one")
    extension = images[0]
    metadata = contents.get(f"{series[0]}.json" if series[0] else "json", b"")
    return Sample(
        key=key, ext=extension.rpartition(".")[2], image=contents[extension], metadata=metadata, members=contents
    )


class _FirstEtags(dict[int, str]):
    """ETags of shards as this process saw them first."""

    def __reduce__(self) -> tuple[type["_FirstEtags"], tuple[()]]:
        return _FirstEtags, ()


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
