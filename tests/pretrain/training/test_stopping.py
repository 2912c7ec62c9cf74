"""SIGTERM finds a process anywhere: it leaves by its deadline, at once the second time, and never out of a save."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain.training.stopping import TooLateError, heeding_sigterm

REPOSITORY = Path(__file__).parents[3]
PROCESS = """
import ctypes, sys, time
from pretrain.training import stopping
from pretrain.training.stopping import heeding_sigterm

where, deadline_s, stopping._ECHO_S = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
with heeding_sigterm(deadline_s) as stop:
    print("begun", flush=True)
    if where == "native":
        # What no signal ends, as a collective whose other ranks do not come: a lock that is taken twice.
        lock, native = ctypes.create_string_buffer(64), ctypes.CDLL(None)
        native.pthread_mutex_lock(lock)
        native.pthread_mutex_lock(lock)
    while not stop.asked:
        time.sleep(0.01)
    if where == "save":
        stop.leaving()
        time.sleep(2 * deadline_s)
        print("saved", flush=True)
    time.sleep(600 * (where != "end"))
"""


def start(where, deadline_s, echo_s=0.0):
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, where, str(deadline_s), str(echo_s)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "begun\n"
    return process


def ask(process):
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline().startswith("pretrain: SIGTERM: saving after this step, due in ")


@pytest.mark.parametrize(("where", "told"), [("python", "TooLateError: "), ("native", "pretrain: error: ")])
def test_it_leaves_by_the_deadline_wherever_it_is(where, told):
    process = start(where, 0.3)
    ask(process)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert f"{told}SIGTERM, and 0.3 s later the step was not done (checkpoint.deadline_s)" in errors.splitlines()[-1]


@pytest.mark.parametrize("where", ["python", "native", "save"])
def test_a_second_signal_ends_it_at_once_wherever_it_is(where):
    process = start(where, 500)
    ask(process)
    process.send_signal(signal.SIGTERM)
    assert process.communicate()[1] == ""
    assert process.returncode == 128 + signal.SIGTERM


def test_a_save_has_no_deadline_and_is_left_by_a_second_signal():
    process = start("save", 0.2)
    ask(process)
    assert process.stdout.readline() == "saved\n"
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM


def test_the_echo_of_a_signal_is_no_second_one():
    process = start("save", 0.2, echo_s=500)
    ask(process)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "saved\n"
    process.kill()
    assert process.communicate()[1] == ""


def test_who_ends_in_time_ends_as_ever():
    process = start("end", 500)
    ask(process)
    assert process.communicate() == ("", "")
    assert process.returncode == 0


def test_what_was_there_before_is_there_again():
    def mine(number, frame):
        pass

    handlers = {number: signal.signal(number, mine) for number in (signal.SIGTERM, signal.SIGALRM)}
    try:
        with heeding_sigterm(60):
            assert signal.getsignal(signal.SIGTERM) is not mine
        assert [signal.getsignal(number) for number in handlers] == [mine, mine]
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_the_deadline_is_an_error_of_its_own():
    def work():
        with heeding_sigterm(0.1) as stop:
            signal.raise_signal(signal.SIGTERM)
            assert stop.asked
            while True:
                time.sleep(0.01)

    with pytest.raises(TooLateError, match=r"0\.1 s later"):
        work()
