"""What a pass over a foreign tar says is what Python's tarfile and webdataset see; what is refused is told by name."""

import hashlib
import io
import shutil
import subprocess
import tarfile
from collections import defaultdict

import google_crc32c
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from shards import tar
from shards.indexing.scan import scan_tar
from shards.indexing.scan_table import MAX_LABEL
from tests.shards.foreign_tars import files_of, sample, tar_bytes

LONG = "folder/" * 40
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
KEYS = st.text("ab0é/_-", min_size=1, max_size=150).filter(
    lambda key: not key.startswith("/") and "//" not in key and not key.endswith("/") and "/_" not in f"/{key}"
)
MEMBERS = st.dictionaries(st.sampled_from(["jpg", "JSON", "seg.png", "cls", ""]), st.binary(max_size=1500), min_size=1)


def scanned(data, label="", piece=1000):
    """Scan bytes in small pieces, so that headers and contents cross their borders."""
    return scan_tar([data[start : start + piece] for start in range(0, len(data), piece)], label)


def faults(data, label=""):
    return scanned(data, label).faults.told


def check_samples(data, expected, scan):
    """Compare every figure of a scan with the bytes themselves; `expected` is {key: {extension: content}}."""
    assert scan.faults.told == []
    assert (scan.size, scan.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    rows = scan.samples.to_pylist()
    assert [row["key"] for row in rows] == list(expected)
    for row, members in zip(rows, expected.values(), strict=True):
        extent = data[row["offset"] : row["offset"] + row["size"]]
        assert google_crc32c.value(extent) == row["crc32c"]
        found = {tar.key_and_extension(member.name): member for member in tar.members(extent)}
        assert list(found) == [(row["key"], extension) for extension in members]
        for told, member, content in zip(row["members"], found.values(), members.values(), strict=True):
            assert extent[member.offset : member.offset + member.size] == content
            assert data[told["offset"] : told["offset"] + told["size"]] == content
            assert told["sha256"] == hashlib.sha256(content).digest()
            assert told["offset"] == row["offset"] + member.offset


@given(
    st.dictionaries(KEYS, MEMBERS, min_size=1, max_size=5),
    st.sampled_from(FORMATS[1:]),
    st.integers(300, 5000),
)
def test_random_members_come_back(samples, tar_format, piece):
    data = tar_bytes(files_of(samples), tar_format)
    expected = {
        key: {extension.lower(): content for extension, content in members.items()} for key, members in samples.items()
    }
    check_samples(data, expected, scanned(data, piece=piece))


@pytest.mark.parametrize("tar_format", FORMATS)
def test_long_names_in_every_format(tar_format):
    names = [f"{'x' * 90}/{'y' * 60}", "plain"]
    if tar_format != tarfile.USTAR_FORMAT:
        names += [LONG + "é", LONG + "z" * 150]
    samples = {name: sample(number) for number, name in enumerate(names)}
    data = tar_bytes(files_of(samples), tar_format)
    check_samples(data, samples, scanned(data))


@pytest.mark.parametrize("tar_format", ["gnu", "oldgnu", "pax", "posix", "ustar", "v7"])
def test_what_gnu_tar_writes(tmp_path, tar_format):
    program = shutil.which("tar")
    if program is None:
        pytest.skip("no tar program")
    name = "short" if tar_format in ("v7", "ustar") else "é" * 80 + "long" * 10
    samples = {f"./data/{name}{number}": sample(number) for number in range(3)}
    for file, content in files_of(samples):
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    out = tmp_path / "made.tar"
    command = [program, f"--format={tar_format}", "--sort=name", "-cf", str(out), "-C", str(tmp_path), "./data"]
    subprocess.run(command, check=True)
    data = out.read_bytes()
    expected = {key: dict(sorted(members.items())) for key, members in samples.items()}
    scan = scanned(data)
    check_samples(data, expected, scan)
    assert (scan.num_passed_over, scan.passed_over.rstrip("/")) == (1, "./data")  # the folder


def test_what_webdataset_writes_and_reads(tmp_path):
    samples = {f"d.ir/{number}": sample(number) for number in range(4)}
    pattern = str(tmp_path / "shard-%d.tar")
    with webdataset.ShardWriter(pattern, maxcount=100, verbose=0) as writer:
        for key, members in samples.items():
            writer.write({"__key__": key, **members})
    data = (tmp_path / "shard-0.tar").read_bytes()
    read = webdataset.WebDataset(str(tmp_path / "shard-0.tar"), shardshuffle=False)
    expected = {
        each["__key__"]: {name: content for name, content in each.items() if not name.startswith("__")} for each in read
    }
    assert expected.keys() == samples.keys()
    check_samples(data, expected, scanned(data))


def test_a_global_header_before_or_inside_a_sample():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "c0ffee"}) as archive:
        for name, content in files_of({"a": sample(0)}):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    data = out.getvalue()
    check_samples(data, {"a": sample(0)}, scanned(data))
    # Joined by hand: the header that describes all that follows, between two members of a sample.
    header = data[:1024]
    members = [tar_bytes([file])[: 512 + len(file[1]) + -len(file[1]) % 512] for file in files_of({"a": sample(0)})]
    joined = members[0] + header + members[1] + members[2]
    check_samples(joined, {"a": sample(0)}, scanned(joined))


