import gc
import multiprocessing
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import islice
from multiprocessing import forkserver, resource_sharer
from multiprocessing.connection import Client
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from pretrain.batches import parcels
from pretrain.batches.batch import BatchMaker
from pretrain.batches.images import ImageMaker
from pretrain.batches.loader import COUNTS, WorkerKilledError, _Steps, _told_unless_left, deliver
from pretrain.batches.sources import open_sources
from pretrain.config import MixConfig
from pretrain.runs.metrics import read_rows
from pretrain.training.loop import train
from shards.dataset import CorruptSampleError, open_dataset
from shards.errors import UserError
from shards.images import decode_image
from shards.storage.reading import count_traffic
from shards.streaming import ahead
from shards.streaming.cache import BlockCache
from shards.streaming.order import OrderSettings
from shards.streaming.stream import Stream

# On one core, as torch sees it, two workers are too many.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

BATCH = 16


class Informed(BatchMaker):
    """Tells its workers how to reach the store: a fork server that runs already may not know."""

    def __getstate__(self):
        return {**vars(self), "environment": dict(os.environ)}

    def __setstate__(self, state):
        os.environ.update(state.pop("environment"))
        vars(self).update(state)


def make_maker(config, **place):
    sources = open_sources(config)
    # Blocks of about three samples, windows of two blocks: 24 samples have some of each.
    settings = OrderSettings(seed=3, lanes=8, block_bytes=2**13, window=2)
    stream = Stream(sources.datasets, settings, global_batch=BATCH, **place)
    return Informed(stream, config, sources.places)


def digests(config, by_number, *, world=1, workers=0, start=0, num_steps=4, cache=None):
    """Return for each step the numbers, keys and digests of the global batch's samples."""
    steps = [{} for _ in range(num_steps)]
    for rank in range(world):
        maker = make_maker(config, rank=rank, world=world, start=start)
        with ExitStack() as stack:
            if cache:
                maker.stream.cache = stack.enter_context(BlockCache(maker.stream.datasets, cache, 10**6))
            deliveries = stack.enter_context(closing(deliver(maker, num_steps=num_steps, workers=workers)))
            for step, delivery in enumerate(deliveries):
                slots = maker.stream.slots(step)
                keys = {slot.number: maker.stream.datasets[slot.dataset].read(slot.row).key for slot in slots}
                found = by_number(slots, delivery.batch)
                steps[step] |= {number: (keys[number], digest) for number, digest in found.items()}
    # What a closed cache is still being sent is counted when it is there, and would be of the next test.
    for thread in threading.enumerate():
        if thread.name == "prefetch":
            thread.join()
    return steps


@pytest.mark.parametrize(
    ("world", "workers"),
    [
        (1, 2),
        (2, 0),
        pytest.param(2, 1, marks=pytest.mark.long),
        (2, 2),
        pytest.param(4, 1, marks=pytest.mark.long),
        (8, 1),
    ],
)
def test_ranks_and_workers_do_not_change_the_batches(tiny, by_number, world, workers):
    whole = digests(tiny, by_number)
    # Two and two thirds epochs of 24 samples in 4 batches of 16.
    assert [sorted(step) for step in whole] == [list(range(k * BATCH, (k + 1) * BATCH)) for k in range(4)]
    assert Counter(key for step in whole for key, _ in step.values()).most_common()[-1][1] == 2
    assert digests(tiny, by_number, world=world, workers=workers) == whole


def test_a_mixture_is_cut_like_one_dataset(tiny, by_number, tmp_path, write_dataset):
    other = write_dataset(str(tmp_path / "other"), num_samples=7, seed=4)
    config = replace(tiny, mix=(MixConfig(data=other),))
    whole = digests(config, by_number)
    assert {slot.dataset for slot in make_maker(config).stream.slots(0)} == {0, 1}
    assert digests(config, by_number, world=2, workers=2) == whole


