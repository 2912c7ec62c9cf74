"""The stream from a bucket: the same as from a disk, for any ranks, workers and caches, whatever the store does.

Workers are processes, as a data loader's; the main process evicts behind them.
"""

import contextlib
import hashlib
import multiprocessing
import os
import pickle
import re
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards import storage
from shards.curation.select import select
from shards.dataset import CorruptSampleError, open_dataset
from shards.errors import UserError
from shards.images import encode_image
from shards.indexing.index import index
from shards.storage import retry, urls
from shards.storage.retry import StorageError
from shards.streaming.cache import FETCHES_AT_ONCE, BlockCache
from shards.streaming.order import OrderSettings
from shards.streaming.stream import Stream
from shards.tar import ShardWriter

SETTINGS = OrderSettings(seed=3, lanes=4, block_bytes=8192, window=2)
GLOBAL_BATCH = 16
NUM_STEPS = 10
LARGE = 10**9
TIGHT = 150_000
NUM_READERS = FETCHES_AT_ONCE + 1  # threads, and a sample that waits: what is refused nobody asks twice
SHARDS = r"/shards/.*\.tar"


@pytest.fixture(scope="module")
def local_url(tmp_path_factory, write_dataset):
    return write_dataset(str(tmp_path_factory.mktemp("faults") / "data"), num_samples=100, tile_px=16)


def upload(local_url, url):
    for info in storage.list_files(local_url):
        storage.write_bytes(storage.join(url, info.path), Path(local_url, info.path).read_bytes())
    return open_dataset(url)


@pytest.fixture(scope="module")
def opened(local_url, object_store):
    return upload(local_url, storage.join(object_store, "stream"))


@pytest.fixture
def dataset(opened, faulty_store):
    """The dataset in the bucket, behind the proxy, as a process sees it for the first time."""
    return pickle.loads(pickle.dumps(opened))


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Short waits, and a read that stalls is given up soon."""
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(retry, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(urls, "READ_TIMEOUT_S", 1.0)


@contextlib.contextmanager
def entered(dataset, folder, limit=LARGE):
    """Enter a cache; in the end wait for its threads, which would go on while other tests look."""
    with BlockCache([dataset], folder, limit) as cache:
        yield cache
    while cache._num_threads:
        time.sleep(0.01)


def digest(sample, _dataset):
    """Return what names a sample's key and bytes."""
    found = hashlib.sha256(sample.key.encode())
    for name, content in sorted(sample.members.items()):
        found.update(f"{name} {len(content)} ".encode() + content)
    return found.hexdigest()


def make_stream(dataset, cache=None, **options):
    return Stream([dataset], SETTINGS, global_batch=GLOBAL_BATCH, cache=cache, **options)


def result_of(stream, step):
    read = stream.read(step, digest)
    return [(slot.number, item) for slot, item in zip(read.slots, read.items, strict=True)], read.replaced


def whole_stream(dataset, cache=None, num_steps=NUM_STEPS, **options):
    """Return (slots and digests, replacements) of each step, read by this process."""
    stream = make_stream(dataset, cache, **options)
    results = []
    for step in range(num_steps):
        results.append(result_of(stream, step))
        if cache is not None:
            cache.evict(stream.consumed(step + 1))
    return results


@pytest.fixture(scope="module")
def truth(local_url):
    """The stream from the disk."""
    return whole_stream(open_dataset(local_url))


_answers = None


def _join(answers, environment):
    global _answers
    _answers = answers
    # A fork server that runs already may not know the store.
    os.environ.update(environment)


def _work(stream, steps, endpoint, rank):
    """Read steps as a loader's worker does, and tell what this process has asked the store for."""
    if endpoint != os.environ.get("AWS_ENDPOINT_URL_S3"):
        os.environ["AWS_ENDPOINT_URL_S3"] = endpoint
        storage.filesystem("s3://bucket")[0].clear_instance_cache()
    retry.FIRST_WAIT_S, retry.LONGEST_WAIT_S = 0.01, 0.05
    before = storage.traffic.copy()
    try:
        for step in steps:
            _answers.put((rank, step, result_of(stream, step)))
    except BaseException as error:
        _answers.put((rank, -1, repr(error)))
        raise
    while stream.cache._num_threads:
        time.sleep(0.01)
    return storage.traffic - before