def test_what_belongs_to_no_sample_is_counted():
    files = [("d/", b""), ("README", b"text"), ("d/.hidden.jpg", b"x"), ("__meta__.json", b"{}"), ("d/__x.json", b"")]
    data = tar_bytes([*files, *files_of({"d/a": sample(0)}), ("LICENSE", b"x" * 600), *files_of({"d/b": sample(1)})])
    scan = scanned(data)
    check_samples(data, {"d/a": sample(0), "d/b": sample(1)}, scan)
    assert (scan.num_passed_over, scan.passed_over) == (6, "d/")


def test_a_missing_end_is_no_fault():
    data = tar_bytes(files_of({"a": sample(0), "b": sample(1)}))
    last = scanned(data).samples.to_pylist()[-1]
    end = last["offset"] + last["size"]
    for size in (end, end + 100, end + 512, end + 700, end + 1024):
        check_samples(data[:size], {"a": sample(0), "b": sample(1)}, scanned(data[:size]))


@given(st.data())
def test_a_cut_tar_is_told_or_whole(drawn):
    files = files_of({"a": {"jpg": b"x" * 700, "cls": b"1"}, "b": {"jpg": b"y" * 1024, "cls": b""}})
    data = tar_bytes(files, drawn.draw(st.sampled_from(FORMATS)))
    members = [member for row in scanned(data).samples.to_pylist() for member in row["members"]]
    ends = [member["offset"] + member["size"] + -member["size"] % 512 for member in members]
    size = drawn.draw(st.integers(1, ends[-1]))
    scan = scanned(data[:size])
    # A tar that ends between two members is whole, as far as anybody can tell.
    assert bool(scan.faults.count) == (size not in ends), scan.faults.told


def test_labels():
    texts = {"a": b" harbour\n", "b": "Dünen".encode(), "c": b"\xff", "d": b"x" * (MAX_LABEL + 1), "e": b" "}
    samples = {key: {"jpg": b"", "txt": text} for key, text in texts.items()} | {"f": {"jpg": b""}}
    rows = scanned(tar_bytes(files_of(samples)), "txt").samples.select(["label", "label_fault"]).to_pylist()
    assert [row["label"] for row in rows] == ["harbour", "Dünen", None, None, None, None]
    assert [bool(row["label_fault"]) for row in rows] == [False, False, True, True, True, False]


def with_kind(kind, size=0, name="b.jpg"):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, "a.jpg"
    return info.tobuf(tarfile.GNU_FORMAT)


