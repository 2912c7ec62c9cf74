import errno
import threading
from dataclasses import replace

import pytest

from pretrain.batches.batch import BatchMaker
from pretrain.runs.metrics import Metrics
from pretrain.training.loop import train
from shards.storage.retry import StorageError


def test_metrics_are_written_beside_training_until_its_end(tiny, monkeypatch):
    flush, threads = Metrics.flush, []

    def watched(self):
        threads.append(threading.current_thread())
        flush(self)

    monkeypatch.setattr(Metrics, "flush", watched)
    train(tiny)
    # As the curves are drawn, and on leaving.
    *beside, curves, left = threads
    assert {curves, left} == {threading.main_thread()}
    assert len(beside) >= 3
    assert threading.main_thread() not in beside


def test_metrics_that_cannot_be_written_hide_no_other_error(variant, monkeypatch, capsys):
    make = BatchMaker.make

    def failing(self, number, *args):
        if number == 3:
            raise StorageError("s3://b: 503", "throttled")
        return make(self, number, *args)

    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(BatchMaker, "make", failing)
    monkeypatch.setattr(Metrics, "flush", full)
    config = variant(log_every=10, checkpoint__every="6 steps")
    with pytest.raises(StorageError, match="503"):
        train(config)
    assert f"pretrain: besides, the metrics were not written: {config.run}: No space left" in capsys.readouterr().err
    with pytest.raises(StorageError, match="No space left"):
        train(replace(config, max_steps=2))
