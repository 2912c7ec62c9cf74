"""Saves that are killed, fail or find no room: what was saved before is whole, and nobody is left in the dark."""

import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch

from pretrain.runs import checkpoint as checkpoints
from pretrain.runs.checkpoint import Checkpoint, list_checkpoints, load_newest, read_checkpoint, write_checkpoint
from pretrain.runs.saver import Saver, reserve_snapshot, take_snapshot
from shards import storage

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(params=["disk", "bucket"])
def run(request, tmp_path):
    if request.param == "disk":
        return str(tmp_path / "run")
    return storage.join(request.getfixturevalue("object_store"), "saver", tmp_path.name)


def make(step, size=3000):
    moments = {"state": {0: {"step": torch.tensor(float(step)), "exp_avg": torch.full((size,), -float(step))}}}
    return Checkpoint(
        step=step,
        model={"w": torch.full((size,), float(step)), "n": torch.tensor(step)},
        optimiser={**moments, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0]}]},
        stream={"consumed": step},
        record={},
    )


def no_export(snapshot):
    return f"export of step {snapshot.step}"


def values(checkpoint):
    moments = checkpoint.optimiser["state"][0]
    tensors = [checkpoint.model["w"], checkpoint.model["n"], moments["step"], -moments["exp_avg"]]
    return {
        checkpoint.step,
        checkpoint.stream["consumed"],
        *(value for t in tensors for value in set(t.flatten().tolist())),
    }


def test_saves_come_back_and_old_ones_go(run):
    with Saver(run, keep_last=2, first_step=0, keep_every_steps=4) as saver:
        for step in (2, 4, 6, 8, 10):
            saver.save(make(step), no_export)
    newest, url = load_newest(run)
    assert values(newest) == {10}
    assert (saver.saved.step, saver.saved.checkpoint_url) == (10, url)
    assert saver.saved.export_url == "export of step 10"
    assert list(list_checkpoints(run)) == [4, 8, 10]


@pytest.mark.parametrize(
    ("steps", "kept"), [((200, 237), [[100, 200], [200, 237]]), ((137, 200), [[100, 137], [137, 200]])]
)
def test_a_damaged_one_that_was_passed_over_counts_for_nothing(tmp_path, steps, kept):
    run = str(tmp_path)
    for step in (100, 137):
        url = write_checkpoint(run, make(step))
    Path(url).write_bytes(b"?")
    assert load_newest(run)[0].step == 100
    with Saver(run, keep_last=2, first_step=100) as saver:
        for step, left in zip(steps, kept, strict=True):
            saver.save(make(step), no_export)
            saver.wait()
            assert list(list_checkpoints(run)) == left


def test_the_state_may_change_as_soon_as_it_was_taken(tmp_path):
    go_on, state = threading.Event(), make(1)

    def export(snapshot):
        go_on.wait()
        return ""

    with Saver(str(tmp_path), keep_last=1, first_step=0) as saver:
        saver.save(state, export)
        state.model["w"].zero_()
        state.optimiser["state"][0]["exp_avg"].zero_()
        state.optimiser["param_groups"][0]["lr"] = 0.0
        state.stream["consumed"] = 99
        go_on.set()
    loaded = load_newest(str(tmp_path))[0]
    assert values(loaded) == {1}
    assert loaded.optimiser["param_groups"] == make(1).optimiser["param_groups"]


def test_one_save_at_a_time_the_export_first(tmp_path):
    told, go_on = [], threading.Event()

    def export(snapshot):
        told.append(("begins", snapshot.step, sorted(list_checkpoints(str(tmp_path)))))
        if snapshot.step == 1:
            go_on.wait()
        told.append(("ends", snapshot.step, values(snapshot)))
        return ""

    with Saver(str(tmp_path), keep_last=1, first_step=0) as saver:
        saver.save(make(1), export)
        saver.check()  # does not wait
        threading.Timer(0.2, go_on.set).start()
        saver.save(make(2), export)
    assert told == [("begins", 1, []), ("ends", 1, {1}), ("begins", 2, [1]), ("ends", 2, {2})]


def test_snapshots_use_their_memory_again(tmp_path):
    seen = []

    def export(snapshot):
        seen.append((snapshot.model["w"].data_ptr(), snapshot.optimiser["state"][0]["exp_avg"].data_ptr()))
        return ""

    with Saver(str(tmp_path), keep_last=1, first_step=0) as saver:
        saver.prepare(make(0))
        saver.wait()
        room = saver._room
        for step in (1, 2):
            saver.save(make(step), export)
    assert seen == [(room.model["w"].data_ptr(), room.optimiser["state"][0]["exp_avg"].data_ptr())] * 2
    assert values(load_newest(str(tmp_path))[0]) == {2}


