"""The stream from a bucket 30 ms away against the same one from the local disk; see `tests.bench.stream`.

An object store (SeaweedFS) on this machine behind `tests.bench.stream_latency`. Store and forwarder take processor time
and memory bandwidth that a real bucket does not: printed; and beside the local stream there is one that is read while
another process fetches as many bytes from the bucket and throws them away. What that one loses, the machine takes, not
the stream. 16 lanes, so that a dataset of 650 MB (the images three times, under other names) has some windows in each.
"""

import contextlib
import http.client
import itertools
import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import active_children, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from pretrain.batches.images import ImageMaker
from shards import storage
from shards.dataset import Dataset, open_dataset
from shards.streaming.ahead import cached
from shards.streaming.cache import FETCHES_AT_ONCE
from shards.streaming.order import BLOCK_BYTES
from shards.streaming.room import STEPS_PER_WORKER
from shards.streaming.stream import Stream
from tests.bench import stream_peers as peers
from tests.bench.stream_data import IMAGE_SETS, draw_jpegs, write_ours
from tests.bench.stream_latency import forwarder
from tests.bench.stream_race import BATCH, Entry, cpu_seconds, own_cpu_seconds, print_rates, race
from tests.conftest import start_store

_DELAY_S = 0.030
_SIDE_PX = 400
"""Large enough that the decoder is the limit: of chips of 64² it is the rest."""
_COPIES = 3
_SETTINGS = replace(peers.SETTINGS, lanes=16)
_CACHE_BYTES = 10**9
_TURNS, _BATCHES = 4, 96
_MAX_BEHIND = 4  # batches that a transfer may lag


def print_tables() -> None:
    """Measure and print, with 0 and 1 workers."""
    images = next(images for images in IMAGE_SETS if images.side_px == _SIDE_PX)
    with TemporaryDirectory(prefix="pera-bench-") as name, _store(Path(name, "store")) as (store_port, store_pid):
        folder, url = Path(name, "ours"), "s3://bench/ours"
        write_ours(folder, draw_jpegs(images), images.side_px, _COPIES)
        _upload(folder, url)
        with forwarder(store_port, _DELAY_S) as (port, forwarder_pid):
            os.environ["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{port}"
            for workers in (0, 1):
                entries = [
                    Entry(name="local", batches=local, arguments={"url": str(folder)}, workers=workers),
                    Entry(name="bucket", batches=bucket, arguments={"url": url, "cache": name}, workers=workers),
                    Entry(
                        name="local beside a transfer",
                        batches=local_beside_transfer,
                        arguments={"folder": str(folder), "url": url},
                        workers=workers,
                    ),
                ]
                rates = race(entries, turns=_TURNS, batches=_BATCHES)
                title = f"bucket, {_DELAY_S * 1000:.0f} ms per request, {images.name}: decoded, {workers} workers"
                print_rates(title, rates, ours="bucket", asked={"local": 0.9})
            _print_epoch(url, name, {"store": store_pid, "forwarder": forwarder_pid})


@contextlib.contextmanager
def _store(folder: Path) -> Iterator[tuple[int, int]]:
    """Run the tests' object store with a bucket `bench`; gives (its port, its process id)."""
    folder.mkdir()
    binary = shutil.which("weed", path=str(Path(sys.executable).parent)) or "weed"
    server, endpoint = start_store(binary, folder)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "devkey",
        "AWS_SECRET_ACCESS_KEY": "devsecret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": endpoint,
    }
    try:
        storage.filesystem("s3://bench")[0].mkdir("bench")
        yield int(endpoint.rpartition(":")[2]), server.pid
    finally:
        server.kill()
        server.wait()


def _upload(folder: Path, url: str) -> None:
    for path in sorted(folder.rglob("*.*")):
        if path.is_file():
            storage.put_file(path, storage.join(url, path.relative_to(folder).as_posix()))


def local(url: str, workers: int) -> Iterator[object]:
    """Yield decoded batches of a local dataset."""
    stream = Stream([open_dataset(url)], _SETTINGS, global_batch=BATCH)
    return peers.load_stream(stream, peers.decode_jpeg, workers)


def bucket(url: str, cache: str, workers: int) -> Iterator[object]:
    """Yield decoded batches of a dataset in a bucket, through a cache that is made in a folder."""
    stream = Stream([open_dataset(url)], _SETTINGS, global_batch=BATCH)
    with cached(stream, Path(cache), _CACHE_BYTES, queued_steps=STEPS_PER_WORKER * workers):
        yield from peers.load_stream(stream, peers.decode_jpeg, workers)


def local_beside_transfer(folder: str, url: str, workers: int) -> Iterator[object]:
    """Yield decoded batches of a local dataset while another process fetches as many bytes from the bucket."""
    dataset = open_dataset(url)
    batch_bytes = sum(shard.size for shard in dataset.shards) * BATCH // dataset.num_samples
    context = get_context("spawn")
    ours, others = context.Pipe()
    context.Process(target=_transfer, args=(_signed_blocks(dataset), others), daemon=True).start()
    others.close()
    ours.recv()
    for number, batch in enumerate(local(folder, workers)):
        ours.send(batch_bytes)
        if number >= _MAX_BEHIND:
            ours.recv()
        yield batch


