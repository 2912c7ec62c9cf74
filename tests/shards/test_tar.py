"""The tars are those that Python's tarfile would write, and come back member by member, as do those of others."""

import hashlib
import io
import re
import tarfile

import google_crc32c
import pytest
import webdataset.tariterators
from hypothesis import given
from hypothesis import strategies as st

from shards import tar

KEYS = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=40)


def write(samples):
    file = io.BytesIO()
    writer = tar.ShardWriter(file)
    extents = [writer.write(key, members) for key, members in samples]
    writer.close()
    assert writer.size == len(file.getvalue())
    assert writer.sha256() == hashlib.sha256(file.getvalue()).hexdigest()
    return file.getvalue(), extents


@given(st.lists(st.tuples(KEYS, st.binary(max_size=2000), st.binary(max_size=700)), max_size=6))
def test_equals_tarfile_byte_by_byte(samples):
    data, _ = write([(key, {"jpg": image, "json": text}) for key, image, text in samples])
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for key, image, text in samples:
            for name, content in [(f"{key}.jpg", image), (f"{key}.json", text)]:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    assert data == expected.getvalue()


@given(st.lists(st.tuples(KEYS, st.binary(max_size=2000)), min_size=1, max_size=6))
def test_extents_cut_whole_samples(samples):
    data, extents = write([(key, {"npy": image}) for key, image in samples])
    for (key, image), extent in zip(samples, extents, strict=True):
        cut = data[extent.offset : extent.offset + extent.size]
        assert google_crc32c.value(cut) == extent.crc32c
        (member,) = tar.members(cut)
        assert member.name == f"{key}.npy"
        assert cut[member.offset : member.offset + member.size] == image


def test_refuses_names_that_readers_would_split():
    with pytest.raises(ValueError, match="contains a dot"):
        write([("a.b", {"jpg": b""})])


@pytest.mark.parametrize("name", ["", "x" * 101, "ü.jpg"])
def test_refuses_names_that_ustar_cannot_hold(name):
    with pytest.raises(ValueError, match="ASCII"):
        tar.header(name, 0)


def test_damaged_headers_are_named():
    data, _ = write([("key", {"jpg": b"x" * 600})])
    with pytest.raises(ValueError, match="damaged tar header at byte 0"):
        list(tar.members(b"y" + data[1:]))
    with pytest.raises(ValueError, match=r"'key.jpg' is cut: 600 bytes"):
        list(tar.members(data[:1024]))


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@given(
    st.lists(st.tuples(st.text("ab0é./-", min_size=1, max_size=230), st.binary(max_size=1500)), min_size=1, max_size=5)
)
def test_members_of_all_formats_come_back(tar_format, files):
    out = io.BytesIO()
    expected = []
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name.strip("/") or "a")
            info.size = len(content)
            try:
                archive.addfile(info, io.BytesIO(content))
            except ValueError:  # longer than USTAR can hold
                continue
            expected.append((info.name, content))
    data = out.getvalue()
    found = [(each.name, data[each.offset : each.offset + each.size]) for each in tar.members(memoryview(data))]
    assert found == expected
    assert list(tar.members(data, checked=True)) == list(tar.members(data))
    first = tar.first_file(data)
    if first:
        assert first == (*tar.key_and_extension(expected[0][0]), 512 + len(expected[0][1]))
    # A long name, or one that is not ASCII, takes more than its header, or two fields of it; one without a dot belongs
    # to no sample.
    name = expected[0][0] if expected else ""
    assert first or not name.isascii() or len(name) > 99 or not any(tar.key_and_extension(name))


@given(st.binary(min_size=512, max_size=1200).filter(lambda data: any(data[:512])))
def test_no_bytes_are_taken_for_a_header_by_chance(data):
    with pytest.raises(ValueError, match="tar header at byte 0"):
        list(tar.members(data))


def header_with(place, field):
    """Return a header with another field and a right checksum."""
    block = bytearray(tar.header("a.jpg", 0))
    block[place : place + len(field)] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (header_with(124, b"-0000000001"), "with the size -1"),
        (header_with(124, b"\xff" * 12), "no tar header"),
        (header_with(124, b"12345678901"), "no tar header"),
        (header_with(156, b"5"), "entry 'a.jpg' at byte 0 is not a regular file"),
        (header_with(156, b"L"), "the end comes after an extension header"),
        (header_with(0, b"\xff"), r"member name b'\xff.jpg' is not UTF-8"),
    ],
)
def test_headers_that_are_refused(block, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        list(tar.members(block))
    assert tar.first_file(block + bytes(512)) is None


@pytest.mark.parametrize(
    ("field", "is_plain"),
    [(b"00000001274\0", True), (b"1274 \0\0\0\0\0\0\0", False), (b"\x80" + bytes(9) + b"\x02\xbc", False)],
)
def test_sizes_are_written_in_three_ways(field, is_plain):
    data = header_with(124, field) + b"x" * 700 + bytes(1024 - 700)
    expected = tar.Member("a.jpg", 512, 700)
    assert list(tar.members(data)) == [expected]
    assert tar.first_file(data) == (("a", "jpg", 1212) if is_plain else None)
    assert tar.first_file(data[:1024]) is None, "cut"


def test_a_checksum_of_signed_bytes_as_old_programs_write_it():
    block = bytearray(header_with(0, "é".encode()))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(byte - 256 if byte > 127 else byte for byte in block)
    assert [member.name for member in tar.members(bytes(block))] == ["éjpg"]


@given(st.text("aB.é/_ 0", max_size=20))
def test_key_and_extension_are_those_of_webdataset(name):
    key, extension = webdataset.tariterators.base_plus_ext(name)
    if name.rpartition("/")[2].startswith("."):  # webdataset's key would be the folder
        key = None
    assert tar.key_and_extension(name) == (("", "") if key is None else (key, extension.lower()))
