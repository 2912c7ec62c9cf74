"""A process of its own fetches what comes next: who reads asks the store for nothing, and gets the same samples."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from shards import storage
from shards.dataset import open_dataset
from shards.storage import reading, retry
from shards.streaming.ahead import cached
from shards.streaming.order import OrderSettings
from shards.streaming.serve import in_turn, report_step
from shards.streaming.stream import Stream

SETTINGS = OrderSettings(seed=3, lanes=4, block_bytes=8192, window=2)
GLOBAL_BATCH = 16
NUM_STEPS = 10
LARGE = 10**9


@pytest.fixture(scope="module")
def local_url(tmp_path_factory, write_dataset):
    return write_dataset(str(tmp_path_factory.mktemp("ahead") / "data"), num_samples=100, tile_px=16)


@pytest.fixture(scope="module")
def bucket_url(local_url, object_store):
    url = storage.join(object_store, "ahead")
    for info in storage.list_files(local_url):
        storage.write_bytes(storage.join(url, info.path), Path(local_url, info.path).read_bytes())
    return url


def make_stream(url):
    return Stream([open_dataset(url)], SETTINGS, global_batch=GLOBAL_BATCH)


@pytest.fixture(scope="module")
def truth(local_url):
    return [report_step(make_stream(local_url), True, step) for step in range(NUM_STEPS)]


def eventually(condition):
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit, "it never came"
        time.sleep(0.02)


def fetched_up_to(stream, step):
    """Return whether all that a step needs lies in the cache."""
    return all(stream.cache._path(piece).exists() for piece in stream._pieces(step))


def fetcher_pid():
    (process,) = multiprocessing.active_children()
    return process.pid


def test_who_reads_asks_the_store_for_nothing(bucket_url, truth, tmp_path, monkeypatch):
    stream = make_stream(bucket_url)
    monkeypatch.setattr(reading, "_get", lambda *_, **__: pytest.fail("read here"))
    with cached(stream, tmp_path, LARGE):
        for step in range(NUM_STEPS):
            eventually(partial(fetched_up_to, stream, step))
            assert report_step(stream, True, step) == truth[step]
            stream.move_on(step + 1)
    assert not multiprocessing.active_children()
    assert not list(tmp_path.iterdir())


def test_it_begins_where_the_stream_does_and_stays_as_far_ahead_as_was_said(bucket_url, tmp_path):
    stream = make_stream(bucket_url)
    stream.ahead_steps = 1
    with cached(stream, tmp_path, LARGE, first_step=2, queued_steps=1):
        eventually(partial(fetched_up_to, stream, 4))
        pieces = {stream.cache._path(piece).name for step in (2, 3, 4) for piece in stream._pieces(step)}
        assert {path.name for path in Path(stream.cache._folder).iterdir()} == pieces
        stream.move_on(3)
        eventually(partial(fetched_up_to, stream, 5))


def test_requests_are_counted_as_if_they_were_made_here(bucket_url, tmp_path, monkeypatch):
    stream = make_stream(bucket_url)
    monkeypatch.setattr(storage, "traffic", Counter())
    monkeypatch.setattr(reading, "traffic", storage.traffic)
    with cached(stream, tmp_path, LARGE):
        eventually(partial(fetched_up_to, stream, stream.ahead_steps))
        folder = Path(stream.cache._folder)
        here = sum(path.stat().st_size for path in folder.iterdir())

        def is_told():
            stream.fetcher(0)
            return storage.traffic["bytes"] >= here

        eventually(is_told)
        assert storage.traffic["bytes"] == here
        assert storage.traffic["gets"] >= len(list(folder.iterdir()))
        assert storage.traffic["heads"] == len(stream.datasets[0].shards)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_it_is_started_again_and_nothing_changes(bucket_url, truth, tmp_path, monkeypatch, num_workers):
    monkeypatch.setattr(retry, "retries", Counter())
    stream = make_stream(bucket_url)
    with cached(stream, tmp_path, LARGE, queued_steps=2 * num_workers):
        first = fetcher_pid()
        reports = in_turn(partial(report_step, stream, True), range(NUM_STEPS), num_workers)
        with contextlib.closing(reports):
            for step, report in enumerate(reports):
                assert report == truth[step]
                if step == 3:
                    os.kill(first, signal.SIGKILL)
                    eventually(partial(is_gone, first))
                stream.move_on(step + 1)
        assert first != fetcher_pid()
    assert retry.retries["lost_process"] == 1


def test_lost_again_and_again_it_is_done_without(bucket_url, truth, tmp_path, capsys):
    stream = make_stream(bucket_url)
    with cached(stream, tmp_path, LARGE):
        for _ in range(4):
            lost = fetcher_pid()
            os.kill(lost, signal.SIGKILL)
            eventually(partial(is_gone, lost))
            stream.move_on(0)
        assert not stream.is_fetched_apart
        assert not multiprocessing.active_children()
        for step in range(NUM_STEPS):
            assert report_step(stream, True, step) == truth[step]
            stream.move_on(step + 1)
    told = "the process that fetches ahead was lost 4 times: who reads fetches, which is slower\n"
    assert capsys.readouterr().err == told


def is_gone(pid):
    return pid not in {each.pid for each in multiprocessing.active_children()}


def _read_as_a_daemon(url, folder, answers):
    stream = make_stream(url)
    with cached(stream, folder, LARGE):
        answers.put([report_step(stream, True, step).digest for step in range(NUM_STEPS)])


def test_a_daemon_fetches_for_itself(bucket_url, truth, tmp_path):
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=_read_as_a_daemon, args=(bucket_url, tmp_path, answers), daemon=True)
    process.start()
    assert answers.get() == [each.digest for each in truth]
    process.join()


def test_a_store_that_fails_is_told_by_who_reads(bucket_url, faulty_store, tmp_path, monkeypatch):
    stream = make_stream(bucket_url)
    faulty_store.proxy.add("answer", path=r"/shards/.*\.tar", status=403)
    with cached(stream, tmp_path, LARGE), pytest.raises(Exception, match="no permission for s3://"):
        report_step(stream, True, 0)
    assert not multiprocessing.active_children()


def test_a_store_that_fails_it_alone_is_counted_and_nothing_changes(
    bucket_url, truth, faulty_store, tmp_path, monkeypatch
):
    monkeypatch.setattr(retry, "retries", Counter())
    stream = make_stream(bucket_url)
    faulty_store.proxy.add("answer", path=r"/shards/.*\.tar", status=403)
    with cached(stream, tmp_path, LARGE):

        def is_counted():
            stream.fetcher(0)
            return retry.retries["ahead"] > 0

        eventually(is_counted)
        faulty_store.proxy.clear()
        for step in range(NUM_STEPS):
            assert report_step(stream, True, step) == truth[step]
            stream.move_on(step + 1)


_KILLED = """
import sys, time
from tests.shards.streaming.test_ahead import *
if __name__ == "__main__":
    with cached(make_stream(sys.argv[1]), Path(sys.argv[2]), LARGE):
        print(fetcher_pid(), flush=True)
        time.sleep(600)
"""


def test_it_ends_with_the_process_that_it_works_for(bucket_url, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(_KILLED)
    command = [sys.executable, str(script), bucket_url, str(tmp_path / "cache")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(Path.cwd())}) as process:
        pid = int(process.stdout.readline())
        process.kill()
    eventually(lambda: not Path(f"/proc/{pid}").exists())


_FORGOTTEN = """
import operator, sys
from tests.shards.streaming.test_ahead import *
if __name__ == "__main__":
    reports = in_turn(operator.neg, range(9), 2)
    context = cached(make_stream(sys.argv[1]), Path(sys.argv[2]), LARGE)
    context.__enter__()
    print(next(reports), flush=True)
"""


def test_who_forgets_it_comes_to_an_end(bucket_url, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(_FORGOTTEN)
    command = [sys.executable, str(script), bucket_url, str(tmp_path / "cache")]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "0\n", "")
