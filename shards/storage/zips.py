"""Zip files as folders: their members are listed and unpacked one by one, on a disk or in a bucket.

The directory is read with zipfile, the members by ourselves: so one GET brings a small member, faults are
retried range by range (`shards.storage.retry`), and memory stays bounded whatever a member pretends to be.

Cost: to list, zipfile's directory (under 1 KB per member, while it is read) and two or three GETs; to look a member up,
a HEAD; to fetch it, a HEAD and a GET per 4 MiB; both, for the first member of an archive, its listing. 37 bytes per
member are kept of the archives used last (`KEPT_MEMBERS` in all), so that not every fetch reads the directory again.
"""

import contextlib
import io
import struct
import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from shards.keyed import hash64
from shards.storage.listing import FileInfo, stat
from shards.storage.reading import SourceChangedError, read_range, removed_on_failure
from shards.storage.retry import StorageError

KEPT_MEMBERS = 4_000_000
"""Members of the archives used last whose places are kept: at most 150 MB (one archive is kept whatever it holds)."""
READ_BYTES = 4 * 2**20
"""Of one GET from an archive."""
WRITE_BYTES = 2**20
"""Unpacked bytes in memory at a time."""
TAIL_BYTES = 2**17
"""Of the end of an archive, read first: holds the directory of some 1000 members, and any comment."""
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_HEADER_GUESS_BYTES = 2**10
_ENCRYPTED = 0x1 | 0x40


@dataclass(frozen=True, kw_only=True, eq=False)
class _Directory:
    """Where the members of one archive lie, sorted by `keys`, the hashes of their names; arrays of one length."""

    keys: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    stored: NDArray[np.int64]
    sizes: NDArray[np.int64]
    crcs: NDArray[np.uint32]
    methods: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class _Member:
    offset: int
    stored: int
    size: int
    crc: int
    method: int


_kept: OrderedDict[tuple[str, str], _Directory] = OrderedDict()
_keeping = threading.Lock()
# Held while a directory is read: threads that ask for members of one archive at once must not all read it.
_reading = threading.Lock()


def list_zip(url: str) -> Iterator[FileInfo]:
    """List an archive's members (files, not folders) in order of their names; hidden names are left out.

    A member's ETag is made of its CRC, its size and the archive's ETag; its time is the archive's.

    Raises:
        ValueError: no zip file, a broken directory, an encrypted member, a name that stands twice or leads out of
            the archive (before the first member is yielded, as all the errors).
        SourceChangedError: the archive was replaced meanwhile.
        FileNotFoundError: it is not there.
        StorageError: the store kept failing.
    """
    archive = stat(url)
    members = _read_directory(url, archive)
    return (
        FileInfo(
            path=info.filename,
            size=info.file_size,
            etag=_member_etag(info.CRC, info.file_size, archive),
            modified_s=archive.modified_s,
        )
        for info in members
        if not info.is_dir() and "/." not in f"/{info.filename}"
    )


def stat_member(url: str, member: str) -> FileInfo:
    """Return size and ETag of one member of an archive, as `list_zip` lists it.

    Raises:
        FileNotFoundError: the archive or the member is not there.
        ValueError: no zip file, or a broken one (see `list_zip`).
        SourceChangedError: the archive was replaced meanwhile.
        StorageError: the store kept failing.
    """
    archive = stat(url)
    found = _find(_directory(url, archive), member)
    if found is None:
        raise FileNotFoundError(f"{url} has no member {member!r}")
    etag = _member_etag(found.crc, found.size, archive)
    return FileInfo(path=member, size=found.size, etag=etag, modified_s=archive.modified_s)


def _member_etag(crc: int, size: int, archive: FileInfo) -> str:
    return f"{crc:08x}-{size}-{archive.etag}"


