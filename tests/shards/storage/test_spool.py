"""Large files by way of a disk: whole or not at all, nothing left behind, and what killed writers left goes."""

import tempfile
import time

import numpy as np
import pytest
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from shards import storage
from shards.storage import reading, retry, writing

DATA = np.random.default_rng(2).bytes(11 * 2**20)


@pytest.fixture(params=["disk", "bucket"])
def root(request, tmp_path):
    if request.param == "disk":
        return str(tmp_path / "root")
    return storage.join(request.getfixturevalue("object_store"), "spool", tmp_path.name)


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """An empty folder for scratch, and parts small enough that the data have several."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(writing, "PART_BYTES", 5 * 2**20)
    monkeypatch.setattr(reading, "FETCH_BYTES", 4 * 2**20)
    return folder


def put(folder, name, data):
    with storage.spooled(folder) as path:
        path.write_bytes(data)
        url = storage.join(folder, name)
        storage.put_file(path, url)
    return url


def test_what_is_spooled_appears_under_its_name_and_comes_back(root, scratch):
    url = put(root, "a/b.bin", DATA)
    with storage.local_copy(url) as path:
        assert path.read_bytes() == DATA
    assert [info.path for info in storage.list_files(root, hidden=True)] == ["a/b.bin"]
    assert list(scratch.iterdir()) == []


def test_what_fails_leaves_nothing(root, scratch):
    url = put(root, "kept.bin", b"kept")
    with pytest.raises(TypeError), storage.spooled(root) as path, path.open("wb") as file:
        file.writelines([DATA, "no bytes"])
    with pytest.raises(ConnectionError), storage.local_copy(url):
        raise ConnectionError("the node is gone")
    assert [info.path for info in storage.list_files(root, hidden=True)] == ["kept.bin"]
    assert list(scratch.iterdir()) == []


def test_a_missing_file_has_no_copy(root):
    with pytest.raises(FileNotFoundError), storage.local_copy(storage.join(root, "x")) as path:
        path.read_bytes()


def test_temporary_files_of_killed_writers_are_removed(tmp_path):
    folder = tmp_path / "folder"
    url = put(str(folder), "kept.bin", b"kept")
    for name in [".spool.abc123.tmp", ".kept.bin.q_e9.tmp", ".hidden", "x.tmp"]:
        (folder / name).write_bytes(b"x")
    storage.remove_unfinished(str(folder))
    assert sorted(path.name for path in folder.iterdir()) == [".hidden", "kept.bin", "x.tmp"]
    assert storage.read_bytes(url) == b"kept"
    storage.remove_unfinished(str(tmp_path / "no such folder"))


def begin_upload(url):
    fs, path = storage.filesystem(url)
    bucket, _, key = path.partition("/")
    upload = fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"]
    fs.call_s3("upload_part", Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=DATA[: 5 * 2**20])
    return upload


def uploads(url):
    fs, path = storage.filesystem(url)
    bucket = path.partition("/")[0]
    return {each["UploadId"] for each in fs.call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads") or []}


def test_uploads_of_killed_writers_are_ended_in_this_folder_alone(object_store, tmp_path):
    root = storage.join(object_store, "spool", tmp_path.name)
    ours, others = begin_upload(storage.join(root, "run/x")), begin_upload(storage.join(root, "run2/x"))
    url = put(storage.join(root, "run"), "kept.bin", DATA)
    assert {ours, others} <= uploads(root)
    storage.remove_unfinished(storage.join(root, "run"))
    assert others in uploads(root)
    assert ours not in uploads(root)
    assert storage.read_bytes(url) == DATA


def test_uploads_are_listed_with_their_age_and_ended(object_store, tmp_path):
    root = storage.join(object_store, "spool", tmp_path.name)
    begun = {name: begin_upload(storage.join(root, name)) for name in ("a", "b/c")}
    found = storage.list_uploads(root)
    assert {upload.path: upload.upload_id for upload in found} == begun
    assert all(time.time() - 600 < upload.begun_s < time.time() + 5 for upload in found)
    for upload in found:
        storage.end_upload(root, upload)
        storage.end_upload(root, upload)  # as after a reply that was lost
    assert storage.list_uploads(root) == []
    assert storage.list_uploads(str(tmp_path)) == []


def test_an_upload_that_is_gone_is_no_error_and_not_asked_for_again(object_store, monkeypatch):
    # As AWS answers; our store calls it no error.
    asked = []

    def gone(_, method, **__):
        asked.append(method)
        response = {"Error": {"Code": "NoSuchUpload"}, "ResponseMetadata": {"HTTPStatusCode": 404}}
        raise translate_boto_error(ClientError(response, "AbortMultipartUpload"))

    monkeypatch.setattr(type(storage.filesystem(object_store)[0]), "call_s3", gone)
    monkeypatch.setattr(retry, "DEADLINE_S", 0.0)
    storage.end_upload(object_store, storage.Upload(path="x", begun_s=None, upload_id="id"))
    assert asked == ["abort_multipart_upload"]


def test_uploads_are_listed_page_by_page(object_store, monkeypatch):
    # As AWS documents it; our store shows one page.
    uploads = [{"Key": f"run/{number}", "UploadId": f"id{number}"} for number in range(5)]
    asked = []

    def pages(_, method, *, Bucket, Prefix, KeyMarker="", UploadIdMarker=""):
        asked.append((method, Bucket, Prefix, KeyMarker, UploadIdMarker))
        rest = [upload for upload in uploads if upload["Key"] > KeyMarker]
        page = {"Uploads": rest[:2], "IsTruncated": len(rest) > 2}
        return page | {"NextKeyMarker": rest[1]["Key"], "NextUploadIdMarker": rest[1]["UploadId"]} if rest[2:] else page

    monkeypatch.setattr(type(storage.filesystem(object_store)[0]), "call_s3", pages)
    assert [upload.path for upload in storage.list_uploads(f"{object_store}/run")] == ["0", "1", "2", "3", "4"]
    assert [name for *_, name in asked] == ["", "id1", "id3"]
    assert asked[1] == ("list_multipart_uploads", "bucket", "run/", "run/1", "id1")


def test_a_store_that_does_not_list_uploads_is_left_alone(faulty_store):
    url = put(faulty_store.url, "kept.bin", DATA)
    refused = faulty_store.proxy.add("answer", method="GET", path="uploads", status=403)
    storage.remove_unfinished(faulty_store.url)
    assert storage.list_uploads(faulty_store.url) == []
    assert refused.num_hit == 2
    assert storage.read_bytes(url) == DATA
