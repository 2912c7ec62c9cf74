"""The tars are those that Python's tarfile would write, and come back member by member."""

import hashlib
import io
import tarfile

import google_crc32c
import pytest
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