@pytest.fixture(scope="module")
def workers(object_store):
    """A function that reads the stream in ranks × workers; returns results by step, ranks one after the other."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["shards.streaming.stream", "s3fs"])
    answers = context.SimpleQueue()
    initial = answers, dict(os.environ)
    with ProcessPoolExecutor(4, mp_context=context, initializer=_join, initargs=initial) as pool:

        def run(dataset, folder, *, ranks, workers, limit=LARGE, num_steps=NUM_STEPS, **options):
            endpoint = os.environ["AWS_ENDPOINT_URL_S3"]
            with contextlib.ExitStack() as stack:
                caches = [stack.enter_context(BlockCache([dataset], folder, limit)) for _ in range(ranks)]
                streams = [
                    make_stream(dataset, cache, rank=r, world=ranks, **options) for r, cache in enumerate(caches)
                ]
                running = [
                    pool.submit(_work, stream, range(worker, num_steps, workers), endpoint, rank)
                    for rank, stream in enumerate(streams)
                    for worker in range(workers)
                ]
                found = collect(answers, streams, num_steps)
                return found, sum((future.result() for future in running), start=Counter())

        yield run


def collect(answers, streams, num_steps):
    """Take the results as they come, deliver each rank's steps in order, and evict behind them."""
    found = {}
    delivered = [0] * len(streams)
    while len(found) < len(streams) * num_steps:
        rank, step, result = answers.get()
        assert step >= 0, result
        found[rank, step] = result
        while (rank, delivered[rank]) in found:
            delivered[rank] += 1
            streams[rank].cache.evict(streams[rank].consumed(delivered[rank]))
    return [
        (
            [each for rank in range(len(streams)) for each in found[rank, step][0]],
            [each for rank in range(len(streams)) for each in found[rank, step][1]],
        )
        for step in range(num_steps)
    ]


def num_pieces(streams, num_steps):
    return sum(len({slot.piece for step in range(num_steps) for slot in stream.slots(step)}) for stream in streams)


@pytest.mark.parametrize(
    ("ranks", "processes", "limit", "delay_s"),
    [
        (1, 1, LARGE, 0),
        (1, 2, TIGHT, 0.02),
        (1, 4, LARGE, 0.02),
        (2, 1, TIGHT, 0),
        (2, 2, LARGE, 0),
        (4, 1, LARGE, 0.02),
    ],
)
def test_ranks_workers_cache_and_latency_change_nothing(
    workers, dataset, truth, faulty_store, tmp_path, ranks, processes, limit, delay_s
):
    if delay_s:
        faulty_store.proxy.add("delay", method="GET", path=SHARDS, seconds=delay_s)
    found, traffic = workers(dataset, tmp_path, ranks=ranks, workers=processes, limit=limit)
    assert found == truth
    assert list(tmp_path.iterdir()) == []
    streams = [make_stream(dataset, rank=rank, world=ranks) for rank in range(ranks)]
    # However many processes a rank has, each piece is fetched once; of those ahead, as many as there was time and room.
    # A process that lags may fetch one again that the others are done with.
    assert num_pieces(streams, NUM_STEPS) <= traffic["gets"]
    assert traffic["gets"] <= 1.2 * num_pieces(streams, NUM_STEPS + streams[0].ahead_steps)
    assert traffic["bytes_used"] == 512 * sum(
        int(dataset.rows.units_P[slot.row])
        for stream in streams
        for step in range(NUM_STEPS)
        for slot in stream.slots(step)
    )


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_epoch_reads_its_bytes_once(workers, dataset, tmp_path, ranks):
    num_steps = dataset.num_samples // GLOBAL_BATCH
    _, traffic = workers(dataset, tmp_path, ranks=ranks, workers=2, num_steps=num_steps, ahead_steps=0)
    assert traffic["bytes_used"] < traffic["bytes"] <= 1.05 * traffic["bytes_used"]


def test_a_selection_comes_from_a_bucket_as_from_a_disk(local_url, faulty_store, tmp_path):
    url = storage.join(faulty_store.url, "selected")
    upload(local_url, url)
    select(url, "key[-1:] in ('0', '1', '3', '8')")
    chosen = open_dataset(url)
    assert chosen.num_samples == 40
    with entered(chosen, tmp_path) as cache:
        cached = whole_stream(chosen, cache)
    assert cached == whole_stream(chosen)