def test_room_of_another_shape_is_not_used():
    small, large = make(1, size=10), make(2, size=20)
    assert values(take_snapshot(large, into=take_snapshot(small))) == {2}
    assert values(take_snapshot(large, into=reserve_snapshot(large))) == {2}
    no_moments = Checkpoint(step=2, model=small.model, optimiser={"state": {}}, stream={}, record={})
    assert values(take_snapshot(large, into=take_snapshot(no_moments))) == {2}


def test_tied_tensors_do_not_share_their_copies():
    tied = torch.ones(3)
    state = Checkpoint(step=1, model={"a": tied, "b": tied}, optimiser={}, stream={}, record={})
    copied = take_snapshot(state).model
    copied["a"].zero_()
    assert copied["b"].tolist() == [1, 1, 1]


def fail(snapshot):
    raise ConnectionError(f"the node is gone at step {snapshot.step}")


CALLS = {
    "save": lambda saver: saver.save(make(2), no_export),
    "check": lambda saver: (saver._running.exception(), saver.check()),
    "prepare": lambda saver: saver.prepare(make(2)),
    "wait": lambda saver: saver.wait(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_error_of_the_thread_is_raised_by_the_next_call_once(tmp_path, call, capsys):
    with Saver(str(tmp_path), keep_last=1, first_step=0) as saver:
        saver.save(make(1), fail)
        with pytest.raises(storage.StorageError, match="the node is gone at step 1"):
            call(saver)
    assert list_checkpoints(str(tmp_path)) == {}
    assert saver.saved is None
    assert capsys.readouterr().err == ""


def leave_after(run, export, error=None):
    with Saver(run, keep_last=1, first_step=0) as saver:
        saver.save(make(1), export)
        if error:
            raise error


def test_an_error_of_the_last_save_is_raised_on_leaving(tmp_path):
    with pytest.raises(storage.StorageError, match="the node is gone at step 1"):
        leave_after(str(tmp_path), fail)


@pytest.mark.parametrize("error", [ValueError("diverged"), KeyboardInterrupt(), SystemExit(143)])
def test_who_leaves_by_an_error_finishes_the_save(tmp_path, error):
    with pytest.raises(type(error)):
        leave_after(str(tmp_path), no_export, error)
    assert values(load_newest(str(tmp_path))[0]) == {1}


def test_who_leaves_by_an_error_is_told_of_the_saves_own(tmp_path, capsys):
    with pytest.raises(ValueError, match="diverged"):
        leave_after(str(tmp_path), fail, ValueError("diverged"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"pretrain: besides, the last save failed: {tmp_path}: the disk or store refuses (the ")


def test_a_failed_removal_is_told_and_made_good(tmp_path, capsys, monkeypatch):
    def refuse(url):
        raise PermissionError(f"not allowed: {url}")

    with Saver(str(tmp_path), keep_last=1, first_step=0) as saver:
        saver.save(make(1), no_export)
        saver.wait()
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints.storage, "remove", refuse)
            saver.save(make(2), no_export)
            saver.wait()
        assert list(list_checkpoints(str(tmp_path))) == [1, 2]
        told = capsys.readouterr().err
        assert told.startswith("pretrain: an old checkpoint was not removed, the next save tries again: not allowed: ")
        assert "step_00000001" in told
        saver.save(make(3), no_export)
    assert list(list_checkpoints(str(tmp_path))) == [3]
    assert capsys.readouterr().err == ""


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_told_in_one_line_and_harms_nothing(small_disk):
    run = str(small_disk / "run")
    storage.write_bytes(f"{run}/exports/step_00000001/model.safetensors", bytes(100_000))
    with Saver(run, keep_last=2, first_step=0) as saver:
        saver.save(make(1, size=100_000), no_export)  # 0.8 MB
        saver.save(make(2, size=100_000), no_export)
        saver.save(make(3, size=100_000), no_export)
        with pytest.raises(storage.StorageError) as caught:
            saver.wait()
    message = str(caught.value)
    assert message.startswith(f"{run}: No space left on device (")
    assert f"free some space ({run}/exports has 0.1 MB, and none of it is ever removed here)" in message
    assert message.endswith("lower --checkpoint.keep_last, and start again")
    assert "\n" not in message
    files = sorted(path.name for path in (small_disk / "run" / "checkpoints").iterdir())
    assert [name[:13] for name in files] == ["step_00000001", "step_00000002"]
    assert [values(read_checkpoint(url)) for url in list_checkpoints(run).values()] == [{1}, {2}]
    with Saver(run, keep_last=1, first_step=0) as saver:  # with room, it goes on
        storage.remove(list_checkpoints(run)[1])
        saver.save(make(3, size=100_000), no_export)
    assert values(load_newest(run)[0]) == {3}


def test_a_full_scratch_disk_is_told_for_a_run_in_a_bucket(small_disk, object_store, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    run = storage.join(object_store, "saver", tmp_path.name)
    with Saver(run, keep_last=1, first_step=0) as saver:
        saver.save(make(1), no_export)
        saver.save(make(2, size=400_000), no_export)
        with pytest.raises(storage.StorageError, match=rf"^{small_disk}: No space left .* TMPDIR name a larger disk"):
            saver.wait()
    assert values(load_newest(run)[0]) == {1}
    assert list(small_disk.iterdir()) == []


def test_what_a_killed_process_left_goes_wherever_it_lies(tmp_path):
    folders = [tmp_path / name for name in ("", "checkpoints", "tensorboard", "exports/step_00000002")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".model.safetensors.x7.tmp").write_text("half")
        (folder / "whole").touch()
    with Saver(str(tmp_path), keep_last=1, first_step=0):
        assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"whole"}


def test_uploads_that_a_killed_process_left_in_a_bucket_go(object_store, tmp_path):
    run = storage.join(object_store, "left", tmp_path.name)
    fs, path = storage.filesystem(run)
    bucket, _, key = path.partition("/")
    for name in ("exports/step_00000002/model.safetensors", "metrics.jsonl"):
        fs.call_s3("create_multipart_upload", Bucket=bucket, Key=f"{key}/{name}")
    with Saver(run, keep_last=1, first_step=0):
        assert not fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{key}/").get("Uploads")


def test_others_write_in_the_savers_thread_when_nothing_is_saved(tmp_path):
    go_on, told = threading.Event(), []

    def export(snapshot):
        go_on.wait()
        return ""

    with Saver(str(tmp_path), keep_last=1, first_step=0) as saver:
        saver.beside(lambda: told.append(threading.current_thread().name))
        saver.save(make(1), export)
        saver.beside(lambda: told.append("now"))
        go_on.set()
    assert told == ["saver_0"]


KILLED_AGAIN_AND_AGAIN = """
import os, random, signal, sys, time
from tests.pretrain.runs.test_saver import *
from shards.storage import writing

run, num_kills, longest_s, size = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
writing.PART_BYTES = 5 * 2**20  # several parts for a bucket

def save_all_the_time(told):
    step = resumed_step()
    with Saver(run, keep_last=2, first_step=0) as saver:
        while True:
            step += 1
            saver.save(make(step, size=size), no_export)
            os.write(told, b".")

def resumed_step():
    newest = load_newest(run)
    if newest is None:
        return 0
    assert values(newest[0]) == {newest[0].step}
    return newest[0].step

def in_a_child(call):
    # Forked before any thread or connection is there: it need not load torch again.
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            call(write)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    return pid, os.fdopen(read, "rb")

def ask_step():
    pid, pipe = in_a_child(lambda told: os.write(told, b"%d" % resumed_step()))
    assert os.waitpid(pid, 0)[1] == 0
    return int(pipe.read())

torch.set_num_threads(1)
step = 0
for kill in range(num_kills):
    pid, pipe = in_a_child(save_all_the_time)
    pipe.read(2)  # while it comes to its first saves
    time.sleep(random.uniform(0, longest_s))
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    begun = 2 + len(pipe.read())
    before, step = step, ask_step()
    # Each save that began tells that the one before is done.
    assert before + begun - 1 <= step <= before + begun + 1, (kill, before, begun, step)
    print(step, flush=True)
"""


@pytest.mark.parametrize(
    ("place", "num_kills", "longest_s", "size"),
    [  # 4 and 12 MB
        ("disk", 6, 0.15, 500_000),
        ("bucket", 2, 0.5, 1_500_000),
        pytest.param("disk", 30, 0.15, 500_000, marks=pytest.mark.long),
        pytest.param("bucket", 10, 0.5, 1_500_000, marks=pytest.mark.long),
    ],
)
def test_a_save_that_is_killed_at_any_moment_harms_nothing(place, num_kills, longest_s, size, tmp_path, request):
    run = str(tmp_path / "run") if place == "disk" else request.getfixturevalue("object_store") + "/killed"
    arguments = map(str, (run, num_kills, longest_s, size))
    result = subprocess.run(
        [sys.executable, "-c", KILLED_AGAIN_AND_AGAIN, *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stderr == ""  # nothing was damaged
    assert len(result.stdout.split()) == num_kills
    assert len(list_checkpoints(run)) >= 1
    with Saver(run, keep_last=1, first_step=0) as saver:
        saver.save(make(9999), no_export)
    names = [info.path for info in storage.list_files(run, hidden=True)]
    assert [name.partition("-")[0] for name in names] == ["checkpoints/step_00009999"]