WHOLE = tar_bytes(files_of({"a": {"jpg": b"x" * 600}}))[:1536]
REFUSED = [
    (WHOLE + with_kind(tarfile.LNKTYPE), "member 'b.jpg' is a hard link"),
    (WHOLE + with_kind(tarfile.SYMTYPE), "member 'b.jpg' is a symbolic link"),
    (WHOLE + with_kind(tarfile.CHRTYPE), "member 'b.jpg' is a device"),
    (WHOLE + with_kind(tarfile.FIFOTYPE), "member 'b.jpg' is a pipe"),
    (WHOLE + with_kind(tarfile.GNUTYPE_SPARSE), "member 'b.jpg' is sparse"),
    (WHOLE + with_kind(b"~"), "member 'b.jpg' is of the unknown kind b'~'"),
    (tar_bytes([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.cls", b"3")]), "members of sample 'a' do not stand together"),
    (tar_bytes([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.jpg", b"3")]), "2 samples have the key 'a'"),
    (tar_bytes([("a.jpg", b"1"), ("a.JPG", b"2")]), "sample 'a' has two members called 'jpg' (the second is 'a.JPG')"),
    (
        tar_bytes([("a.jpg", b"1"), ("._a.cls", b"2"), ("a.cls", b"3")]),
        "stands between the members of sample 'a': pack again with C",
    ),
    (
        tar_bytes([("a.jpg", b"1"), ("x", b"2"), ("a.cls", b"3")]),
        "'x' stands between the members of sample 'a': pack it",
    ),
    (WHOLE[:1000], "is cut: 536 bytes of member 'a.jpg' or its padding are missing"),
    (WHOLE + WHOLE[:100], "is cut in a header at byte 1536"),
    (WHOLE + b"x" * 512, "no tar header at byte 1536"),
    (WHOLE + b"b" + WHOLE[1:], "damaged tar header at byte 1536"),
    (b"no tar" * 200, "is not a tar file"),
    (b"short", "is not a tar file"),
    (b"", "no sample in it"),
    (bytes(10240), "no sample in it"),
    (tar_bytes([("README", b"text")]), "no sample in it"),
    (WHOLE + bytes(1024) + WHOLE, "goes on after the end of the archive (after byte 2048)"),
    (b"\x1f\x8b" + bytes(600), "is compressed (gzip)"),
    (b"\x28\xb5\x2f\xfd" + bytes(600), "is compressed (zstd)"),
    (b"BZh9", "is compressed (bzip2)"),
    (b"\xfd7zXZ\0" + bytes(600), "is compressed (xz)"),
    (WHOLE + with_kind(tarfile.GNUTYPE_LONGNAME, 2**21), "has an extension header of 2097152 bytes"),
    (tar_bytes([(LONG + "a.jpg", b"")])[:1024], "is cut: it ends at byte 1024, after a header that announces"),
    (tar_bytes([(LONG + "a.jpg", b"")])[:700], "is cut in an extension header"),
    (WHOLE.replace(b"a.jpg", b"\xff.jpg"), "damaged"),
]


@pytest.mark.parametrize(("data", "expected"), REFUSED, ids=[text for _, text in REFUSED])
def test_refusals_name_the_member(data, expected):
    (fault,) = faults(data)
    assert expected in fault


def test_a_name_that_is_not_utf8():
    (fault,) = faults(tar_bytes([("a\udcff.jpg", b"")]))
    assert r"member name b'a\xff.jpg' is not UTF-8" in fault


def test_pax_headers_that_lie_or_hide():
    def pax(**records):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
            info = tarfile.TarInfo("a.jpg")
            info.pax_headers = records
            archive.addfile(info)
        return out.getvalue()

    assert "member 'a.jpg' is sparse" in faults(pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}))[0]
    assert faults(pax(**{"SCHILY.xattr.user.x": "1"})) == []
    malformed = pax(comment="xyz").replace(b"15 comment", b"99 comment")
    assert "malformed pax header" in faults(malformed)[0]


def test_a_sparse_file_of_gnu_tar(tmp_path):
    program = shutil.which("tar")
    if program is None:
        pytest.skip("no tar program")
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(2**20)
        file.seek(2**19)
        file.write(b"x")
    for version in ("gnu", "pax"):
        command = [program, f"--format={version}", "--sparse", "-cf", "made.tar", "a.jpg"]
        subprocess.run(command, check=True, cwd=tmp_path)
        (fault,) = faults((tmp_path / "made.tar").read_bytes())
        assert "is sparse" in fault


def test_a_size_beyond_octal_digits_is_understood():
    header = bytearray(with_kind(tarfile.REGTYPE, 2**33 + 5))
    assert header[124] == 0x80
    (fault,) = faults(bytes(header))
    assert fault == f"is cut: {2**33 + 512} bytes of member 'b.jpg' or its padding are missing"


def test_faults_of_one_tar_are_told_together_and_counted():
    files = [(f"{number:03d}.{name}", b"") for name in ("jpg", "cls") for number in range(30)]
    scan = scanned(tar_bytes(files))
    assert (len(scan.faults.told), scan.faults.count) == (20, 30)
    assert all("do not stand together" in fault for fault in scan.faults.told)


def test_grouping_is_that_of_webdataset(tmp_path):
    """Whatever is accepted, webdataset reads as the same samples."""
    names = ["a.b/c.jpg", "a.b/c.cls", "a.b/d.seg.PNG", "e.jpg", "e.jpg.old", "README", "f/g.h.i.cls"]
    data = tar_bytes([(name, name.encode()) for name in names])
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    expected = defaultdict(dict)
    for each in webdataset.WebDataset(str(path), shardshuffle=False):
        expected[each["__key__"]] = {name: text for name, text in each.items() if not name.startswith("__")}
    check_samples(data, expected, scanned(data))
