"""Workers answer in order, their errors arrive as themselves, and none of them stays."""

import itertools
import math
import multiprocessing
import operator
import os
import time
from functools import partial

import pytest

from shards.streaming.processes import ProcessLostError
from shards.streaming.serve import in_turn


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_answers_come_in_order(num_workers):
    assert list(in_turn(operator.neg, range(20), num_workers)) == [-step for step in range(20)]
    assert list(in_turn(operator.neg, range(1), num_workers)) == [0]
    assert list(in_turn(operator.neg, [], num_workers)) == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_endless_steps_may_be_left(num_workers):
    answers = in_turn(operator.neg, itertools.count(), num_workers)
    assert list(itertools.islice(answers, 5)) == [0, -1, -2, -3, -4]
    answers.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_comes_when_its_turn_comes(num_workers):
    answers = in_turn(partial(operator.truediv, 6), [3, 2, 0, 1], num_workers)
    assert [next(answers), next(answers)] == [2, 3]
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        next(answers)
    assert not multiprocessing.active_children()


def test_the_place_of_an_error_is_noted():
    with pytest.raises(ValueError, match="math domain error") as caught:
        list(in_turn(math.sqrt, [-1], 1))
    assert "Traceback" in caught.value.__notes__[0]


def test_a_worker_that_is_gone_is_one_line():
    answers = in_turn(os._exit, [7, 7], 1)
    with pytest.raises(ProcessLostError, match="a worker process ended by itself, exit code 7"):
        next(answers)


def test_who_is_stopped_does_not_wait_for_work_under_way():
    answers = in_turn(time.sleep, [0, 600, 600, 600], 2)
    next(answers)
    answers.close()
    assert not multiprocessing.active_children()
