"""The entries of a tar that others wrote, in the order of its bytes.

Understands what `shards.tar` does, and says of each thing that it refuses where it stands. Memory: one piece of the
input, and extension headers of up to a megabyte.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from shards import tar

_MAX_EXTENSION_BYTES = 2**20
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
}
WITHOUT_CONTENT = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))
"""Kinds of entries that have no content, whatever their header says: links, devices, folders, pipes."""


class TarError(ValueError):
    """After this the rest of the file makes no sense."""


class Stream:
    """Bytes that come in pieces; every byte goes into the sha256."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._piece, self._start = b"", 0
        self._sha256 = hashlib.sha256()
        self._num_loaded = 0

    @property
    def position(self) -> int:
        """Bytes taken so far."""
        return self._num_loaded - len(self._piece) + self._start

    def _load(self) -> bool:
        """Go on to the next piece; say whether there is one."""
        self._piece, self._start = next(self._pieces, b""), 0
        self._sha256.update(self._piece)
        self._num_loaded += len(self._piece)
        return bool(self._piece)

    def spans(self, size: int) -> Iterator[bytes]:
        """Yield the next bytes as they lie in the pieces; fewer at the end."""
        while size > 0 and (self._start < len(self._piece) or self._load()):
            span = self._piece[self._start : self._start + size]
            self._start += len(span)
            size -= len(span)
            yield span

    def take(self, size: int) -> bytes:
        """Return the next bytes; fewer at the end."""
        span = self._piece[self._start : self._start + size]
        if len(span) == size:
            self._start += size
            return span
        return b"".join(self.spans(size))

    def finish(self) -> tuple[str, int]:
        """Take the rest; return sha256 (hex) and count of all bytes."""
        while self._load():
            pass
        return self._sha256.hexdigest(), self._num_loaded


class Entry(NamedTuple):
    """One entry of the tar, its extension headers considered, the stream standing at its content."""

    name: str
    size: int
    kind: bytes
    start: int
    """First byte of its first header."""
    headers: bytes
    before: bytes
    """Headers that describe all that follows, between the entry before and this one."""


class Entries:
    """Reads entries; the caller takes each one's content and padding from the stream before the next."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.stream = Stream(pieces)

    def next(self) -> Entry | None:
        """Read up to the next entry's content; None at the end of the archive or file.

        Raises:
            TarError: no tar, a damaged or a cut one.
        """
        start, headers, before = self.stream.position, b"", b""
        told: dict[str, str] = {}
        while (block := self._header_block(bool(headers))) is not None:
            name, size, kind = self._parse(block)
            if kind not in tar.EXTENSIONS:
                return self._entry(name, size, kind, start, headers + block, before, told)
            whole = block + self._extension(size)
            told |= self._told(kind, whole[tar.BLOCK : tar.BLOCK + size])
            if kind == b"g" and not headers:
                start, before = self.stream.position, before + whole
            else:
                headers += whole
        return None

    def _header_block(self, expected: bool) -> bytes | None:
        """Return the next header, None at the end of the archive or file."""
        position = self.stream.position
        block = self.stream.take(tar.BLOCK)
        if block.count(0) == len(block):
            if expected:
                raise TarError(f"is cut: it ends at byte {position}, after a header that announces another")
            return None
        if position == 0:
            for magic, program in _COMPRESSED.items():
                if block.startswith(magic):
                    raise TarError(f"is compressed ({program}): unpack it, samples are read by their byte ranges")
        if len(block) < tar.BLOCK:
            raise TarError(f"is cut in a header at byte {position}" if position else "is not a tar file")
        return block

    def _parse(self, block: bytes) -> tuple[bytes, int, bytes]:
        position = self.stream.position - tar.BLOCK
        try:
            return tar.parse_header(block, position)
        except ValueError as error:
            raise TarError(str(error) if position else f"is not a tar file ({error})") from error

    def _extension(self, size: int) -> bytes:
        if size > _MAX_EXTENSION_BYTES:
            raise TarError(f"has an extension header of {size} bytes, limit {_MAX_EXTENSION_BYTES}")
        padded = size + -size % tar.BLOCK
        content = self.stream.take(padded)
        if len(content) < padded:
            raise TarError(f"is cut in an extension header, at byte {self.stream.position}")
        return content

    def _told(self, kind: bytes, content: bytes) -> dict[str, str]:
        try:
            return tar.read_extension(kind, content)
        except ValueError as error:
            raise TarError(f"{error} (before byte {self.stream.position})") from error

    def _entry(
        self, raw: bytes, size: int, kind: bytes, start: int, headers: bytes, before: bytes, told: dict[str, str]
    ) -> Entry:
        try:
            name, size = tar.resolve(raw, size, told)
        except ValueError as error:
            raise TarError(str(error)) from error
        if kind == b"\0" and name.endswith("/"):
            kind = b"5"  # a folder as V7 wrote it
        if "sparse" in told:
            kind = b"S"
        return Entry(name, 0 if kind in WITHOUT_CONTENT else size, kind, start, headers, before)

    def require_end(self) -> None:
        """Read what follows the end of the archive.

        Raises:
            TarError: it is more than padding.
        """
        position = self.stream.position
        while span := self.stream.take(2**16):
            if span.count(0) != len(span):
                raise TarError(
                    f"goes on after the end of the archive (after byte {position}), where other programs stop reading: "
                    "join tars by `tar --concatenate`, not by `cat`"
                )
