from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretrain.runs.checkpoint import Position
from pretrain.runs.metrics import Metrics, read_bad_samples, read_rows
from shards.streaming.stream import Replacement


def bad(number):
    return Replacement(number=number, dataset="d", epoch=0, row=1, name="sample 1", fault="bad", replaced_by=2)


def test_rows_after_the_resumed_step_are_forgotten(tmp_path):
    run = str(tmp_path)
    first = Metrics(run, Position())
    for step in (1, 2, 3):
        first.append({"step": step, "loss": float(step)})
    first.flush()
    second = Metrics(run, Position(step=2, samples=20))
    second.append({"step": 3, "loss": 30.0})
    second.flush()
    assert [row["loss"] for row in read_rows(run)] == [1, 2, 30]


def test_tensorboard_reads_the_events(tmp_path):
    metrics = Metrics(str(tmp_path), Position())
    metrics.append({"step": 5, "loss": 2.5, "lr": 0.1})
    metrics.flush()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["loss", "lr"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(5, 2.5)]


def test_bad_samples_after_the_resumed_step_are_forgotten(tmp_path):
    run = str(tmp_path)
    first = Metrics(run, Position())
    first.flush()
    assert not (tmp_path / "bad_samples.jsonl").exists()
    first.add_bad([bad(3), bad(12), bad(25)])
    first.flush()
    second = Metrics(run, Position(step=2, samples=20))
    assert second.num_bad == 2
    second.flush()
    assert [entry["number"] for entry in read_bad_samples(run)] == [3, 12]
    second.add_bad([bad(27)])
    second.flush()
    assert [entry["number"] for entry in read_bad_samples(run)] == [3, 12, 27]
    assert read_bad_samples(run)[2] == vars(bad(27))
