import errno
import json
import threading

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretrain.runs.checkpoint import Position
from pretrain.runs.metrics import Metrics, read_bad_samples, read_rows, stop_kinds
from shards import storage
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


def test_tensorboard_shows_nothing_of_steps_that_are_made_again(run):
    for step in (0, 100, 200):
        metrics = Metrics(run, Position(step=step))
        metrics.append({"step": step + 50, "loss": float(step)})
        metrics.flush()
    others = storage.join(run, "tensorboard", "events.out.tfevents.1.eval")
    storage.write_bytes(others, b"")
    metrics = Metrics(run, Position(step=100))
    metrics.append({"step": 160, "loss": 7.0})
    metrics.flush()
    names = sorted(info.path.rpartition(".tfevents.")[2] for info in storage.list_files(f"{run}/tensorboard"))
    assert names == ["0000000000.pera", "0000000100.pera", "1.eval"]


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


def told(run):
    return [row["step"] for row in read_rows(run)]


@pytest.fixture(params=["disk", "bucket"])
def run(request, tmp_path):
    if request.param == "disk":
        return str(tmp_path / "run")
    return storage.join(request.getfixturevalue("object_store"), "metrics", tmp_path.name)


def test_rows_are_added_wherever_the_run_lies_and_a_later_start_goes_on(run):
    first = Metrics(run, Position())
    for step in range(1, 5):
        first.append({"step": step})
        first.flush()
        assert told(run) == list(range(1, step + 1))
    second = Metrics(run, Position(step=4))
    assert [row["step"] for row in second.last_rows(2)] == [3, 4]
    second.append({"step": 5})
    second.flush()
    second.append({"step": 6})
    second.flush()
    assert told(run) == [1, 2, 3, 4, 5, 6]


def test_only_what_is_new_is_written_to_a_disk(tmp_path):
    metrics = Metrics(str(tmp_path), Position())
    metrics.append({"step": 1})
    metrics.flush()
    files = [tmp_path / "metrics.jsonl", *(tmp_path / "tensorboard").iterdir()]
    before = [(file, file.stat().st_ino, file.read_bytes()) for file in files]
    metrics.append({"step": 2})
    metrics.flush()
    for file, inode, content in before:
        assert file.stat().st_ino == inode
        assert file.read_bytes().startswith(content)
        assert file.stat().st_size > len(content)


def test_a_line_that_a_killed_process_tore_is_cut_off(tmp_path):
    run, file = str(tmp_path), tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert told(run) == [1, 2]
    metrics = Metrics(run, Position(step=2))
    metrics.append({"step": 3})
    metrics.flush()
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3]


def test_a_write_that_failed_on_its_way_is_made_good_by_the_next(tmp_path, monkeypatch):
    metrics = Metrics(str(tmp_path), Position())
    metrics.append({"step": 1})
    metrics.flush()
    metrics.append({"step": 2})

    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pretrain.runs.growing.os.fsync", fail)
        with pytest.raises(OSError, match="No space"):
            metrics.flush()
    metrics.append({"step": 3})
    metrics.flush()
    assert told(str(tmp_path)) == [1, 2, 3]


def test_rows_that_say_why_a_start_ended_are_dropped_by_the_next(tmp_path):
    run = str(tmp_path)
    first = Metrics(run, Position())
    first.append({"step": 2, "loss": 1.0})
    first.append({"step": 2, "stopped_server": 1})
    first.flush()
    assert [stop_kinds(row) for row in read_rows(run)] == [[], ["server"]]
    second = Metrics(run, Position(step=2))
    assert second.last_rows(5) == [{"step": 2, "loss": 1.0}]
    second.flush()
    assert read_rows(run) == [{"step": 2, "loss": 1.0}]


def test_rows_may_be_added_while_others_are_written(tmp_path):
    metrics, going = Metrics(str(tmp_path), Position()), threading.Event()

    def write():
        while not going.is_set():
            metrics.flush()

    writer = threading.Thread(target=write)
    writer.start()
    for step in range(2000):
        metrics.append({"step": step})
    going.set()
    writer.join()
    metrics.flush()
    assert told(str(tmp_path)) == list(range(2000))