def fetch_member(url: str, member: str, target: Path, *, etag: str | None = None) -> None:
    """Unpack one member of an archive into a local file; size and CRC are checked.

    Args:
        url: the archive.
        member: name as listed by `list_zip`.
        target: local path, replaced; removed again if anything fails.
        etag: the member's as listed, if it must still be the same.

    Raises:
        ValueError: the member is damaged, larger than announced, or compressed in an unknown way; or the
            directory is broken (see `list_zip`).
        SourceChangedError: the archive is gone, or no longer the one that was listed.
        StorageError: the store kept failing.
        OSError: the local disk is full, or not writable.
    """
    with removed_on_failure(target), target.open("wb") as file:
        try:
            archive = stat(url)
            if etag is not None and not etag.endswith(f"-{archive.etag}"):
                raise SourceChangedError.of(url, f"its ETag is {archive.etag}, the member was listed with {etag}")
            found = _find(_directory(url, archive), member)
            if found is None or (etag is not None and etag != _member_etag(found.crc, found.size, archive)):
                raise SourceChangedError.of(url, f"its member {member!r} is not the one that was listed")
            _unpack_same(url, member, found, archive, file)
        except FileNotFoundError as error:
            raise SourceChangedError.of(url, "it is not there any more") from error


def _unpack_same(url: str, member: str, found: _Member, archive: FileInfo, file: BinaryIO) -> None:
    try:
        _unpack(url, member, found, file)
    except ValueError as error:
        if stat(url).etag != archive.etag:
            raise SourceChangedError.of(url, "it was replaced") from error
        raise


def _read_directory(url: str, archive: FileInfo) -> list[zipfile.ZipInfo]:
    with _bad_archive(url):
        with _RangeFile(url, archive.size) as file, zipfile.ZipFile(file) as opened:
            members = sorted(opened.infolist(), key=lambda info: info.filename)
        previous = None
        for info in members:
            _require_sane(info, previous, archive.size)
            previous = info.filename
    if stat(url).etag != archive.etag:
        raise SourceChangedError.of(url, "it was replaced")
    return members


def _require_sane(info: zipfile.ZipInfo, previous: str | None, archive_size: int) -> None:
    name = info.filename
    if info.flag_bits & _ENCRYPTED:
        raise ValueError(f"member {name!r} is encrypted")
    if name == previous:
        raise ValueError(f"member {name!r} stands in it twice")
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"member {name!r} leads out of it")
    if info.header_offset < 0 or info.header_offset + info.compress_size > archive_size:
        raise ValueError(f"member {name!r} lies outside of it: the archive is cut or damaged")


@contextlib.contextmanager
def _bad_archive(url: str) -> Iterator[None]:
    """Turn what zipfile raises over a broken archive into a ValueError of one line."""
    try:
        yield
    except (StorageError, SourceChangedError):
        raise
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, ValueError) as error:
        raise ValueError(f"{url} cannot be read as a zip file: {' '.join(str(error).split())[:300]}") from error


class _RangeFile(io.RawIOBase):
    """A stored file as a seekable one; each read is a range read, but for the end, which zipfile reads in bits."""

    def __init__(self, url: str, size: int) -> None:
        self._url, self._size, self._at = url, size, 0
        self._tail_at = max(0, size - TAIL_BYTES)
        self._tail = read_range(url, self._tail_at, size - self._tail_at)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if at < 0:
            # Both an OSError, which zipfile looks for, and a ValueError.
            raise io.UnsupportedOperation(f"a place before its beginning is referred to: {at}")
        self._at = at
        return at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        if self._at >= self._tail_at:
            begin = self._at - self._tail_at
            data = self._tail[begin : begin + len(view)]
        else:
            data = read_range(self._url, self._at, min(len(view), self._size - self._at))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def _directory(url: str, archive: FileInfo) -> _Directory:
    key = (url, archive.etag)
    if (known := _known(key)) is not None:
        return known
    with _reading:
        if (known := _known(key)) is not None:
            return known
        directory = _compact(_read_directory(url, archive))
        with _keeping:
            _kept[key] = directory
            while len(_kept) > 1 and sum(len(each.keys) for each in _kept.values()) > KEPT_MEMBERS:
                _kept.popitem(last=False)
    return directory


