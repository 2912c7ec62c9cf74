"""Reading: whole or not at all, pinned to what was listed, and piece by piece."""

import functools
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import storage
from shards.storage import reading, retry, urls
from shards.storage.reading import SourceChangedError, exists, fetch, join_ranges, read_bytes, read_range, read_ranges
from shards.storage.retry import StorageError

DATA = np.random.default_rng(0).bytes(300_000)


@pytest.fixture(params=["disk", "bucket"])
def root(request, tmp_path):
    if request.param == "disk":
        return str(tmp_path / "root")
    return storage.join(request.getfixturevalue("object_store"), "reading", tmp_path.name)


@pytest.fixture
def hasty(monkeypatch):
    """Short waits, and a read that stalls is given up soon."""
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(retry, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(urls, "READ_TIMEOUT_S", 0.5)


def write(root, data=DATA, name="x.bin"):
    url = storage.join(root, name)
    storage.write_bytes(url, data)
    return url, storage.stat(url)


def test_fetch_copies_the_file_that_was_listed(root, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "FETCH_BYTES", 70_001)
    for data in [DATA, b"", DATA[:70_001]]:
        url, info = write(root, data)
        fetch(url, tmp_path / "copy", size=info.size, etag=info.etag)
        assert (tmp_path / "copy").read_bytes() == data


@pytest.mark.parametrize("now", [DATA[:-1], DATA[::-1], DATA + b"x", None])
def test_fetch_refuses_a_file_that_changed_since(root, tmp_path, now):
    url, info = write(root)
    storage.remove(url) if now is None else storage.write_bytes(url, now)
    with pytest.raises(SourceChangedError, match=re.escape(url) + r" changed \(or vanished\) while it was being read"):
        fetch(url, tmp_path / "copy", size=info.size, etag=info.etag)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("now", [DATA[:1000], DATA[::-1], None])
def test_fetch_refuses_a_file_that_changes_meanwhile(faulty_store, tmp_path, now):
    url, info = write(faulty_store.url)
    held = faulty_store.proxy.add("hold", method="GET", path=r"x\.bin")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(fetch, url, tmp_path / "copy", size=info.size, etag=info.etag)
        held.wait_until_held()
        storage.remove(url) if now is None else storage.write_bytes(url, now)
        held.release()
        with pytest.raises(SourceChangedError, match=r"changed \(or vanished\)"):
            running.result()
    assert not (tmp_path / "copy").exists()


def test_a_local_file_that_changes_meanwhile_is_refused(tmp_path, monkeypatch):
    url, info = write(str(tmp_path))
    copy = reading._copy_local

    def copy_then_change(*arguments):
        written = copy(*arguments)
        storage.write_bytes(url, DATA[::-1])
        return written

    monkeypatch.setattr(reading, "_copy_local", copy_then_change)
    with pytest.raises(SourceChangedError, match="its ETag is"):
        fetch(url, tmp_path / "copy", size=info.size, etag=info.etag)
    assert not (tmp_path / "copy").exists()


FULL_DISK = """
import resource, sys
from pathlib import Path
from shards import storage
url, target = sys.argv[1:]
info = storage.stat(url)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    storage.fetch(url, Path(target), size=info.size, etag=info.etag)
except storage.StorageError:
    raise
except OSError as error:
    print(type(error).__name__, error.errno, Path(target).exists(), sum(storage.retries.values()))
"""


def test_a_full_disk_is_no_fault_of_the_store(root, tmp_path):
    url, _ = write(root)
    command = [sys.executable, "-c", FULL_DISK, url, str(tmp_path / "copy")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "OSError 27 False 0\n"  # EFBIG: what a limit on file size gives instead of ENOSPC


def test_fetch_gets_through_a_storm(faulty_store, tmp_path, monkeypatch, hasty):
    monkeypatch.setattr(reading, "FETCH_BYTES", 30_000)
    url, info = write(faulty_store.url)
    rules = [
        faulty_store.proxy.add("cut", method="GET", path=r"x\.bin", probability=0.3, seed=1, num_bytes=20_000),
        faulty_store.proxy.add("answer", path=r"x\.bin", probability=0.3, seed=2, status=503),
        faulty_store.proxy.add("drop_reply", path=r"x\.bin", probability=0.3, seed=3),
    ]
    fetch(url, tmp_path / "copy", size=info.size, etag=info.etag)
    assert (tmp_path / "copy").read_bytes() == DATA
    assert all(rule.num_hit for rule in rules)


@pytest.mark.parametrize("fault", ["cut", "shorten"])
def test_a_cut_body_is_never_taken_for_the_whole(faulty_store, hasty, fault):
    url, _ = write(faulty_store.url)
    for read in [
        read_bytes,
        lambda url: read_range(url, 0, len(DATA)),
        lambda url: read_ranges(url, [(0, 300_000)])[0],
    ]:
        rule = faulty_store.proxy.add(fault, method="GET", nth=(1, 2), num_bytes=1000)
        before = retry.retries.copy()
        assert read(url) == DATA
        assert rule.num_hit == 2
        assert sum((retry.retries - before).values()) == 2
        faulty_store.proxy.clear()


def test_every_request_and_what_came_is_counted(faulty_store, hasty):
    url, _ = write(faulty_store.url)
    before = storage.traffic.copy()
    read_range(url, 0, 1000)
    read_bytes(url)
    assert storage.traffic - before == {"gets": 2, "bytes": 1000 + len(DATA)}
    faulty_store.proxy.add("shorten", method="GET", nth=1, num_bytes=1000)
    faulty_store.proxy.add("answer", method="GET", nth=1, status=503)
    read_range(url, 0, 5000)
    assert storage.traffic - before == {"gets": 5, "bytes": 1000 + len(DATA) + 1000 + 5000}


def test_reading_a_local_file_is_no_traffic(tmp_path):
    url, _ = write(str(tmp_path))
    before = storage.traffic.copy()
    assert read_bytes(url) == DATA == read_ranges(url, [(0, len(DATA))])[0]
    assert storage.traffic == before


def test_large_files_are_read_by_ranges(faulty_store, monkeypatch):
    monkeypatch.setattr(reading, "WHOLE_BYTES", 100_000)
    monkeypatch.setattr(reading, "FETCH_BYTES", 50_000)
    monkeypatch.setattr(reading, "JOINED_BYTES", 50_000)
    url, _ = write(faulty_store.url)
    assert read_bytes(url) == DATA
    assert faulty_store.proxy.count("GET", r"x\.bin") == 6


def test_a_large_file_replaced_meanwhile_is_read_again(faulty_store, monkeypatch, hasty):
    monkeypatch.setattr(reading, "WHOLE_BYTES", 100_000)
    monkeypatch.setattr(reading, "FETCH_BYTES", 50_000)
    monkeypatch.setattr(reading, "JOINED_BYTES", 50_000)
    url, _ = write(faulty_store.url)
    held = faulty_store.proxy.add("hold", method="GET", path=r"x\.bin", nth=6)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(read_bytes, url)
        held.wait_until_held()
        storage.write_bytes(url, DATA[::-1])
        held.release()
        assert running.result() == DATA[::-1]


def test_pieces_come_in_the_order_asked_for(root):
    url, _ = write(root)
    ranges = [(200_000, 5), (0, 10), (299_990, 100), (5, 3), (400_000, 9), (7, 0), (150_000, 100_000)]
    expected = [DATA[offset : offset + size] for offset, size in ranges]
    assert read_ranges(url, ranges) == expected
    assert [read_range(url, *each) for each in ranges] == expected
    assert read_ranges(url, []) == []


def test_near_pieces_share_a_request(faulty_store):
    url, _ = write(faulty_store.url)
    read_ranges(url, [(number * 1000, 10) for number in range(100)] + [(200_000, 10)])
    assert faulty_store.proxy.count("GET", r"x\.bin") == 2


pieces = st.lists(st.tuples(st.integers(0, 400_000), st.integers(0, 100_000)), max_size=30)


@given(pieces)
def test_joined_ranges_hold_all_pieces_and_little_more(ranges):
    joined = join_ranges(ranges)
    members = [index for _, indices in joined for index in indices]
    assert sorted(members) == [index for index, (_, size) in enumerate(ranges) if size]
    for (start, length), indices in joined:
        assert start == min(ranges[index][0] for index in indices)
        assert start + length == max(sum(ranges[index]) for index in indices)
    ends = [start + length for (start, length), _ in joined]
    assert all(nxt[0][0] - end >= reading.GAP_BYTES for nxt, end in zip(joined[1:], ends, strict=False))


def test_joined_ranges_do_not_grow_beyond_their_bound():
    blocks = [(number * 2**20, 2**20) for number in range(64)]
    assert [span for span, _ in join_ranges(blocks)] == [(16 * 2**20 * number, 16 * 2**20) for number in range(4)]


def test_what_a_store_does_not_answer_is_not_taken_for_missing(faulty_store, hasty, monkeypatch):
    url, _ = write(faulty_store.url)
    assert exists(url)
    assert exists(faulty_store.url)
    assert not exists(url + "x")
    assert not exists("s3://no-such-bucket/x")
    monkeypatch.setattr(retry, "DEADLINE_S", 0.2)
    faulty_store.proxy.add("answer", status=503)
    with pytest.raises(StorageError, match=r"x\.bin: gave up after .* \(throttled\)"):
        exists(url)


def test_what_is_missing_or_forbidden_is_not_asked_twice(faulty_store, monkeypatch):
    url = storage.join(faulty_store.url, "missing.bin")
    with pytest.raises(FileNotFoundError):
        read_range(url, 0, 10)
    assert faulty_store.proxy.count("GET", "missing") == 1
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    fs, _ = storage.filesystem(url)
    fs.clear_instance_cache()
    with pytest.raises(PermissionError):
        read_range(url, 0, 10)
    assert faulty_store.proxy.count("GET", "missing") == 2


def test_drivers_do_not_multiply_our_retries(faulty_store, hasty, monkeypatch):
    url, _ = write(faulty_store.url)
    stalled = faulty_store.proxy.add("stall", method="GET", seconds=3, nth=(1, 2))
    assert read_range(url, 0, 10) == DATA[:10]
    assert stalled.num_seen == 3
    monkeypatch.setattr(retry, "DEADLINE_S", 0.0)
    refused = faulty_store.proxy.add("answer", method="GET", status=500)
    with pytest.raises(StorageError):
        read_range(url, 0, 10)
    assert refused.num_seen == 1


def test_threads_may_read_at_once(root):
    url, _ = write(root)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read_bytes, [url] * 16)) == [DATA] * 16


