"""Zip files as folders: every member as it was, or one line that says what is wrong with the archive."""

import io
import struct
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards import storage
from shards.storage import zips
from shards.storage.reading import SourceChangedError
from shards.storage.zips import fetch_member, list_zip, stat_member

NOISE = np.random.default_rng(0).bytes(200_000)
FILES = {
    "b/2.tif": NOISE,
    "b/1.tif": bytes(3_000_000),
    "a.tif": b"a",
    "empty.tif": b"",
    "ü/日本.tif": b"named in UTF-8",
    "z.tif": NOISE[::-1] + bytes(1_000_000) + NOISE,
}


def archive(files=FILES, method=zipfile.ZIP_DEFLATED, comment=b""):
    """Make a zip file of names and contents."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that stand twice
        file.comment = comment
        for name, data in files.items() if isinstance(files, dict) else files:
            file.writestr(zipfile.ZipInfo(name) if name.endswith("/") else name, data)
    return buffer.getvalue()


def write(root, data, name="x.zip"):
    url = storage.join(str(root), name)
    storage.write_bytes(url, data)
    return url


@pytest.fixture(params=["disk", "bucket"])
def root(request, tmp_path):
    if request.param == "disk":
        return str(tmp_path / "root")
    return storage.join(request.getfixturevalue("object_store"), "zips", tmp_path.name)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_listed_and_unpacked(root, tmp_path, monkeypatch, method):
    monkeypatch.setattr(zips, "READ_BYTES", 70_000)
    monkeypatch.setattr(zips, "WRITE_BYTES", 50_000)
    hidden = {"folder/": b"", ".x/y.tif": b"", "__MACOSX/._a.tif": b""}
    url = write(root, archive(FILES | hidden, method, comment=b"as delivered"))
    members = list(list_zip(url))
    assert [info.path for info in members] == sorted(FILES)
    for info in members:
        fetch_member(url, info.path, tmp_path / "member", etag=info.etag)
        assert (tmp_path / "member").read_bytes() == FILES[info.path]
        assert info.size == len(FILES[info.path])
        assert info.modified_s == storage.stat(url).modified_s


def test_an_etag_changes_with_content_and_archive(tmp_path):
    one = {info.path: info.etag for info in list_zip(write(tmp_path, archive({"a": b"1", "b": b"2"})))}
    two = {info.path: info.etag for info in list_zip(write(tmp_path, archive({"a": b"1", "b": b"3"})))}
    assert one["a"] != two["a"]  # the archive is another file
    assert one["a"].split("-")[:2] == two["a"].split("-")[:2]
    assert one["b"].split("-")[0] != two["b"].split("-")[0]


def test_members_of_many_archives_need_few_requests(faulty_store, tmp_path):
    urls = [write(faulty_store.url, archive(), f"{number}.zip") for number in range(3)]
    for url in urls:
        list(list_zip(url))
    assert faulty_store.proxy.count("GET", r"\.zip") == 3
    for url in [*urls, *urls]:
        fetch_member(url, "a.tif", tmp_path / "member")
    before = faulty_store.proxy.count("GET", r"\.zip")
    fetch_member(urls[0], "b/2.tif", tmp_path / "member")
    assert faulty_store.proxy.count("GET", r"\.zip") == before + 1


def test_a_member_is_looked_up_as_it_is_listed(root, monkeypatch):
    url = write(root, archive())
    listed = list(list_zip(url))
    read, original = [], zips._read_directory

    def counted(*about):
        read.append(about)
        return original(*about)

    monkeypatch.setattr(zips, "_read_directory", counted)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda info: stat_member(url, info.path), listed)) == listed
    assert len(read) == 1
    with pytest.raises(FileNotFoundError, match="no member 'b'"):
        stat_member(url, "b")
    with pytest.raises(FileNotFoundError):
        stat_member(f"{url}x", "a.tif")


def test_kept_directories_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(zips, "KEPT_MEMBERS", 2 * len(FILES))
    for number in range(5):
        url = write(tmp_path, archive(), f"{number}.zip")
        fetch_member(url, "a.tif", tmp_path / "member")
    assert len(zips._kept) == 2
    assert (url, storage.stat(url).etag) in zips._kept


def test_cut_bodies_are_asked_for_again(faulty_store, tmp_path, monkeypatch):
    monkeypatch.setattr("shards.storage.retry.FIRST_WAIT_S", 0.01)
    monkeypatch.setattr("shards.storage.retry.LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(zips, "READ_BYTES", 70_000)
    url = write(faulty_store.url, archive())
    cuts = faulty_store.proxy.add("cut", method="GET", probability=0.4, seed=1, num_bytes=1000)
    for info in list_zip(url):
        fetch_member(url, info.path, tmp_path / "member", etag=info.etag)
        assert (tmp_path / "member").read_bytes() == FILES[info.path]
    assert cuts.num_hit


def patched(data, signature, offset, layout, value):
    """Write a value over a field of the first header of a kind."""
    at = data.index(signature) + offset
    return data[:at] + struct.pack(layout, value) + data[at + struct.calcsize(layout) :]


ONE = archive({"a.tif": NOISE})
BROKEN = {
    "no zip": (b"II*\0" + NOISE, "not a zip file"),
    "empty": (b"", "not a zip file"),
    "cut at the end": (ONE[:-30], "not a zip file"),
    "cut at the beginning": (ONE[1000:], "cut or damaged|refer|Bad|bad"),
    "encrypted": (patched(ONE, b"PK\x01\x02", 8, "<H", 1), "'a.tif' is encrypted"),
    "strongly encrypted": (patched(ONE, b"PK\x01\x02", 8, "<H", 0x41), "'a.tif' is encrypted"),
    "newer": (patched(ONE, b"PK\x01\x02", 6, "<H", 99), "version 9.9"),
    "outside": (patched(ONE, b"PK\x01\x02", 20, "<L", 10**9), "lies outside of it"),
    "bad directory": (ONE.replace(b"PK\x01\x02", b"PK\x09\x09"), "cannot be read as a zip file"),
    "twice": (archive([("a.tif", b"1"), ("a.tif", b"2")]), "'a.tif' stands in it twice"),
    "absolute": (archive({"/etc/passwd": b"1"}), "leads out of it"),
    "upwards": (archive({"x/../../passwd": b"1"}), "leads out of it"),
}


@pytest.mark.parametrize(("data", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_archive_is_told_in_one_line(tmp_path, data, message):
    url = write(tmp_path, data)
    with pytest.raises(ValueError, match=message) as caught:
        list_zip(url)
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)


DAMAGED = {
    "CRC": (patched(ONE, b"PK\x01\x02", 16, "<L", 1), "damaged"),
    "bomb": (patched(ONE, b"PK\x01\x02", 24, "<L", 1000), "more than the 1000 bytes that it announces"),
    "too small": (patched(ONE, b"PK\x01\x02", 24, "<L", 300_000), "damaged: 200000 of 300000 bytes"),
    "method": (patched(ONE, b"PK\x01\x02", 10, "<H", 9), "method 9 is not known"),
    "bzip2": (archive({"a.tif": NOISE}, zipfile.ZIP_BZIP2), "method 12 is not known"),
    "no header": (b"XX" + ONE[2:], "no file header"),
    "deflate": (ONE[:35] + bytes([ONE[35] ^ 0xFF]) + ONE[36:], "cannot be read|damaged"),
    "overlong header": (patched(ONE, b"PK\x03\x04", 28, "<H", 60_000), "cannot be read|damaged"),
}


@pytest.mark.parametrize(("data", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_member_is_told_in_one_line(tmp_path, monkeypatch, data, message):
    monkeypatch.setattr(zips, "WRITE_BYTES", 500)
    url = write(tmp_path, data)
    members = list(list_zip(url))
    with pytest.raises(ValueError, match=message) as caught:
        fetch_member(url, "a.tif", tmp_path / "member", etag=members[0].etag)
    assert url in str(caught.value)
    assert "'a.tif'" in str(caught.value)
    assert not (tmp_path / "member").exists()


def test_a_bomb_is_stopped_at_what_it_announces(tmp_path, monkeypatch):
    monkeypatch.setattr(zips, "WRITE_BYTES", 4096)
    largest = []
    real = zips._pieces
    monkeypatch.setattr(zips, "_pieces", lambda *a: (largest.append(len(p)) or p for p in real(*a)))
    url = write(tmp_path, patched(archive({"a.tif": bytes(10**8)}), b"PK\x01\x02", 24, "<L", 10_000))
    with pytest.raises(ValueError, match="more than the 10000 bytes"):
        fetch_member(url, "a.tif", tmp_path / "member")
    assert max(largest) <= 4096
    assert len(largest) <= 4


@pytest.mark.parametrize("now", [archive({"a.tif": b"other"}), archive({"b.tif": b"a"}), None, b"broken"])
def test_an_archive_that_changed_since_is_refused(root, tmp_path, now):
    url = write(root, archive())
    info = next(iter(list_zip(url)))
    storage.remove(url) if now is None else storage.write_bytes(url, now)
    with pytest.raises(SourceChangedError, match=r"changed \(or vanished\)"):
        fetch_member(url, info.path, tmp_path / "member", etag=info.etag)
    assert not (tmp_path / "member").exists()


def test_an_archive_that_changes_meanwhile_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(zips, "READ_BYTES", 10_000)
    url = write(tmp_path, archive())
    info = next(info for info in list_zip(url) if info.path == "b/2.tif")
    real, calls = zips.read_range, []

    def replace_after_two(*arguments):
        calls.append(1)
        if len(calls) == 3:
            storage.write_bytes(url, archive({"b/2.tif": NOISE[::-1]}, zipfile.ZIP_STORED))
        return real(*arguments)

    fetch_member(url, "a.tif", tmp_path / "member")  # the directory is known from here on
    monkeypatch.setattr(zips, "read_range", replace_after_two)
    with pytest.raises(SourceChangedError, match="it was replaced"):
        fetch_member(url, "b/2.tif", tmp_path / "member", etag=info.etag)


def test_a_missing_target_folder_is_not_the_archives_fault(tmp_path):
    url = write(tmp_path, archive())
    with pytest.raises(FileNotFoundError, match="nowhere"):
        fetch_member(url, "a.tif", tmp_path / "nowhere" / "member")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_bytes_give_members_or_one_line(tmp_path, data):
    """A member comes out with the bytes of which the directory holds the CRC, or not at all."""
    content = bytearray(archive({"a.tif": b"some pixels" * 9, "b/c.tif": NOISE[:300]}))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    url = write(tmp_path, bytes(content[: data.draw(st.integers(len(content) - 40, len(content)))]))
    told = []
    try:
        members = list(list_zip(url))
    except ValueError as error:
        members = []
        told.append(str(error))
    for info in members:
        try:
            fetch_member(url, info.path, tmp_path / "member", etag=info.etag)
        except ValueError as error:
            told.append(str(error))
        else:
            unpacked = (tmp_path / "member").read_bytes()
            assert len(unpacked) == info.size
            assert f"{zlib.crc32(unpacked):08x}" == info.etag.split("-")[0]
    assert all(line.startswith(url) and "\n" not in line for line in told)
