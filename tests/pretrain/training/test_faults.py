from dataclasses import replace

import pytest

from pretrain.batches.batch import BatchMaker
from pretrain.batches.loader import WorkerKilledError
from pretrain.runs.metrics import read_rows, stop_kinds
from pretrain.training.faults import FAULTS, fault_kind
from pretrain.training.loop import train
from shards.dataset import CorruptSampleError
from shards.errors import UserError
from shards.storage.retry import StorageError, count_retry
from tests.pretrain.training.test_loop import weights


def test_every_fault_has_a_kind():
    found = {
        "throttled": StorageError("503", "throttled"),
        "corrupt": CorruptSampleError("sample 3"),
        "worker_killed": WorkerKilledError("one of 2"),
        "unreadable": UserError("shard 3 is not there"),
    }
    assert {type(error) for error in found.values()} == set(FAULTS)
    assert {fault_kind(error): error for error in found.values()} == found


@pytest.mark.parametrize("step", [3, 4])
def test_a_store_that_fails_is_counted_in_the_last_row_until_the_run_goes_on(tiny, tmp_path, monkeypatch, step):
    config = replace(tiny, log_every=10)
    whole = train(replace(config, run=str(tmp_path / "whole")))
    make = BatchMaker.make

    def failing(self, number, *args):
        if number == step:
            raise StorageError("s3://b: 503", "throttled")
        if number == 2:
            count_retry("throttled")
        return make(self, number, *args)

    with monkeypatch.context() as patch:
        patch.setattr(BatchMaker, "make", failing)
        with pytest.raises(StorageError):
            train(config)
    *_, before, last = read_rows(config.run)
    assert (before["step"], stop_kinds(before)) == (step // 2 * 2, [])
    figures = {"step": step, "samples": 10 * step, "epoch": 10 * step / 24, "stopped_throttled": 1}
    assert last.items() >= figures.items()
    # Of the third step, which has its row if the checkpoint after the fourth has.
    assert last["retries"] == last.get("retries_throttled", 0) == (step == 3)
    assert weights(train(config)) == weights(whole)
    assert not any(map(stop_kinds, read_rows(config.run)))


def test_the_first_step_has_no_row_before_it(tiny, monkeypatch):
    def failing(self, number, *args):
        raise StorageError("s3://b: 503", "throttled")

    monkeypatch.setattr(BatchMaker, "make", failing)
    with pytest.raises(StorageError):
        train(tiny)
    assert read_rows(tiny.run) == []
