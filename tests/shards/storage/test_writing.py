"""The rim: whole files or none, create-only where promised, the same on a disk and in a bucket."""

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from shards import storage
from shards.errors import UserError
from shards.storage import retry, urls, writing

LARGE = np.random.default_rng(1).bytes(11 * 2**20)


@pytest.fixture(params=["disk", "bucket"])
def root(request, tmp_path):
    if request.param == "disk":
        return str(tmp_path / "root")
    return storage.join(request.getfixturevalue("object_store"), "storage", tmp_path.name)


@pytest.fixture
def hasty(monkeypatch):
    """Short waits, and a reply that does not come is given up soon."""
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(retry, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(urls, "READ_TIMEOUT_S", 5.0)


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


FAULTS = {
    "503": {"fault": "answer", "status": 503},
    "500": {"fault": "answer", "status": 500},
    "429": {"fault": "answer", "status": 429},
    "stalled": {"fault": "stall", "seconds": 0.8},
    "cut": {"fault": "cut", "method": "GET", "num_bytes": 3},
    "reply lost": {"fault": "drop_reply"},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_everything_gets_through_faults_that_pass(faulty_store, hasty, fault, tmp_path, monkeypatch):
    monkeypatch.setattr(urls, "READ_TIMEOUT_S", 0.5)
    (tmp_path / "source").write_bytes(b"from a file")
    url = functools.partial(storage.child, faulty_store.url)
    rules = []

    def attacked(call, *arguments, **options):
        rules.append(faulty_store.proxy.add(**fault, nth=1))
        return call(*arguments, **options)

    attacked(storage.write_bytes, url("a"), b"0123456789")
    attacked(storage.put_file, tmp_path / "source", url("b/c"))
    assert attacked(storage.read_bytes, url("a")) == b"0123456789"
    assert attacked(storage.read_bytes, url("b/c")) == b"from a file"
    assert attacked(storage.read_range, url("a"), 2, 4) == b"2345"
    assert attacked(storage.read_ranges, url("a"), [(2, 4), (8, 9)]) == [b"2345", b"89"]
    assert attacked(storage.exists, url("a"))
    info = attacked(storage.stat, url("a"))
    attacked(storage.fetch, url("a"), tmp_path / "copy", size=info.size, etag=info.etag)
    assert (tmp_path / "copy").read_bytes() == b"0123456789"
    assert [each.path for each in attacked(storage.list_files, faulty_store.url)] == ["a", "b/c"]
    attacked(storage.require_writable, faulty_store.url)
    attacked(storage.remove, url("a"))
    attacked(storage.remove_folder, url("b"))
    assert storage.list_files(faulty_store.url) == []
    assert sum(rule.num_hit for rule in rules) >= 5


def test_a_create_whose_reply_was_lost_meets_itself(faulty_store, hasty):
    url = storage.join(faulty_store.url, "marker.json")
    faulty_store.proxy.add("drop_reply", method="PUT", nth=1)
    assert not storage.create_bytes(url, b"ours")
    assert storage.read_bytes(url) == b"ours"


@pytest.mark.parametrize("call", [storage.write_bytes, storage.create_bytes])
def test_a_multipart_upload_whose_last_reply_was_lost_is_there(faulty_store, hasty, monkeypatch, call):
    monkeypatch.setattr(writing, "PART_BYTES", 5 * 2**20)
    url = storage.join(faulty_store.url, "large.bin")
    lost = faulty_store.proxy.add("drop_reply", method="POST", path="uploadId=", nth=1)
    call(url, LARGE)
    assert lost.num_hit == 1
    assert storage.read_bytes(url) == LARGE


def test_a_multipart_create_never_overwrites(object_store, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "PART_BYTES", 5 * 2**20)
    url = storage.join(object_store, "storage", tmp_path.name, "large.bin")
    assert storage.create_bytes(url, b"first")
    assert not storage.create_bytes(url, LARGE)
    assert storage.read_bytes(url) == b"first"


def test_parts_that_fail_are_sent_again(faulty_store, hasty, monkeypatch, tmp_path):
    monkeypatch.setattr(writing, "PART_BYTES", 5 * 2**20)
    (tmp_path / "source").write_bytes(LARGE)
    refused = faulty_store.proxy.add("answer", method="PUT", path="partNumber=2", nth=1)
    storage.put_file(tmp_path / "source", storage.join(faulty_store.url, "large.bin"))
    assert refused.num_hit == 1
    assert storage.read_bytes(storage.join(faulty_store.url, "large.bin")) == LARGE


def test_a_store_that_keeps_failing_is_named(faulty_store, hasty, monkeypatch):
    monkeypatch.setattr(retry, "DEADLINE_S", 0.2)
    url = storage.join(faulty_store.url, "x")
    faulty_store.proxy.add("answer", status=503)
    for call in [functools.partial(storage.write_bytes, url, b"x"), functools.partial(storage.list_files, url)]:
        with pytest.raises(storage.StorageError, match=r"faulty-.*/x: gave up after .* \(throttled\)"):
            call()


def test_a_store_that_cannot_be_reached_is_the_users_mistake(faulty_store, monkeypatch):
    monkeypatch.setattr(retry, "UNREACHABLE_DEADLINE_S", 0.1)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot reach s3://.*127\.0\.0\.1:9"):
        storage.list_files(faulty_store.url)


def test_whether_a_store_knows_conditional_writes_is_found_out(root):
    assert storage.creates_only(root)
    assert not storage.exists(root) or storage.list_files(root, hidden=True) == []


def test_a_store_that_ignores_the_condition_is_found_out(faulty_store):
    faulty_store.proxy.add("unconditional", method="PUT")
    assert not storage.creates_only(faulty_store.url)
    faulty_store.proxy.clear()
    assert storage.list_files(faulty_store.url) == []


def test_a_store_that_refuses_the_condition_is_found_out(faulty_store):
    faulty_store.proxy.add("answer", method="PUT", status=501)
    assert not storage.creates_only(faulty_store.url)


def test_a_lost_reply_does_not_pass_for_a_store_without_conditions(faulty_store, hasty):
    faulty_store.proxy.add("drop_reply", method="PUT", nth=(1, 2))
    assert storage.creates_only(faulty_store.url)


def test_a_missing_bucket_is_found_out_before_conditions_are(object_store):
    with pytest.raises(UserError, match="s3://no-such-bucket/x does not exist"):
        storage.creates_only("s3://no-such-bucket/x")


def test_files_that_a_store_does_not_delete_are_told(faulty_store):
    storage.write_bytes(storage.join(faulty_store.url, "folder/x"), b"x")
    faulty_store.proxy.add("answer", method="POST", path="delete", status=200)
    with pytest.raises(storage.StorageError, match="folder: the store did not delete x"):
        storage.remove_folder(storage.join(faulty_store.url, "folder"))
