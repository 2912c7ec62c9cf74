from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretrain.metrics import Metrics, read_rows


def test_rows_after_the_resumed_step_are_forgotten(tmp_path):
    run = str(tmp_path)
    first = Metrics(run, 0)
    for step in (1, 2, 3):
        first.append({"step": step, "loss": float(step)})
    first.flush()
    second = Metrics(run, 2)
    second.append({"step": 3, "loss": 30.0})
    second.flush()
    assert [row["loss"] for row in read_rows(run)] == [1, 2, 30]


def test_tensorboard_reads_the_events(tmp_path):
    metrics = Metrics(str(tmp_path), 0)
    metrics.append({"step": 5, "loss": 2.5, "lr": 0.1})
    metrics.flush()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["loss", "lr"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(5, 2.5)]
