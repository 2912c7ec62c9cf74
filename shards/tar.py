"""Deterministic USTAR files with a byte index, and the parser for them.

Same members, same bytes: modification time 0, owner 0, mode 0644, no names. GNU tar, Python's tarfile,
webdataset and Hugging Face datasets read them; the index makes a sample one ranged read.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import google_crc32c

BLOCK = 512
_RECORD = 20 * BLOCK  # tar pads its end to whole records of 20 blocks
_MAX_NAME = 100
_MAX_SIZE = 8**11 - 1


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file inside a tar buffer."""

    name: str
    offset: int
    """First byte of the content."""
    size: int


@dataclass(frozen=True, kw_only=True)
class Extent:
    """Where a sample lies in its shard: a contiguous run of whole members."""

    offset: int
    size: int
    crc32c: int


class ShardWriter:
    """Append samples to a binary file; `close` ends the archive, then `sha256` and `size` describe the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self.size = 0
        self.num_samples = 0

    def write(self, key: str, members: Mapping[str, bytes]) -> Extent:
        """Append the members `key.extension` in the mapping's order.

        Raises:
            ValueError: a name that USTAR cannot hold, or a key with a dot (readers split names there).
        """
        if "." in key:
            raise ValueError(f"key {key!r} contains a dot")
        data = b"".join(
            header(f"{key}.{extension}", len(content)) + content + _padding(len(content), BLOCK)
            for extension, content in members.items()
        )
        extent = Extent(offset=self.size, size=len(data), crc32c=google_crc32c.value(data))
        self._append(data)
        self.num_samples += 1
        return extent

    def close(self) -> None:
        """Write the two zero blocks that end an archive, padded to a whole record."""
        self._append(bytes(2 * BLOCK))
        self._append(_padding(self.size, _RECORD))

    def sha256(self) -> str:
        """Return the sha256 of all bytes written so far, as hex."""
        return self._sha256.hexdigest()

    def _append(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self.size += len(data)


def header(name: str, size: int) -> bytes:
    """Return the 512 header bytes of a regular file (POSIX.1-1988 ustar).

    Raises:
        ValueError: the name is not ASCII or longer than 100 bytes, or the size is 8 GiB or more.
    """
    if not name.isascii() or not 0 < len(name) <= _MAX_NAME:
        raise ValueError(f"member name {name!r} is not 1 to {_MAX_NAME} ASCII characters")
    if not 0 <= size <= _MAX_SIZE:
        raise ValueError(f"member {name!r} has {size} bytes, limit {_MAX_SIZE}")
    fields = b"".join(
        [
            name.encode().ljust(100, b"\0"),
            b"0000644\0" + b"0000000\0" + b"0000000\0",  # mode, uid, gid
            b"%011o\0" % size,
            b"00000000000\0",  # mtime
            b" " * 8,  # the checksum counts as blanks while it is computed
            b"0" + bytes(100),  # regular file, no link
            b"ustar\0" + b"00",  # magic, version; no owner names, no device numbers
        ]
    ).ljust(BLOCK, b"\0")
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def members(data: bytes | memoryview) -> Iterator[Member]:
    """Iterate over the regular files in tar bytes, from a header on, up to a zero block or the end.

    Raises:
        ValueError: a header is damaged, cut, or not of a regular file.
    """
    position = 0
    while position + BLOCK <= len(data):
        block = bytes(data[position : position + BLOCK])
        if block == bytes(BLOCK):
            return
        name, size = _parse_header(block, position)
        if position + BLOCK + size > len(data):
            raise ValueError(f"member {name!r} is cut: {size} bytes announced")
        yield Member(name=name, offset=position + BLOCK, size=size)
        position += BLOCK + size + -size % BLOCK


def _parse_header(block: bytes, position: int) -> tuple[str, int]:
    try:
        checksum = int(block[148:156].rstrip(b"\0 "), 8)
        size = int(block[124:136].rstrip(b"\0 "), 8)
    except ValueError as error:
        raise ValueError(f"no tar header at byte {position}") from error
    if checksum != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise ValueError(f"damaged tar header at byte {position}")
    if block[156:157] not in (b"0", b"\0"):
        raise ValueError(f"entry at byte {position} is not a regular file")
    return block[:100].rstrip(b"\0").decode("ascii"), size


def _padding(size: int, unit: int) -> bytes:
    return bytes(-size % unit)
