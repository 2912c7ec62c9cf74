"""The proxy does to signed requests what its rules say, and nothing to the rest."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from shards import storage
from shards.storage import retry


@pytest.fixture(autouse=True)
def _hasty(monkeypatch):
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(retry, "LONGEST_WAIT_S", 0.05)


def test_without_rules_everything_passes(faulty_store):
    url = storage.join(faulty_store.url, "mit Leerzeichen ü%+.bin")
    storage.write_bytes(url, b"x" * 100_000)
    assert storage.read_bytes(url) == b"x" * 100_000
    assert [(method, status) for method, _, status in faulty_store.proxy.log] == [
        ("PUT", 200),
        ("HEAD", 200),
        ("GET", 200),
    ]


def test_a_rule_befalls_the_requests_that_it_names(faulty_store):
    put = faulty_store.proxy.add("answer", method="PUT", path="b$", nth=2, status=500)
    for name in ["a", "b", "a", "b", "b"]:
        storage.write_bytes(storage.join(faulty_store.url, name), b"x")
    assert (put.num_seen, put.num_hit) == (4, 1)
    assert faulty_store.proxy.count("PUT", "b$") == 4
    assert [status for _, _, status in faulty_store.proxy.log].count(500) == 1


def test_probabilities_follow_their_seed(faulty_store):
    def hits(seed):
        rule = faulty_store.proxy.add("delay", method="PUT", probability=0.5, seed=seed, seconds=0)
        hit = []
        for _ in range(20):
            before = rule.num_hit
            storage.write_bytes(storage.join(faulty_store.url, "x"), b"x")
            hit.append(rule.num_hit - before)
        faulty_store.proxy.clear()
        return hit

    first = hits(1)
    assert hits(1) == first != hits(2)
    assert 0 < sum(first) < 20


def test_a_held_request_reaches_the_store_when_released(faulty_store):
    url = storage.join(faulty_store.url, "x")
    held = faulty_store.proxy.add("hold", method="PUT", nth=1)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(storage.write_bytes, url, b"late")
        held.wait_until_held()
        assert not storage.exists(url)
        assert not writing.done()
        held.release()
        writing.result()
    assert storage.read_bytes(url) == b"late"


def test_a_held_reply_belongs_to_a_request_that_landed(faulty_store):
    url = storage.join(faulty_store.url, "x")
    held = faulty_store.proxy.add("hold_reply", method="PUT", nth=1)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(storage.write_bytes, url, b"landed")
        held.wait_until_held()
        assert storage.read_bytes(url) == b"landed"
        assert not writing.done()
        held.release()
        writing.result()


def test_a_held_request_outlives_its_sender(faulty_store):
    url = storage.join(faulty_store.url, "x")
    held = faulty_store.proxy.add("hold", method="PUT", nth=1)
    code = "import sys; from shards import storage; storage.write_bytes(sys.argv[1], b'of a dead writer')"
    writer = subprocess.Popen([sys.executable, "-c", code, url])
    held.wait_until_held()
    writer.kill()
    writer.wait()
    assert not storage.exists(url)
    held.release()
    faulty_store.proxy.wait_for("PUT", "x$")
    assert storage.read_bytes(url) == b"of a dead writer"


def test_conditions_can_be_ignored_on_the_stores_behalf(faulty_store):
    url = storage.join(faulty_store.url, "x")
    assert storage.create_bytes(url, b"first")
    faulty_store.proxy.add("unconditional", method="PUT")
    assert storage.create_bytes(url, b"second")
    assert storage.read_bytes(url) == b"first"