def _signed_blocks(dataset: Dataset) -> list[tuple[str, int, int]]:
    """Return (signed URL, first byte, last byte) of all blocks of 2 MiB."""
    blocks = []
    for shard in dataset.shards:
        fs, path = storage.filesystem(shard.url)
        signed = fs.sign(path, expiration=3600)
        blocks += [
            (signed, first, min(first + BLOCK_BYTES, shard.size) - 1) for first in range(0, shard.size, BLOCK_BYTES)
        ]
    return blocks


def _transfer(blocks: list[tuple[str, int, int]], asked: Connection) -> None:
    """Fetch blocks, as many bytes as are asked for, several at a time and ahead, and as cheaply as Python can."""
    local = threading.local()

    def fetch(signed: str, first: int, last: int) -> int:
        parts = urlsplit(signed)
        if not hasattr(local, "connection"):
            local.connection, local.buffer = http.client.HTTPConnection(parts.netloc), bytearray(BLOCK_BYTES)
        local.connection.request("GET", f"{parts.path}?{parts.query}", headers={"Range": f"bytes={first}-{last}"})
        answer = local.connection.getresponse()
        assert answer.status == 206, answer.status
        while answer.readinto(local.buffer):
            pass
        return last + 1 - first

    with ThreadPoolExecutor(FETCHES_AT_ONCE) as pool, contextlib.suppress(EOFError, ConnectionError):
        asked.send("ready")
        ahead: deque[Future[int]] = deque()
        fetched, wanted, endless = 0, 0, itertools.cycle(blocks)
        while True:
            wanted += asked.recv()
            while fetched < wanted:
                while len(ahead) < FETCHES_AT_ONCE:
                    ahead.append(pool.submit(fetch, *next(endless)))
                fetched += ahead.popleft().result()
            asked.send("done")


def _print_epoch(url: str, cache: str, servers: dict[str, int]) -> None:
    before = {name: cpu_seconds(pid) for name, pid in servers.items()}
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        figures = pool.submit(_epoch, url, cache).result()
    used = {"reading and fetching": figures["cpu s"]} | {
        name: cpu_seconds(pid) - before[name] for name, pid in servers.items()
    }
    thousands = figures["samples"] / 1000
    print(f"\nbucket: one epoch from an empty cache, {figures['samples']:.0f} samples, 0 workers, decoded")
    print(f"  opening {figures['open s']:.2f} s, first batch {figures['first s']:.2f} s later")
    print(f"  bytes fetched / used {figures['fetched'] / figures['used']:.3f} (asked ≤ 1.05), ", end="")
    print(f"{figures['gets'] / thousands:.1f} GETs per 1,000 samples")
    print("  processor time per 1,000 samples: ", end="")
    print(", ".join(f"{name} {seconds / thousands:.2f} s" for name, seconds in used.items()), end="")
    print(f"; {sum(used.values()) / figures['wall s']:.2f} cores busy of {os.cpu_count()}", flush=True)


def _epoch(url: str, cache: str) -> dict[str, float]:
    """Read an epoch; what lies ready for the next one at its end was not fetched for this one."""
    begin, cpu = time.perf_counter(), own_cpu_seconds()
    dataset = open_dataset(url)
    opened = time.perf_counter()
    storage.traffic.clear()
    stream = Stream([dataset], _SETTINGS, global_batch=BATCH)
    with cached(stream, Path(cache), _CACHE_BYTES):
        maker = ImageMaker(stream)
        maker.make(0)
        first = time.perf_counter()
        num_steps = dataset.num_samples // BATCH
        for step in range(1, num_steps):
            maker.make(step)
            stream.move_on(step)
        wall_s, cpu_s = time.perf_counter() - opened, own_cpu_seconds() - cpu
        cpu_s += sum(cpu_seconds(process.pid or 0) for process in active_children())
        traffic, ready = _settled(stream, num_steps)
    return {
        "samples": dataset.num_samples,
        "open s": opened - begin,
        "first s": first - opened,
        "wall s": wall_s,
        "cpu s": cpu_s,
        "gets": traffic["gets"],
        "fetched": traffic["bytes"] - ready,
        "used": sum(int(size) for size in dataset.rows.units_P) * 512,
    }


def _settled(stream: Stream, num_steps: int) -> tuple[dict[str, int], int]:
    """Return what was read of the store and the bytes of it that lie ready, once nothing is on its way any more."""
    assert stream.cache is not None
    assert stream.fetcher is not None
    stream.cache.evict(stream.consumed(num_steps))
    traffic: dict[str, int] = {}
    while traffic != (traffic := dict(storage.traffic)):
        time.sleep(1)
        stream.fetcher(num_steps - 1)
    return traffic, stream.cache.used_bytes()
