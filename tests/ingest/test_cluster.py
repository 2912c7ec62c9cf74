"""Tasks on a real Ray cluster: what is tried again, what is not, and that nothing stops the others."""

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from ingest import cluster as module
from ingest.cluster import Failure, cluster, run_tasks
from shards.errors import UserError

# Tasks are nested functions: Ray sends those to its workers by value, and workers do not know this module.


@pytest.fixture(scope="module", autouse=True)
def ray_cluster():
    with cluster("", 2):
        yield


def run(task, calls, *, attempts=3, deadline_s=60.0, **more):
    """Return ({place: result}, failures)."""
    results: dict[int, object] = {}

    def done(place, result):
        assert place not in results
        results[place] = result

    failures = run_tasks(task, calls, done, attempts=attempts, deadline_s=deadline_s, **more)
    return results, failures


@pytest.fixture
def note(tmp_path):
    """A function for tasks that notes a name and returns how often that was done, this time included."""

    def note(name):
        with open(tmp_path / name, "ab") as file:
            file.write(b"x")
            return file.tell()

    return note


def test_each_call_has_one_result_at_its_place():
    results, failures = run(lambda first, second: first * second, [(number, 3) for number in range(40)])
    assert results == {number: 3 * number for number in range(40)}
    assert failures == []


def test_no_calls_are_no_work():
    assert run(lambda: 1, []) == ({}, [])


def test_faults_of_the_world_are_tried_again_up_to_the_limit(note, tmp_path):
    def task(name, num_faults):
        if (tried := note(name)) <= num_faults:
            raise ConnectionResetError(f"{name}: fault {tried}")
        return tried

    results, failures = run(task, [("none", 0), ("two", 2), ("always", 99)])
    assert results == {0: 1, 1: 3}
    assert failures == [Failure(2, "always: fault 3 (tried 3 times)")]
    assert (tmp_path / "always").stat().st_size == 3


def test_pauses_grow(tmp_path, monkeypatch):
    def task():
        with open(tmp_path / "moments", "a") as file:
            print(time.time(), file=file)
        raise OSError("fault")

    monkeypatch.setattr(module.random, "random", lambda: 0.0)
    assert run(task, [()]) == ({}, [Failure(0, "fault (tried 3 times)")])
    first, second, third = map(float, (tmp_path / "moments").read_text().split())
    assert second - first >= 0.5
    assert third - second >= 1.0


def test_defects_are_not_tried_again_and_others_finish(note, tmp_path):
    def task(number):
        note(str(number))
        if number == 1:
            raise RuntimeError("two\nlines")
        if number == 2:
            raise KeyError
        return number

    results, failures = run(task, [(number,) for number in range(6)])
    assert results == {number: number for number in (0, 3, 4, 5)}
    assert failures == [Failure(1, "two lines"), Failure(2, "KeyError")]
    assert (tmp_path / "1").stat().st_size == 1


def test_an_error_that_cannot_be_sent_is_a_failure_as_well():
    def task():
        error = ValueError("holds a lock")
        import threading

        error.lock = threading.Lock()
        raise error

    results, failures = run(task, [()])
    assert results == {}
    assert len(failures) == 1
    assert "holds a lock" in failures[0].message


def test_a_fatal_error_stops_the_work_as_it_is(tmp_path):
    def task(number):
        if number == 0:
            raise UserError("wrong use")
        (tmp_path / f"pid-{os.getpid()}").touch()
        time.sleep(600)

    with pytest.raises(UserError, match=r"^wrong use$"):
        run(task, [(number,) for number in range(50)])
    # Nothing goes on working behind our back.
    for path in tmp_path.glob("pid-*"):
        wait_until_gone(int(path.name.removeprefix("pid-")))


def test_a_dead_worker_costs_one_attempt(note):
    def task(name, num_deaths):
        if (tried := note(name)) <= num_deaths:
            os.kill(os.getpid(), 9)
        return tried

    results, failures = run(task, [("well", 0), ("once", 1), ("always", 99)], attempts=2)
    assert results == {0: 1, 1: 2}
    assert [failure.place for failure in failures] == [2]
    assert failures[0].lost
    assert re.fullmatch(
        r"the worker died \(\w+\): if memory is short, set fewer --workers \(tried 2 times\)", failures[0].message
    )


def test_what_hangs_is_stopped_at_its_deadline_and_tried_again(note, tmp_path):
    def task(name, num_hangs):
        if (tried := note(name)) <= num_hangs:
            (tmp_path / f"{name}-pid").write_text(str(os.getpid()))
            time.sleep(600)
        return tried

    results, failures = run(task, [("well", 0), ("once", 1), ("always", 99)], attempts=2, deadline_s=8.0)
    assert results == {0: 1, 1: 2}
    assert [failure.place for failure in failures] == [2]
    told = "not done after 8 s: raise --group_deadline_s if it needs longer (tried 2 times)"
    assert failures == [Failure(2, told, lost=True)]
    for name in ("once", "always"):
        wait_until_gone(int((tmp_path / f"{name}-pid").read_text()))


def test_a_frozen_worker_is_ended_by_the_driver(tmp_path, monkeypatch):
    def task(name):
        import signal

        if name == "frozen":
            (tmp_path / "pid").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return name

    monkeypatch.setattr(module, "_MARGIN_S", 1.0)
    results, failures = run(task, [("well",), ("frozen",)], attempts=1, deadline_s=4.0)
    assert results == {0: "well"}
    assert failures == [Failure(1, "not done after 4 s: raise --group_deadline_s if it needs longer", lost=True)]
    wait_until_gone(int((tmp_path / "pid").read_text()))


def wait_until_gone(pid):
    deadline_s = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline_s, f"process {pid} goes on"
        time.sleep(0.05)


def test_what_waits_for_a_core_is_not_late():
    # All together take longer than the deadline of one.
    results, failures = run(lambda number: time.sleep(0.5) or number, [(n,) for n in range(30)], deadline_s=6.0)
    assert (len(results), failures) == (30, [])


def test_few_calls_are_under_way_at_a_time():
    class Calls(Sequence):
        given = 0

        def __len__(self):
            return 300

        def __getitem__(self, place):
            if not 0 <= place < len(self):
                raise IndexError
            self.given += 1
            return (place,)

    calls, finished, most = Calls(), 0, 0

    def done(place, result):
        nonlocal finished, most
        most = max(most, calls.given - finished)
        finished += 1

    assert run_tasks(lambda place: place, calls, done, attempts=1, deadline_s=60.0) == []
    assert finished == calls.given == 300
    assert most <= 4  # two per core


def test_no_cluster_at_an_address_is_one_line():
    with pytest.raises(UserError, match=r"no Ray cluster answers at 127\.0\.0\.1:1: "), cluster("127.0.0.1:1", 0):
        pass
