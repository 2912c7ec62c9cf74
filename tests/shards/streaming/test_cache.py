"""The cache: each piece is fetched once, within the limit, and goes after its last use; its disk may fail."""

import contextlib
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest

from shards import storage
from shards.dataset import open_dataset
from shards.errors import UserError
from shards.streaming.cache import BlockCache
from shards.streaming.order import OrderSettings
from shards.streaming.stream import Stream

SETTINGS = OrderSettings(seed=1, lanes=4, block_bytes=8192, window=2)
LARGE = 10**9
NOBODY = 65534
SHARDS = r"/shards/.*\.tar"


@pytest.fixture(scope="module")
def local_url(tmp_path_factory, write_dataset):
    return write_dataset(str(tmp_path_factory.mktemp("cache") / "data"), num_samples=120, tile_px=16)


@pytest.fixture(scope="module")
def opened(local_url, object_store):
    url = storage.join(object_store, "cache")
    for info in storage.list_files(local_url):
        storage.write_bytes(storage.join(url, info.path), Path(local_url, info.path).read_bytes())
    return open_dataset(url)


@pytest.fixture
def dataset(opened, faulty_store):
    """The dataset in the bucket, behind the proxy, as a process sees it for the first time."""
    return pickle.loads(pickle.dumps(opened))


@pytest.fixture
def cache(dataset, tmp_path):
    with BlockCache([dataset], tmp_path / "cache", LARGE) as cache:
        yield cache
    wait_for(lambda: cache._num_threads == 0)


def pieces_of(dataset, num_steps=1):
    """Return the distinct pieces of the first steps, by first use."""
    stream = Stream([dataset], SETTINGS, global_batch=8)
    return list(dict.fromkeys(slot.piece for step in range(num_steps) for slot in stream.slots(step)))


def files(cache):
    return sorted(path.name for path in cache._folder.iterdir())


def on_disk(cache):
    """Return the bytes of all files."""
    total = 0
    for path in cache._folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def wait_for(condition):
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def is_whole(cache, piece):
    return cache._path(piece).exists()


def read_all(cache, pieces):
    return {row: cache.read(piece, row) for piece in pieces for row in range(piece.first_row, piece.end_row)}


def expected(local_url, rows):
    dataset = open_dataset(local_url)
    return {row: dataset.read_places(row, dataset.places(row)) for row in rows}


def test_rows_are_those_of_the_shards_and_each_piece_is_one_request(cache, dataset, local_url, faulty_store):
    pieces = pieces_of(dataset, 15)
    before = storage.traffic.copy()
    found = read_all(cache, pieces)
    assert found == expected(local_url, range(120))
    assert faulty_store.proxy.count("GET", SHARDS) == len(pieces) == (storage.traffic - before)["gets"]
    assert read_all(cache, pieces) == found
    num_bytes = sum(len(data) for (data,) in found.values())
    figures = {"gets": len(pieces), "heads": 3, "bytes": num_bytes, "bytes_used": 2 * num_bytes}
    assert storage.traffic - before == figures
    assert cache.used_bytes() == num_bytes
    assert faulty_store.proxy.count("HEAD", SHARDS) == 3


def test_look_ahead_fetches_in_order_what_is_not_there(cache, dataset, faulty_store):
    pieces = pieces_of(dataset, 15)
    cache.read(pieces[0], pieces[0].first_row)
    cache.prefetch(pieces)
    wait_for(lambda: all(is_whole(cache, piece) for piece in pieces))
    cache.prefetch(pieces)
    read_all(cache, pieces)
    assert faulty_store.proxy.count("GET", SHARDS) == len(pieces)


def test_a_later_call_replaces_what_was_wanted(cache, dataset, faulty_store):
    held = faulty_store.proxy.add("hold", method="GET", path=SHARDS)
    pieces = pieces_of(dataset, 15)
    cache.prefetch(pieces)
    wait_for(lambda: held.num_seen == 8)
    cache.prefetch(pieces[:8])
    held.release()
    wait_for(lambda: all(is_whole(cache, piece) for piece in pieces[:8]))
    wait_for(lambda: cache._num_threads == 0)
    assert len(files(cache)) == 8


