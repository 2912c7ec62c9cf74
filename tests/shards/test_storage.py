"""The rim: whole files or none, create-only where promised, the same on a disk and in a bucket."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shards import storage
from shards.errors import UserError


@pytest.fixture(params=["disk", "bucket"])
def root(request, tmp_path):
    if request.param == "disk":
        return str(tmp_path / "root")
    return storage.join(request.getfixturevalue("object_store"), "storage", tmp_path.name)


def test_write_read_replace_remove(root):
    url = storage.join(root, "a/b.bin")
    assert not storage.exists(url)
    storage.write_bytes(url, b"first")
    storage.write_bytes(url, b"0123456789")
    assert storage.read_bytes(url) == b"0123456789"
    assert storage.read_range(url, 3, 4) == b"3456"
    assert storage.read_range(url, 8, 10) == b"89"
    assert storage.read_range(url, 10, 10) == b""
    storage.remove(url)
    storage.remove(url)
    assert not storage.exists(url)


def test_create_never_overwrites(root):
    url = storage.join(root, "v1.json")
    assert storage.create_bytes(url, b"one")
    assert not storage.create_bytes(url, b"two")
    assert storage.read_bytes(url) == b"one"


def test_create_has_one_winner(root):
    url = storage.join(root, "race.json")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: storage.create_bytes(url, b"%d" % number), range(8)))
    assert won.count(True) == 1
    assert storage.read_bytes(url) == b"%d" % won.index(True)


def test_list_is_sorted_and_recursive_and_hides_dot_files(root, tmp_path):
    for name in ["b/2.tif", "a.tif", "b/1.tif", ".hidden/x", "b/.part"]:
        storage.write_bytes(storage.join(root, name), name.encode())
    source = tmp_path / "source"
    source.write_bytes(b"moved")
    storage.put_file(source, storage.join(root, "c/3.tif"))
    found = storage.list_files(root)
    assert [info.path for info in found] == ["a.tif", "b/1.tif", "b/2.tif", "c/3.tif"]
    assert [info.size for info in found] == [5, 7, 7, 5]
    assert len({info.etag for info in found}) == 4
    storage.remove_folder(storage.join(root, "b"))
    assert [info.path for info in storage.list_files(root)] == ["a.tif", "c/3.tif"]


def test_a_missing_folder_is_the_users_mistake(root):
    with pytest.raises(UserError, match="nothing-here does not exist"):
        storage.list_files(storage.join(root, "nothing-here"))


def test_a_missing_bucket_is_the_users_mistake(object_store):
    with pytest.raises(UserError, match="s3://no-such-bucket/x does not exist: check the path or bucket"):
        storage.list_files("s3://no-such-bucket/x")


def test_an_unknown_scheme_is_the_users_mistake():
    with pytest.raises(UserError, match="cannot open 'nosuch://x'"):
        storage.read_bytes("nosuch://x")


def test_no_temporary_file_is_left_behind(tmp_path):
    storage.write_bytes(str(tmp_path / "x"), b"1")
    storage.create_bytes(str(tmp_path / "x"), b"2")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_links_that_lead_nowhere_or_in_circles_are_listed(tmp_path):
    (tmp_path / "gone.tif").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert [info.path for info in storage.list_files(str(tmp_path))] == ["circle", "gone.tif", "loop"]


def test_local_names_are_taken_literally(tmp_path):
    for name in ["a::b.tif", "x#y.tif", "50%.tif", "mit Leerzeichen ü.tif"]:
        storage.write_bytes(str(tmp_path / name), name.encode())
        assert storage.read_bytes(str(tmp_path / name)) == name.encode()


def test_listed_names_never_leave_their_root():
    assert storage.child("s3://bucket/archive/", "/etc/passwd") == "s3://bucket/archive//etc/passwd"
    assert storage.child("folder", "http://elsewhere/x") == "folder/http://elsewhere/x"


def test_whether_a_folder_can_be_written_is_found_out_without_traces(root, tmp_path):
    storage.require_writable(storage.join(root, "new/deep"))
    assert not storage.exists(root) or storage.list_files(root) == []  # SeaweedFS keeps the emptied folder
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file"):
        storage.require_writable(str(tmp_path / "file/below"))


@pytest.mark.parametrize("url", ["", "s3://", "s3:///"])
def test_a_url_without_a_place_is_the_users_mistake(url):
    with pytest.raises(UserError, match=r"empty path|names no bucket"):
        storage.filesystem(url)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("s3://b/", "x", "y"), "s3://b/x/y"),
        (("folder", "/abs"), "/abs"),
        (("folder", "s3://b/x"), "s3://b/x"),
    ],
)
def test_join(parts, expected):
    assert storage.join(*parts) == expected


def test_is_local():
    assert storage.is_local("folder/x")
    assert storage.is_local(f"file://{Path.cwd()}")
    assert not storage.is_local("s3://bucket/x")
