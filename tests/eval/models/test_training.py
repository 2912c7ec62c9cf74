import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.models import training
from eval.models.resolve import resolve_models
from eval.models.training import Training, TrainingLog, read_training_log, whole_lines
from shards.errors import UserError


def _write(run: Path, rows, tail=""):
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)


def _row(step, rate, memory):
    return {"step": step, "loss": 1.0, "samples_per_s": rate, "memory_bytes": memory}


def test_rates_are_a_median_and_memory_a_peak_up_to_the_step(tmp_path: Path):
    _write(tmp_path, [_row(10, 50.0, 700), _row(20, 90.5, 900), _row(30, 40.0, 800), _row(40, 60.0, 2000)])
    log = read_training_log(str(tmp_path))
    assert log is not None
    assert log.until(30) == Training(samples_per_s=50.0, memory_bytes=900)
    assert log.until(39) == log.until(30)
    assert log.until(None) == Training(samples_per_s=55.0, memory_bytes=2000)
    assert log.until(9) is None


def test_figures_that_a_row_lacks_count_nowhere(tmp_path: Path):
    _write(tmp_path, [{"step": 1}, {"step": 2, "samples_per_s": 5.0}], tail='{"step": 3, "samples_per')
    log = read_training_log(str(tmp_path))
    assert log is not None
    assert log.steps.tolist() == [1, 2], "a line that is being written is no row"
    assert log.until(1) == Training(samples_per_s=None, memory_bytes=None)
    assert log.until(2) == Training(samples_per_s=5.0, memory_bytes=None)


@given(st.lists(st.tuples(st.integers(0, 99), st.floats(0.1, 1e6), st.integers(1, 2**40)), min_size=1))
def test_more_steps_never_lower_the_peak_and_a_median_lies_within(rows):
    steps, rates, memory = (np.array(column) for column in zip(*rows, strict=True))
    log = TrainingLog(steps=steps, samples_per_s=rates, memory_bytes=memory.astype(np.float64))
    peaks = [found.memory_bytes for step in range(100) if (found := log.until(step)) is not None]
    assert peaks == sorted(peaks)
    last = log.until(None)
    assert last is not None
    assert last == log.until(99)
    assert rates.min() <= last.samples_per_s <= rates.max()


def test_no_metrics_are_none_and_damaged_ones_are_named(tmp_path: Path):
    assert read_training_log(str(tmp_path)) is None
    for damaged in ("step 20\n", '{"samples_per_s": 3}\n', "[1]\n", '{"step": 1, "memory_bytes": "much"}\n'):
        (tmp_path / "metrics.jsonl").write_text(damaged)
        with pytest.raises(UserError, match=r"metrics\.jsonl is damaged .*: restore it") as caught:
            read_training_log(str(tmp_path))
        assert "\n" not in str(caught.value)


def test_a_hundred_exports_read_their_run_s_metrics_once(tmp_path: Path, write_export, monkeypatch: pytest.MonkeyPatch):
    run, alone = tmp_path / "run", write_export(tmp_path / "alone")
    for step in range(1, 101):
        folder = run / "exports" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        for name in ("model.json", "model.safetensors"):
            (folder / name).write_bytes((alone / name).read_bytes())
        fields = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_text(json.dumps(fields | {"step": step}))
    _write(run, [_row(step, float(step), step) for step in range(1, 101)])
    read: list[str] = []
    whole = training.storage.read_bytes
    monkeypatch.setattr(training.storage, "read_bytes", lambda url: (read.append(url), whole(url))[1])
    candidates = resolve_models([f"{run}@all", str(alone)], False, torch.device("cpu"), print)
    assert [url for url in read if url.endswith("metrics.jsonl")] == [f"{run}/metrics.jsonl"]
    assert len(candidates) == 101
    assert candidates[3].training == Training(samples_per_s=2.5, memory_bytes=4)
    assert candidates[99].training == Training(samples_per_s=50.5, memory_bytes=100)
    assert candidates[100].training is None, "an export that stands alone has no run"


def test_lines_count_when_their_end_is_there():
    assert whole_lines(b"") == whole_lines(b"half") == []
    assert whole_lines(b"a\nb\nhalf") == [b"a", b"b"]