def test_a_sample_does_not_wait_for_others(cache, dataset, faulty_store):
    held = faulty_store.proxy.add("hold", method="GET", path=SHARDS, nth=tuple(range(1, 9)))
    pieces = pieces_of(dataset, 15)
    cache.prefetch(pieces)
    wait_for(lambda: held.num_hit == 8)
    assert len(cache.read(pieces[-1], pieces[-1].first_row)) == 1
    held.release()


def test_look_ahead_stays_within_the_limit(dataset, tmp_path, local_url):
    pieces = pieces_of(dataset, 15)
    limit = 60_000
    with BlockCache([dataset], tmp_path, limit) as cache:
        assert sum(map(cache._piece_bytes, pieces[:9])) > limit
        for _ in range(3):
            cache.prefetch(pieces)
            while cache._num_threads:
                assert on_disk(cache) <= limit
                time.sleep(0.001)
            assert 0 < cache.used_bytes() == on_disk(cache) <= limit
        # What a sample needs comes all the same, and room that is made is used again.
        assert read_all(cache, pieces) == expected(local_url, range(120))
        cache.evict([pieces[-1].end_position])
        left = [piece for piece in pieces if piece.end_position > pieces[-1].end_position]
        assert len(files(cache)) == len(left)


def test_pieces_go_after_their_last_use_and_not_before(cache, dataset):
    pieces = pieces_of(dataset, 15)
    read_all(cache, pieces)
    ends = sorted({piece.end_position for piece in pieces})
    for consumed in (0, ends[0] - 1, ends[0], ends[len(ends) // 2], ends[-1]):
        cache.evict([consumed])
        assert files(cache) == sorted(cache._path(piece).name for piece in pieces if piece.end_position > consumed)
    assert files(cache) == []
    # Whoever comes too late fetches again.
    assert len(cache.read(pieces[0], pieces[0].first_row)) == 1


def test_files_stay_open_while_the_next_steps_need_them_and_not_beyond(cache, dataset):
    kept, passed, *_ = pieces = pieces_of(dataset, 4)
    read_all(cache, pieces)
    assert sorted(open_files(cache)) == files(cache)
    cache.prefetch([kept])
    wait_for(lambda: cache._num_threads == 0)
    assert open_files(cache) == [cache._path(kept).name]
    cache.evict([LARGE])
    # Somebody else's last use: what is open can still be read, and is not fetched again.
    assert files(cache) == []
    gets = storage.traffic["gets"]
    cache.read(kept, kept.first_row)
    assert storage.traffic["gets"] == gets
    cache.read(passed, passed.first_row)
    assert storage.traffic["gets"] == gets + 1
    cache.prefetch([])
    assert open_files(cache) == []


def test_no_more_files_are_open_than_a_process_has_to_spare(dataset, tmp_path, local_url, monkeypatch):
    pieces = pieces_of(dataset, 15)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (12, 12))
    with BlockCache([dataset], tmp_path, LARGE) as cache:
        for _ in range(2):
            assert read_all(cache, pieces) == expected(local_url, range(120))
            assert len(open_files(cache)) == 3 < len(pieces)


def open_files(cache):
    """Return the names of the cache's files that this process has open."""
    names = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing
            place = descriptor.readlink()
            names += [place.name] if place.parent == cache._folder else []
    return names


def test_what_is_being_fetched_is_not_evicted(cache, dataset, faulty_store):
    (piece, *_) = pieces_of(dataset)
    held = faulty_store.proxy.add("hold", method="GET", path=SHARDS)
    cache.prefetch([piece])
    held.wait_until_held()
    cache.evict([LARGE])
    assert files(cache) == [cache._path(piece).with_suffix(".part").name]
    held.release()
    wait_for(lambda: is_whole(cache, piece))
    cache.evict([LARGE])
    assert files(cache) == []


def test_a_step_that_does_not_fit_is_read_nevertheless(dataset, tmp_path):
    with BlockCache([dataset], tmp_path, 10_000) as cache:
        stream = Stream([dataset], SETTINGS, global_batch=64, cache=cache)
        assert len(stream.read(0, lambda sample, _: sample.key).items) == 64


def test_an_error_of_a_thread_reaches_who_reads_the_piece(cache, dataset, faulty_store):
    piece, other = pieces_of(dataset)[:2]
    refused = faulty_store.proxy.add("answer", method="GET", path=SHARDS, nth=1, status=403)
    cache.prefetch([piece])
    wait_for(lambda: cache._num_threads == 0)
    assert refused.num_hit == 1
    cache.prefetch([piece, other])
    assert len(cache.read(other, other.first_row)) == 1
    with pytest.raises(UserError, match=r"no permission for s3://.*\.tar"):
        cache.read(piece, piece.first_row)
    assert faulty_store.proxy.count("GET", SHARDS) == 2
    # The error was told: who tries again, tries again.
    assert len(cache.read(piece, piece.first_row)) == 1


def test_who_refreshes_second_takes_what_the_first_one_fetched(cache, dataset, local_url):
    piece = pieces_of(dataset)[0]
    row = piece.first_row
    both = cache, pickle.loads(pickle.dumps(cache))
    for each in both:
        each.read(piece, row)
    cache._path(piece).write_bytes(bytes(cache.used_bytes()))
    gets = storage.traffic["gets"]
    for each in both:
        assert each.read(piece, row) != expected(local_url, [row])[row]
        assert each.read(piece, row, refresh=True) == expected(local_url, [row])[row]
    assert storage.traffic["gets"] == gets + 1


def test_refreshing_fetches_anew(cache, dataset, faulty_store):
    (piece, *_) = pieces_of(dataset)
    good = cache.read(piece, piece.first_row)
    cache._path(piece).write_bytes(b"rubbish")
    assert cache.read(piece, piece.first_row) != good
    before = storage.retries["checksum"]
    assert cache.read(piece, piece.first_row, refresh=True) == good == cache.read(piece, piece.first_row)
    assert faulty_store.proxy.count("GET", SHARDS) == 2
    assert storage.retries["checksum"] == before + 1


def _in_another_process(task, cache, piece, environment, answers):
    os.environ.update(environment)
    try:
        answers.put(task(cache, piece))
    except UserError as error:
        answers.put(error)


@pytest.fixture
def start(faulty_store):
    """A function that starts a task in another process, and returns the process and a function that gets its answer."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["shards.streaming.stream", "s3fs"])
    started = []

    def start(task, cache, piece):
        answers = context.SimpleQueue()
        # A fork server that runs already may not know the store.
        arguments = (task, cache, piece, dict(os.environ), answers)
        process = context.Process(target=_in_another_process, args=arguments)
        process.start()
        started.append(process)
        return process, answers.get

    yield start
    for process in started:
        process.kill()
        process.join()


def _read_first(cache, piece):
    return cache.read(piece, piece.first_row)


def test_processes_fetch_a_piece_once_and_survive_who_is_killed(cache, dataset, local_url, faulty_store, start):
    (piece, *_) = pieces_of(dataset)
    held = faulty_store.proxy.add("hold", method="GET", path=SHARDS, nth=1)
    killed, _ = start(_read_first, cache, piece)
    held.wait_until_held()
    others = [start(_read_first, cache, piece) for _ in range(2)]
    wait_for(lambda: sum(is_waiting(process.pid) for process, _ in others) == 2)
    assert faulty_store.proxy.count("GET", SHARDS) == 0
    os.kill(killed.pid, signal.SIGKILL)
    assert [answer() for _, answer in others] == [expected(local_url, [piece.first_row])[piece.first_row]] * 2
    assert held.num_seen == 2
    assert files(cache) == [cache._path(piece).name]


def is_waiting(pid):
    return f"-> FLOCK  ADVISORY  WRITE {pid} " in Path("/proc/locks").read_text()


def _full_disk(cache, piece):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    cache.prefetch([piece])
    return cache.read(piece, piece.first_row)


def test_a_full_disk_is_one_line(cache, dataset, start):
    (piece, *_) = pieces_of(dataset)
    _, answer = start(_full_disk, cache, piece)
    error = answer()
    assert isinstance(error, UserError)
    told = (
        rf"the disk of the cache {cache._folder} is full \(File too large\): 0.0 MB needed for the next block, "
        r"\d+.\d MB free; choose a folder on another local disk \(option cache, or TMPDIR\)"
    )
    assert re.fullmatch(told, str(error)), error
    assert files(cache) == []


def _enter_and_wait(cache, piece):
    with cache:
        cache.read(piece, piece.first_row)
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_run_left_is_removed_and_nothing_else(dataset, tmp_path, start):
    (tmp_path / "pera-stream-notes.txt").touch()
    (tmp_path / "data").mkdir()
    killed, _ = start(_enter_and_wait, BlockCache([dataset], tmp_path, LARGE), pieces_of(dataset)[0])
    killed.join()
    (left,) = tmp_path.glob("pera-stream-*/")
    assert len(list(left.iterdir())) == 1
    with BlockCache([dataset], tmp_path, LARGE) as first, BlockCache([dataset], tmp_path, LARGE) as second:
        assert not left.exists()
        assert first._folder.exists()
        assert second._folder.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "pera-stream-notes.txt"]


@contextlib.contextmanager
def as_nobody():
    """Be somebody without rights for a moment."""
    if os.geteuid() == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


def test_a_folder_of_another_user_is_refused_in_one_line(dataset):
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o555)
        told = rf"cannot use the cache folder {folder}: Permission denied; choose a folder on another local disk"
        with as_nobody(), pytest.raises(UserError, match=told), BlockCache([dataset], folder, LARGE):
            pass
    finally:
        shutil.rmtree(folder)


def test_a_folder_that_is_none_or_vanishes_is_told(dataset, tmp_path):
    (tmp_path / "file").touch()
    for folder, fault in [(tmp_path / "file", "File exists"), (tmp_path / "file/below", "Not a directory")]:
        told = rf"cannot use the cache folder {folder}: {fault}; choose"
        with pytest.raises(UserError, match=told), BlockCache([dataset], folder, LARGE):
            pass
    (piece, *_) = pieces_of(dataset)
    with BlockCache([dataset], tmp_path, LARGE) as cache:
        shutil.rmtree(cache._folder)
        for act in (lambda: cache.read(piece, piece.first_row), lambda: cache.evict([0])):
            with pytest.raises(UserError, match=rf"cannot use the cache folder {cache._folder}: No such file"):
                act()


def test_leaving_does_not_wait_for_what_is_on_its_way(dataset, tmp_path, faulty_store):
    held = faulty_store.proxy.add("hold", method="GET", path=SHARDS)
    with BlockCache([dataset], tmp_path, LARGE) as cache:
        cache.prefetch(pieces_of(dataset, 15))
        held.wait_until_held()
    assert list(tmp_path.iterdir()) == []
    held.release()
    wait_for(lambda: cache._num_threads == 0)
    assert list(tmp_path.iterdir()) == []


def test_copies_share_the_folder_and_leave_it_alone(cache, dataset):
    piece, other = pieces_of(dataset)[:2]
    copy = pickle.loads(pickle.dumps(cache))
    found = copy.read(piece, piece.first_row)
    assert cache.used_bytes() == copy.used_bytes() > 0
    with contextlib.closing(copy._owned):
        pass
    assert cache.read(piece, piece.first_row) == found
    assert cache.read(other, other.first_row) == copy.read(other, other.first_row)