def _known(key: tuple[str, str]) -> _Directory | None:
    with _keeping:
        if key in _kept:
            _kept.move_to_end(key)
        return _kept.get(key)


def _compact(members: list[zipfile.ZipInfo]) -> _Directory:
    count = len(members)
    keys = np.fromiter((hash64(info.filename) for info in members), np.uint64, count)
    assert len(np.unique(keys)) == count, "two names with one 64-bit hash"
    order = np.argsort(keys, kind="stable")
    return _Directory(
        keys=keys[order],
        offsets=np.fromiter((info.header_offset for info in members), np.int64, count)[order],
        stored=np.fromiter((info.compress_size for info in members), np.int64, count)[order],
        sizes=np.fromiter((info.file_size for info in members), np.int64, count)[order],
        crcs=np.fromiter((info.CRC for info in members), np.uint32, count)[order],
        methods=np.fromiter((min(info.compress_type, 255) for info in members), np.uint8, count)[order],
    )


def _find(directory: _Directory, member: str) -> _Member | None:
    key = np.uint64(hash64(member))
    at = int(np.searchsorted(directory.keys, key))
    if at == len(directory.keys) or directory.keys[at] != key:
        return None
    return _Member(
        offset=int(directory.offsets[at]),
        stored=int(directory.stored[at]),
        size=int(directory.sizes[at]),
        crc=int(directory.crcs[at]),
        method=int(directory.methods[at]),
    )


def _unpack(url: str, member: str, found: _Member, file: BinaryIO) -> None:
    """Write a member's bytes to a file, never more than it announces.

    Raises:
        ValueError: damaged, larger than announced, or compressed in an unknown way.
    """
    crc = written = 0
    pieces = _pieces(url, found)
    while True:
        with _bad_archive(f"{url}: member {member!r}"):
            piece = next(pieces, None)
            if piece is None:
                break
            written, crc = written + len(piece), zlib.crc32(piece, crc)
            if written > found.size:
                raise ValueError(f"it holds more than the {found.size} bytes that it announces")
        file.write(piece)
    if written != found.size or crc != found.crc:
        raise ValueError(f"{url}: member {member!r} is damaged: {written} of {found.size} bytes, CRC {crc:08x}")


def _pieces(url: str, found: _Member) -> Iterator[bytes]:
    if found.method == zipfile.ZIP_STORED:
        yield from _stored(url, found)
        return
    if found.method != zipfile.ZIP_DEFLATED:
        raise ValueError(f"its compression method {found.method} is not known here: stored and deflate are")
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    for block in _stored(url, found):
        data, piece = block, b""
        # As long as the limit was reached there may be more, even if all of the block was taken in.
        while (data or len(piece) == WRITE_BYTES) and not unpacker.eof:
            piece = unpacker.decompress(data, WRITE_BYTES)
            data = unpacker.unconsumed_tail
            yield piece


def _stored(url: str, found: _Member) -> Iterator[bytes]:
    """Yield a member's stored bytes; its local header, whose length only it knows itself, comes with the first GET."""
    block = read_range(url, found.offset, min(_HEADER_GUESS_BYTES + found.stored, READ_BYTES))
    begin = _data_begin(block)
    block = block[begin : begin + found.stored]
    at, left = found.offset + begin, found.stored
    while left:
        block = block or read_range(url, at, min(left, READ_BYTES))
        if not block:
            raise ValueError("the archive ends within it")
        yield block
        at, left, block = at + len(block), left - len(block), b""


def _data_begin(block: bytes) -> int:
    """Return the length of the local header at the beginning of a block."""
    if len(block) < _LOCAL_HEADER.size or not block.startswith(b"PK\x03\x04"):
        raise ValueError("there is no file header where the directory says")
    *_, name_bytes, extra_bytes = _LOCAL_HEADER.unpack_from(block)
    return int(_LOCAL_HEADER.size + name_bytes + extra_bytes)