def write_tars(folder, extension, seed, keys):
    """Write samples in two tars; return their URLs."""
    draws = np.random.default_rng(seed)
    for number in range(2):
        with (folder / f"{extension}-{number}.tar").open("wb") as file:
            writer = ShardWriter(file)
            for key in keys[number::2]:
                pixels = draws.integers(0, 255, (8, 8, 3), np.uint8)
                writer.write(key, {extension: encode_image(pixels, extension)[1], "txt": draws.bytes(900)})
            writer.close()
    return [str(folder / f"{extension}-{number}.tar") for number in range(2)]


def test_tars_of_two_modalities_come_from_a_bucket_as_from_a_disk(faulty_store, tmp_path):
    keys = [f"sample-{number}" for number in range(30)]
    urls = []
    for name, extension, order in (("rgb", "png", keys), ("nir", "npy", keys[::-1])):
        for path in write_tars(tmp_path, extension, len(urls), order):
            urls.append(f"{name}={storage.join(faulty_store.url, Path(path).name)}")
            storage.write_bytes(urls[-1].partition("=")[2], Path(path).read_bytes())
    index(urls, str(tmp_path / "tables"))
    dataset = open_dataset(str(tmp_path / "tables"))
    with entered(dataset, tmp_path / "cache") as cache:
        cached = whole_stream(dataset, cache)
    assert cached == whole_stream(dataset)
    assert set(dataset.read(0).members) == {"rgb.png", "rgb.txt", "nir.npy", "nir.txt"}


