"""Deterministic USTAR files with a byte index, and the parser for them and for what others write.

Same members, same bytes: modification time 0, owner 0, mode 0644, no names. GNU tar, Python's tarfile,
webdataset and Hugging Face datasets read them; the index makes a sample one ranged read.

The parser knows the headers of POSIX (ustar, pax), of GNU tar and of V7, with long names and large sizes; names are
UTF-8. Cost: 2 to 3 µs per member of a buffer.
"""

import hashlib
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import google_crc32c

BLOCK = 512
REGULAR = frozenset((b"0", b"\0", b"7"))
"""Kinds of entries that are plain files: of today, of V7, "contiguous"."""
EXTENSIONS = frozenset((b"x", b"X", b"g", b"L", b"K"))
"""Kinds that describe the entries after them: pax (also Solaris's), pax for all that follow, GNU long name and link."""
_RECORD = 20 * BLOCK  # tar pads its end to whole records of 20 blocks
_MAX_NAME = 100
_MAX_SIZE = 8**11 - 1
_ZEROS = bytes(BLOCK)
_BLANK_CHECKSUM = 8 * ord(" ")  # the checksum counts as blanks while it is computed
_ADLER_MODULUS = 65521
# Size, kind and an empty prefix of the name at their places, see _HEADER; key and extension, which a zero ends.
_PLAIN_HEADER = re.compile(
    rb"(?=.{124}([0-7]{11})[\0 ].{20}[07\0].{188}\0)((?:[^\0]*/)?[^\0/.]+)\.([^\0/]*)\0", re.DOTALL
)
_HEADER = struct.Struct("100s24x12s12x8sc100x6s82x155s12x")  # name, size, checksum, kind, magic, prefix of the name


class Member(NamedTuple):
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
        pieces = [
            piece
            for extension, content in members.items()
            for piece in (header(f"{key}.{extension}", len(content)), content, _padding(len(content), BLOCK))
        ]
        start, crc = self.size, 0
        # Not joined: above 128 kB the copy would be new memory, which the system fills with zeros, for each sample.
        for piece in pieces:
            self._append(piece)
            crc = google_crc32c.extend(crc, piece)
        self.num_samples += 1
        return Extent(offset=start, size=self.size - start, crc32c=crc)

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


def members(data: bytes | memoryview, *, checked: bool = False) -> Iterator[Member]:
    """Iterate over the regular files in tar bytes, from a header on, up to a zero block or the end.

    Args:
        data: whole blocks.
        checked: they are known to be those of a table: the headers' own checksums are not looked at.

    Raises:
        ValueError: a header is damaged, cut, or not of a regular file.
    """
    position, end = 0, len(data)
    told: dict[str, str] = {}
    while position + BLOCK <= end:
        start = position + BLOCK
        block = data[position:start]
        if not block[0] and block == _ZEROS:
            break
        raw, size, kind = parse_header(block, position, checked=checked)
        if kind in EXTENSIONS:
            told |= read_extension(kind, bytes(data[start : start + size]))
            position = start + size + -size % BLOCK
            continue
        name, size = resolve(raw, size, told) if told else (decode_name(raw), size)
        if kind not in REGULAR or "sparse" in told:
            raise ValueError(f"entry {name!r} at byte {position} is not a regular file")
        if start + size > end:
            raise ValueError(f"member {name!r} is cut: {size} bytes announced")
        yield Member(name, start, size)
        position = start + size + -size % BLOCK
        told = {}
    if told:
        raise ValueError("the end comes after an extension header")


def first_file(data: bytes | memoryview) -> tuple[str, str, int] | None:
    """Return key, extension (see `key_and_extension`) and end of the content of the first entry, if it is a plain file.

    None where it takes more to say so (`members`): another kind, a long name, an extension header, a large size or one
    not in 11 digits, a name without key or extension.

    Args:
        data: known to be those of a table; the content begins with the second block.
    """
    found = _PLAIN_HEADER.match(data)
    if found is None or found.end() > _MAX_NAME:
        return None
    size, key, extension = found.groups()
    end = BLOCK + int(size, 8)
    try:
        return (key.decode(), extension.decode().lower(), end) if end <= len(data) else None
    except UnicodeDecodeError:
        return None