def test_other_ranks_and_workers_go_on_in_mid_epoch(tiny, by_number):
    whole = digests(tiny, by_number)
    assert digests(tiny, by_number, world=4, workers=2, start=BATCH, num_steps=3) == whole[1:]


def test_a_bucket_gives_the_same_batches(variant, by_number, object_store, tmp_path):
    import s3fs

    s3fs.S3FileSystem().put(variant().data, f"{object_store}/loader", recursive=True)
    local = digests(variant(), by_number)
    config = variant(data=f"{object_store}/loader")
    for world, workers in ((1, 0), (2, 2)):
        assert digests(config, by_number, world=world, workers=workers, cache=tmp_path) == local
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_requests_of_whoever_fetches_ahead_are_counted_once(tiny, monkeypatch, workers):
    maker = make_maker(tiny)
    maker.stream.fetcher = lambda step: count_traffic(gets=step)
    with closing(deliver(maker, num_steps=3, workers=workers)) as deliveries:
        counts = [delivery.counts["gets"] for delivery in deliveries]
    # Here a delivery is counted before its step is over.
    assert counts == ([1, 2, 3] if workers else [0, 1, 2])


def test_each_kind_of_retry_reaches_a_row_of_metrics(tiny, faulty_store, tmp_path, monkeypatch):
    import s3fs

    # Nobody else fetches: what of its counts comes in time is chance. See test_ahead.py for these.
    monkeypatch.setattr(ahead, "_Fetcher", Mock())
    s3fs.S3FileSystem().put(tiny.data, f"{faulty_store.url}/data", recursive=True)
    loader = replace(tiny.loader, cache=str(tmp_path / "cache"))
    config = replace(tiny, data=f"{faulty_store.url}/data", max_steps=3, loader=loader)
    shards = r"/shards/.*\.tar"
    faulty_store.proxy.add("answer", method="GET", path=shards, status=503, nth=(1,))
    faulty_store.proxy.add("flip", method="GET", path=shards, nth=(2,), num_bytes=100)
    train(config)
    # Three steps of 10 are all samples of an epoch.
    row = sum(map(Counter, read_rows(config.run)), Counter())
    assert (row["retries_throttled"], row["retries_checksum"], row["retries"]) == (1, 1, 2)
    # Each of three shards once, by the one process that reads.
    assert row["heads"] == faulty_store.proxy.count("HEAD", shards) == 3
    assert row["bad_samples"] == 0


def test_batches_of_workers_may_be_kept_and_their_memory_is_used_again(tiny, by_number):
    maker = make_maker(tiny)

    def digest(step, delivery):
        return by_number(maker.stream.slots(step), delivery.batch)

    with closing(deliver(maker, num_steps=24)) as deliveries:
        wanted = list(map(digest, range(24), deliveries))
    with closing(deliver(maker, num_steps=24, workers=1)) as deliveries:
        found = [digest(step, delivery) for step, delivery in zip(range(12), deliveries, strict=False)]
        # Two under way, two here.
        assert 1 <= len(parcels._known) <= 4
        kept = [next(deliveries) for _ in range(12)]
        assert len(parcels._known) >= len(kept)
    assert not parcels._known
    assert found + list(map(digest, range(12, 24), kept)) == wanted


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [{}, {"dtype": "uint16", "encoding": "npy"}])
def test_whole_images_for_other_trainers(tmp_path, write_dataset, workers, kind):
    url = write_dataset(str(tmp_path / "data"), **kind)
    damage(url, 1)
    dataset = open_dataset(url)
    settings = OrderSettings(seed=3, lanes=8, block_bytes=2**13, window=2)
    stream = Stream([dataset], settings, global_batch=BATCH, rank=1, world=2, on_bad="replace")
    with closing(deliver(ImageMaker(stream), num_steps=6, workers=workers)) as deliveries:
        found = list(deliveries)
    assert sum(len(each.replaced) for each in found) >= 1
    for step, delivery in enumerate(found):
        images = delivery.batch
        assert [slot.number for slot in images.slots] == [slot.number for slot in stream.slots(step)]
        samples = [dataset.read(slot.row) for slot in images.slots]
        assert [sample.key for sample in samples] == images.keys
        for pixels, sample in zip(images.pixels_BHWC.numpy(), samples, strict=True):
            np.testing.assert_array_equal(pixels, decode_image(sample.ext, sample.image))