FAULTS = {
    "storm": ("throttled", {"fault": "answer", "status": 503, "probability": 0.3}),
    "server": ("server", {"fault": "answer", "status": 500, "probability": 0.3}),
    "stall": ("timeout", {"fault": "stall", "seconds": 3, "nth": (5, 6)}),
    "cut": ("short_body", {"fault": "cut", "num_bytes": 700, "probability": 0.3}),
    "shortened": ("short_body", {"fault": "shorten", "num_bytes": 700, "probability": 0.3}),
    "lost": ("connection", {"fault": "drop_reply", "probability": 0.3}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_that_pass_change_nothing_and_are_counted(dataset, truth, faulty_store, tmp_path, name):
    kind, fault = FAULTS[name]
    rule = faulty_store.proxy.add(**fault, method="GET", path=SHARDS)
    before = storage.retries.copy()
    with entered(dataset, tmp_path) as cache:
        assert whole_stream(dataset, cache) == truth
    assert (storage.retries - before)[kind] > 0
    assert rule.num_hit > 0


def test_a_byte_flipped_on_the_way_is_healed_and_counted(dataset, truth, faulty_store, tmp_path):
    rule = faulty_store.proxy.add("flip", method="GET", path=SHARDS, nth=(2, 7), num_bytes=1000)
    before = storage.retries["checksum"]
    with entered(dataset, tmp_path) as cache:
        assert whole_stream(dataset, cache) == truth
    assert rule.num_hit == 2
    assert storage.retries["checksum"] == before + 2


@pytest.fixture
def damaged(local_url, faulty_store):
    """The dataset in a bucket where one byte of sample 7 is flipped, and the URL of its shard."""
    dataset = upload(local_url, storage.join(faulty_store.url, "damaged"))
    place = dataset.rows.place(7)
    url = dataset.shards[place.shard].url
    data = bytearray(storage.read_bytes(url))
    data[place.offset + 700] ^= 1
    storage.write_bytes(url, bytes(data))
    return dataset, url


def test_a_sample_that_is_damaged_at_rest_stops_the_run_by_name(damaged, tmp_path):
    dataset, url = damaged
    told = rf"sample 7 \(byte {dataset.rows.place(7).offset} of {url}\) does not match its checksum"
    with entered(dataset, tmp_path) as cache, pytest.raises(CorruptSampleError, match=told):
        whole_stream(dataset, cache)


def test_a_damaged_sample_is_replaced_alike_by_any_ranks_and_workers(workers, damaged, truth, tmp_path):
    dataset, url = damaged
    with entered(dataset, tmp_path) as cache:
        alone = whole_stream(dataset, cache, on_bad="replace")
    for ranks, processes in ((1, 2), (2, 1), (2, 2), (4, 1)):
        assert workers(dataset, tmp_path, ranks=ranks, workers=processes, on_bad="replace")[0] == alone
    replaced = [each for _, step in alone for each in step]
    assert [each.row for each in replaced] == [7] * len(replaced)
    assert len(replaced) in (1, 2)  # in ten steps of 16 of 100 samples
    assert all(url in each.name and "checksum" in each.fault for each in replaced)
    wrong = {number for (slots, _), (true, _) in zip(alone, truth, strict=True) for number, _ in set(slots) - set(true)}
    assert wrong == {each.number for each in replaced}


def refused(dataset, folder, error=UserError):
    """Return what a run is told that cannot read its shards."""
    with entered(dataset, folder) as cache, pytest.raises(error) as caught:
        whole_stream(dataset, cache)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_shard_stops_the_run_by_name(damaged, tmp_path):
    dataset, url = damaged
    storage.remove(url)
    assert re.fullmatch(rf"{url}: not there \(some of samples .*\); restore it .*", refused(dataset, tmp_path))


def test_a_shard_of_another_size_stops_the_run_by_name(damaged, tmp_path):
    dataset, url = damaged
    data = storage.read_bytes(url)
    storage.write_bytes(url, data + b"x")
    assert refused(dataset, tmp_path) == f"{url} changed: {len(data) + 1} bytes, not the {len(data)} of the dataset"


def test_a_shard_that_is_overwritten_meanwhile_stops_the_run_by_name(damaged, tmp_path):
    dataset, url = damaged
    with entered(dataset, tmp_path) as cache:
        stream = make_stream(dataset, cache, ahead_steps=0, on_bad="replace")
        result_of(stream, 0)
        assert {0, 1, 2} == set(dataset._first_etags)
        storage.write_bytes(url, storage.read_bytes(url)[::-1])
        with pytest.raises(UserError, match=rf"{url} changed: its ETag is \w+, not \w+ as when first read"):
            whole_stream(dataset, cache, ahead_steps=0, on_bad="replace")


def test_a_shard_that_is_another_one_than_was_indexed_is_not_read(damaged, faulty_store, tmp_path):
    dataset, url = damaged
    dataset.shards = [replace(shard, etag=storage.stat(shard.url).etag) for shard in dataset.shards]
    storage.write_bytes(url, storage.read_bytes(url)[::-1])
    assert re.fullmatch(rf"{url} changed: its ETag is \w+, not \w+ as when indexed", refused(dataset, tmp_path))


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (403, "AccessDenied", "no permission for {url}: check its mode or your credentials"),
        (
            400,
            "ExpiredToken",
            "no permission for {url}: .*credentials|the store refuses {url} .400: .*token may have expired",
        ),
        (400, "InvalidToken", "the store refuses {url} .*: check region and credentials; a token may have expired"),
    ],
)
def test_a_store_that_forbids_stops_the_run_at_once(dataset, faulty_store, tmp_path, method, status, code, told):
    rule = faulty_store.proxy.add("answer", method=method, path=SHARDS, status=status, code=code)
    url = f"{dataset.url}/shards/[0-9a-f]+.tar"
    assert re.match(told.format(url=url), refused(dataset, tmp_path))
    assert rule.num_hit <= NUM_READERS


def test_credentials_that_stop_being_good_are_told_at_once(dataset, faulty_store, tmp_path, monkeypatch):
    fs, _ = storage.filesystem(dataset.url)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    fs.clear_instance_cache()
    told = refused(dataset, tmp_path)
    assert re.match(rf"no permission for {dataset.url}/shards/\w+.tar: check its mode or your credentials", told)
    assert faulty_store.proxy.count(path=SHARDS) <= NUM_READERS


def test_a_store_that_stays_down_is_given_up(dataset, faulty_store, tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "DEADLINE_S", 0.3)
    faulty_store.proxy.add("answer", path=SHARDS, status=503)
    assert re.match(r"s3://.*\.tar: gave up after \d s \(throttled\)", refused(dataset, tmp_path, StorageError))