def parse_header(block: bytes | memoryview, position: int, *, checked: bool = False) -> tuple[bytes, int, bytes]:
    """Parse a header block; extension headers before it may know better.

    Args:
        block: 512 bytes.
        position: where it lies, for the message.
        checked: see `members`.

    Returns:
        Name, size as it is written (links and folders have no content whatever it says), kind (one character).

    Raises:
        ValueError: it is damaged, or no header at all.
    """
    name, size_field, checksum_field, kind, magic, prefix = _HEADER.unpack(block)
    try:
        checksum = 0 if checked else int(checksum_field.strip(b"\0 "), 8)
        size = int(size_field.strip(b"\0 ") or b"0", 8) if size_field[0] < 0x80 else _large_number(size_field)
    except ValueError as error:
        raise ValueError(f"no tar header at byte {position}") from error
    if size < 0:
        raise ValueError(f"tar header at byte {position} with the size {size}")
    if not checked and not _matches(block, checksum_field, checksum):
        raise ValueError(f"damaged tar header at byte {position}")
    name = name.partition(b"\0")[0]
    if prefix[0] and magic == b"ustar\0":
        name = prefix.partition(b"\0")[0] + b"/" + name
    return name, size, kind


def _matches(block: bytes | memoryview, checksum_field: bytes, checksum: int) -> bool:
    # Adler-32's lower half is 1 + the sum of all bytes: ten times as fast as Python's sum.
    expected = checksum - _BLANK_CHECKSUM + (zlib.adler32(checksum_field) & 0xFFFF)
    return zlib.adler32(block) & 0xFFFF == expected % _ADLER_MODULUS or _signed_checksum(bytes(block)) == checksum


def _large_number(field: bytes) -> int:
    """Parse GNU tar's base 256, for what octal digits cannot hold."""
    if field[0] != 0x80:
        raise ValueError("a negative number")
    return int.from_bytes(field[1:])


def _signed_checksum(block: bytes) -> int:
    """Return the sum as some old programs take it: bytes above 127 are negative."""
    rest = block[:148] + block[156:]
    return sum(rest) - 256 * sum(byte > 127 for byte in rest) + _BLANK_CHECKSUM


def read_extension(kind: bytes, content: bytes) -> dict[str, str]:
    """Return what an extension header says of the next entry: path and size where given, sparse if it is.

    Args:
        kind: one of EXTENSIONS.
        content: of that entry.

    Raises:
        ValueError: it is malformed, not UTF-8, or global and renames or resizes all that follows.
    """
    if kind == b"K":
        return {}
    if kind == b"L":
        return {"path": decode_name(content.partition(b"\0")[0])}
    told = {}
    for keyword, value in _pax_records(content):
        if keyword.startswith((b"GNU.sparse.", b"SCHILY.realsize")):
            told["sparse"] = "yes"
        elif keyword in (b"path", b"size") and kind == b"g":
            raise ValueError(f"a global header sets the {keyword.decode()} of all members")
        elif keyword in (b"path", b"size"):
            told[keyword.decode()] = decode_name(value)
    return told


def _pax_records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield keyword and value of `LENGTH KEYWORD=VALUE` lines; the length is that of the line."""
    position = 0
    while position < len(content):
        digits = content[position : position + 20].partition(b" ")[0]
        end = position + int(digits) if digits.isdigit() else position
        keyword, equals, value = content[position + len(digits) + 1 : end - 1].partition(b"=")
        if not equals or content[end - 1 : end] != b"\n":
            raise ValueError("malformed pax header")
        yield keyword, value
        position = end


def resolve(name: bytes, size: int, told: Mapping[str, str]) -> tuple[str, int]:
    """Return name and size of an entry, its extension headers considered.

    Args:
        name: as in the header.
        size: as in the header.
        told: what `read_extension` returned, of all of them together.

    Raises:
        ValueError: a name that is not UTF-8, a size that is no number.
    """
    digits = told.get("size", "")
    if digits and not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"pax header with the size {digits!r}")
    return told.get("path") or decode_name(name), int(digits) if digits else size


def decode_name(raw: bytes) -> str:
    """Return a member's name.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"member name {raw!r} is not UTF-8: pack the files again under other names") from error


def key_and_extension(name: str) -> tuple[str, str]:
    """Split a member's name as webdataset does: key with its folders, extension in lower case.

    The first dot of the last path part parts them. Both are empty where webdataset passes the member over, having
    no dot, or where there is nothing before the dot.
    """
    folder, slash, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    return (folder + slash + stem, extension.lower()) if stem and dot else ("", "")


def _padding(size: int, unit: int) -> bytes:
    return bytes(-size % unit)