def test_no_shared_memory_is_told_by_the_training_process(tiny, monkeypatch):
    def full(self):
        raise RuntimeError("No space left on device (28)")

    steps = pickle.loads(pickle.dumps(_Steps(make_maker(tiny))))  # as in a worker
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    told = steps[0]
    assert isinstance(told, UserError)
    assert "No space left" in str(told)


def test_the_seed_decides(variant, by_number):
    assert digests(variant(seed=1), by_number, num_steps=1) != digests(variant(), by_number, num_steps=1)


def test_what_was_not_asked_for_counts_nothing(tiny):
    with closing(deliver(make_maker(tiny), num_steps=2)) as deliveries:
        for delivery in deliveries:
            assert {name: delivery.counts[name] for name in COUNTS} == dict.fromkeys(COUNTS, 0)
            assert not delivery.replaced


def damage(url, number):
    """Flip one byte in the middle of a shard's sample; return the shard."""
    shard = sorted(Path(url, "shards").iterdir())[number]
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    return shard


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_stops_the_stream_by_name(variant, tmp_path, write_dataset, workers):
    config = variant(data=write_dataset(str(tmp_path / "data")))
    shard = damage(config.data, 0)
    with pytest.raises(CorruptSampleError, match=rf"sample \d+ \(byte 0 of {shard}\) does not match its checksum$"):
        list(deliver(make_maker(config), num_steps=2, workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_is_replaced_by_the_same_one_anywhere(variant, tmp_path, write_dataset, by_number, workers):
    config = variant(data=write_dataset(str(tmp_path / "data")))
    shard = damage(config.data, 0)

    def replaced(world, workers):
        makers = [make_maker(config, rank=rank, world=world, on_bad="replace") for rank in range(world)]
        return [
            entry
            for maker in makers
            for each in deliver(maker, num_steps=3, workers=workers)
            for entry in each.replaced
        ]

    entries = replaced(1, 0)
    # 48 samples are two epochs.
    assert len(entries) == 2
    assert {entry.row for entry in entries} != {entry.replaced_by for entry in entries}
    assert all(str(shard) in entry.name and "checksum" in entry.fault for entry in entries)
    assert sorted(replaced(2, workers), key=lambda entry: entry.number) == entries


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_shard_is_the_users_to_mend(variant, tmp_path, write_dataset, workers):
    config = variant(data=write_dataset(str(tmp_path / "data")))
    shard = sorted(Path(config.data, "shards").iterdir())[1]
    maker = make_maker(config)
    shard.unlink()
    with pytest.raises(UserError, match=rf"^{shard}: not there"):
        list(deliver(maker, num_steps=2, workers=workers))


def test_workers_share_the_tables(tiny, monkeypatch):
    # Else only those of 131,072 samples or more.
    monkeypatch.setattr("shards.handover.SHARED_BYTES", 0)
    with closing(deliver(make_maker(tiny), num_steps=50, workers=1)) as deliveries:
        next(deliveries)
        (worker,) = multiprocessing.active_children()
        mapped = Path(f"/proc/{worker.pid}/smaps").read_text().partition("memfd:pera-arrays")[2]
        assert mapped
        assert re.search(r"^Private_Dirty: +0 kB", mapped, re.MULTILINE)


class Odd(BatchMaker):
    def make(self, step, *args):  # noqa: D102
        if step == 1:
            raise IndexError("a defect of ours")
        return super().make(step, *args)


def test_a_defect_in_a_worker_keeps_its_traceback(tiny):
    maker = make_maker(tiny)
    odd = Odd(maker.stream, tiny, [(0, 1, 2)])
    with pytest.raises(IndexError, match=r"Traceback[\s\S]*in make[\s\S]*a defect of ours"):
        list(deliver(odd, num_steps=3, workers=1))


def test_a_killed_worker_is_told(tiny):
    deliveries = deliver(make_maker(tiny), num_steps=50, workers=2)
    next(deliveries)
    victim = multiprocessing.active_children()[0]
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(WorkerKilledError, match=r"one of 2 processes .* was killed.*lower loader\.workers"):
        list(deliveries)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("pause", ["close", "error"])
def test_no_worker_outlives_its_stream(tiny, pause):
    maker = make_maker(tiny)
    deliveries = deliver(maker, num_steps=50, workers=2)
    assert len(list(islice(deliveries, 2))) == 2
    assert len(multiprocessing.active_children()) == 2
    if pause == "close":
        deliveries.close()
    else:
        del deliveries
        gc.collect()
    assert not multiprocessing.active_children()


def test_other_processes_of_the_fork_server_can_be_ended(tiny):
    # Whoever starts the server decides which signals its processes block.
    forkserver._forkserver._stop()
    with closing(deliver(make_maker(tiny), num_steps=2, workers=1)) as deliveries:
        next(deliveries)
    other = multiprocessing.get_context("forkserver").Process(target=signal.pause, daemon=True)
    other.start()
    other.terminate()
    other.join(60)
    exit_code = other.exitcode
    other.kill()
    assert exit_code == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_for_all_do_not_end_the_workers(tiny, number):
    with closing(deliver(make_maker(tiny), num_steps=50, workers=1)) as deliveries:
        next(deliveries)
        (worker,) = multiprocessing.active_children()
        server = forkserver._forkserver._forkserver_pid
        for process in (worker.pid, server):
            os.kill(process, number)
        assert len(list(deliveries)) == 49
        assert forkserver._forkserver._forkserver_pid == server


def test_a_training_process_that_leaves_while_it_takes_a_batch_is_no_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", _told_unless_left)
    with open(os.devnull) as file:
        first, second = (resource_sharer.DupFd(file.fileno()) for _ in range(2))
    place, _ = first._id
    Client(place, authkey=multiprocessing.current_process().authkey).close()
    os.close(second.detach())  # one after the other is served: the thread is done with who left
    assert capsys.readouterr().err == ""
    _told_unless_left(KeyError, KeyError("a defect"), None)
    assert "a defect" in capsys.readouterr().err


STOPPED = """
import signal, sys
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
from pretrain.batches.batch import BatchMaker
from pretrain.batches.loader import deliver
from pretrain.batches.sources import begin_stream, continued_stream, open_sources
from pretrain.config import Config
from shards.cli import parse_config
config = parse_config("pretrain", "", Config, sys.argv[1:])
sources = open_sources(config)
with continued_stream(config, sources, begin_stream(config, sources)) as stream:
    try:
        print("begin", flush=True)
        for _ in deliver(BatchMaker(stream, config, sources.places), num_steps=10**6, workers=2):
            pass
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize(
    ("number", "code", "longest_s"),
    [
        (signal.SIGINT, 130, 0),
        (signal.SIGTERM, 143, 3),
        pytest.param(signal.SIGINT, 130, 3, marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, 143, 0, marks=pytest.mark.long),
    ],
)
def test_a_stop_while_workers_begin_is_quiet(data_url, tmp_path, wait_until_gone, number, code, longest_s):
    arguments = ["--data", data_url, "--run", str(tmp_path), "--model.image_px", "32", "--loader.batch", "4"]
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, *arguments],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # Who runs tests in the background of a shell has them ignore Ctrl-C, and so what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.readline() == b"begin\n"
    delay_s = random.uniform(0, longest_s)
    time.sleep(delay_s)
    os.killpg(process.pid, number)
    errors = process.stderr.read().decode()
    assert (process.wait(), errors) == (code, ""), delay_s
    wait_until_gone(process.pid)
