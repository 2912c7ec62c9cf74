"""Listings: in order, page by page, and the same on a disk, in a bucket and elsewhere."""

import itertools
import time

import fsspec
import pytest

from shards import storage
from shards.errors import UserError
from shards.storage.listing import iter_files, list_files, stat

NAMES = ["a", "a.b/x", "a/b", "a-c", "aa/1/2/3.tif", "aa/1/2.tif", "z z/ü.tif", "ü/x", "Z/x", "c#d?e=1.tif"]


@pytest.fixture(params=["disk", "bucket", "memory"])
def root(request, tmp_path):
    if request.param == "disk":
        return str(tmp_path / "root")
    if request.param == "memory":
        return f"memory://{tmp_path.name}/root"
    return storage.join(request.getfixturevalue("object_store"), "listing", tmp_path.name)


def write(root, names):
    for name in names:
        url = storage.child(root, name)
        if root.startswith("memory:"):
            fs, path = storage.filesystem(url)
            fs.pipe_file(path, name.encode())
        else:
            storage.write_bytes(url, name.encode())


def test_files_come_in_order_of_their_paths(root):
    names = [name for name in NAMES if root.startswith("s3:") or name != "a"]  # a file and a folder of one name
    write(root, [*reversed(names), "b/.part", ".hidden/x"])
    found = list(iter_files(root))
    assert found == list(iter_files(root))
    if root.startswith("s3:"):  # SeaweedFS sorts folder by folder: "a/b" before "a-c"
        found.sort(key=lambda info: info.path)
    assert [info.path for info in found] == sorted(names)
    assert [info.size for info in found] == [len(name.encode()) for name in sorted(names)]
    assert list_files(root) == found
    assert {info.path for info in iter_files(root, hidden=True)} == {*names, "b/.part", ".hidden/x"}


def test_files_tell_when_they_were_modified(root):
    write(root, ["x"])
    listed, asked = list_files(root)[0], stat(storage.child(root, "x"))
    assert (listed.size, listed.etag, listed.modified_s) == (asked.size, asked.etag, asked.modified_s)
    assert abs(listed.modified_s - time.time()) < 86400


def test_a_root_that_is_a_file_is_the_users_mistake(root):
    write(root, ["x"])
    with pytest.raises(UserError, match=r"x is not of the expected kind: .*is a file, not a folder"):
        list_files(storage.child(root, "x"))


def test_a_folder_is_no_file(object_store, tmp_path):
    root = storage.join(object_store, "listing", tmp_path.name)
    write(root, ["folder/x"])
    with pytest.raises(FileNotFoundError):
        stat(storage.child(root, "folder"))


def test_a_bucket_is_listed_page_by_page(faulty_store):
    fs, path = storage.filesystem(faulty_store.url)
    names = [f"{number % 7}/{number:05d}" for number in range(1100)]
    fs.pipe({f"{path}/{name}": b"x" for name in names})
    pages = "list-type=2"
    before = faulty_store.proxy.count("GET", pages)
    files = iter_files(faulty_store.url)
    first = list(itertools.islice(files, 1000))
    assert faulty_store.proxy.count("GET", pages) == before + 1
    fault = faulty_store.proxy.add("answer", path=pages, nth=1)
    assert [info.path for info in [*first, *files]] == sorted(names)
    assert fault.num_hit == 1
    assert faulty_store.proxy.count("GET", pages) == before + 3


def test_what_vanishes_meanwhile_is_left_out(tmp_path):
    for name in ["a", "b", "c/x", "d"]:
        storage.write_bytes(str(tmp_path / name), b"x")
    files = iter_files(str(tmp_path))
    assert next(files).path == "a"
    (tmp_path / "b").unlink()
    (tmp_path / "c/x").unlink()
    (tmp_path / "c").rmdir()
    assert [info.path for info in files] == ["d"]


def test_folders_may_be_nested_deeper_than_calls(tmp_path):
    folders = [tmp_path / ("d/" * depth) for depth in range(1, 1200)]
    for folder in folders:
        folder.mkdir()
    (folders[-1] / "x").touch()
    assert [info.path for info in list_files(str(tmp_path))] == ["d/" * 1199 + "x"]
    (folders[-1] / "x").unlink()
    for folder in reversed(folders):  # pytest could not
        folder.rmdir()


def test_names_in_a_bucket_are_taken_literally(object_store, tmp_path):
    root = storage.join(object_store, "listing", tmp_path.name)
    for name in ["a::file://etc/passwd", "memory::b.tif", "50%.tif"]:
        url = storage.child(root, name)
        storage.write_bytes(url, name.encode())
        assert storage.read_bytes(url) == name.encode()
    assert len(list_files(root)) == 3


def test_markers_of_empty_folders_are_no_files(object_store, tmp_path):
    root = storage.join(object_store, "listing", tmp_path.name)
    fs, path = storage.filesystem(root)
    fs.call_s3("put_object", Bucket=path.split("/")[0], Key=f"{path.split('/', 1)[1]}/folder/", Body=b"")
    write(root, ["x"])
    assert [info.path for info in list_files(root)] == ["x"]


@pytest.fixture(autouse=True)
def _empty_memory():
    yield
    fsspec.filesystem("memory").store.clear()