@pytest.fixture
def web(tmp_path):
    """A web server that knows neither ranges nor ETags, and its folder."""
    folder = tmp_path / "web"
    folder.mkdir()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, ThreadPoolExecutor(1) as pool:
        pool.submit(server.serve_forever, 0.05)
        yield f"http://127.0.0.1:{server.server_address[1]}", folder
        server.shutdown()


def test_a_plain_web_server_will_do(web, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "FETCH_BYTES", 70_001)
    url, folder = storage.join(web[0], "x.bin"), web[1]
    (folder / "x.bin").write_bytes(DATA)
    info = storage.stat(url)
    assert info.size == len(DATA)
    assert read_bytes(url) == DATA
    assert read_ranges(url, [(299_990, 100), (5, 3)]) == [DATA[299_990:], DATA[5:8]]
    fetch(url, tmp_path / "copy", size=info.size, etag=info.etag)
    assert (tmp_path / "copy").read_bytes() == DATA
    (folder / "x.bin").write_bytes(DATA[:-1])
    with pytest.raises(SourceChangedError):
        fetch(url, tmp_path / "copy", size=info.size, etag=info.etag)
    (folder / "x.bin").unlink()
    assert not exists(url)
    with pytest.raises(FileNotFoundError):
        read_bytes(url)
