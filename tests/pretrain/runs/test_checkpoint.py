"""Checkpoints come back bit for bit, or are named as damaged; which ones are kept is a function of the steps."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pretrain.runs import checkpoint as checkpoints
from pretrain.runs.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    list_checkpoints,
    load_newest,
    read_checkpoint,
    remove_outdated,
    to_remove,
    write_checkpoint,
)
from shards import storage
from shards.errors import UserError
from shards.storage import retry


@pytest.fixture(params=["disk", "bucket"])
def run(request, tmp_path):
    if request.param == "disk":
        return str(tmp_path / "run")
    return storage.join(request.getfixturevalue("object_store"), "checkpoints", tmp_path.name)


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))
    return model, torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.9, 0.99))


def train(model, optimiser, steps):
    for step in steps:
        optimiser.zero_grad()
        model(torch.linspace(-1, step, 20).reshape(4, 5)).square().sum().backward()
        optimiser.step()


def state_of(model, optimiser, step):
    return Checkpoint(
        step=step,
        model=model.state_dict(),
        optimiser=optimiser.state_dict(),
        stream={"seed": 0, "consumed": 8 * step, "weights": [1, 2]},
        record={"config": {"model.depth": 2, "bands": None, "scale": [0.1, 1.0]}, "digest": "abc"},
    )


def make(step, value=0.0):
    return Checkpoint(step=step, model={"w": torch.full((3000,), value)}, optimiser={}, stream={}, record={})


def same_bits(left, right):
    return left.dtype == right.dtype and left.numpy().tobytes() == right.numpy().tobytes()


def test_training_goes_on_from_a_checkpoint_bit_for_bit(run):
    model, optimiser = network()
    train(model, optimiser, range(3))
    saved = state_of(model, optimiser, 3)
    url = write_checkpoint(run, saved)
    train(model, optimiser, range(3, 6))
    loaded, found = load_newest(run)
    assert (found, loaded.step, loaded.stream, loaded.record) == (url, 3, saved.stream, saved.record)
    again, its_optimiser = network()
    again.load_state_dict(loaded.model)
    its_optimiser.load_state_dict(loaded.optimiser)
    train(again, its_optimiser, range(3, 6))
    for left, right in zip(model.parameters(), again.parameters(), strict=True):
        assert same_bits(left.detach(), right.detach())
        ours, theirs = optimiser.state[left], its_optimiser.state[right]
        assert all(same_bits(ours[name], theirs[name]) for name in ("step", "exp_avg", "exp_avg_sq"))


def test_every_bit_of_every_type_survives(tmp_path):
    bits = torch.randint(-(2**31), 2**31, (1000,), dtype=torch.int32)
    tensors = {
        "float": bits.view(torch.float32),  # some are not numbers
        "zeros": torch.tensor([0.0, -0.0, float("inf"), float("nan")]),
        "int": torch.tensor([2**62, -1]),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(7.0),
        "empty": torch.zeros(0, 3),
    }
    half = bits.clone().view(torch.bfloat16)
    url = write_checkpoint(
        str(tmp_path), Checkpoint(step=1, model={**tensors, "half": half}, optimiser={}, stream={}, record={})
    )
    loaded = read_checkpoint(url).model
    assert all(same_bits(tensor, loaded[name]) for name, tensor in tensors.items())
    assert same_bits(half.view(torch.int16), loaded["half"].view(torch.int16))


def test_a_new_run_has_no_checkpoint(run):
    assert load_newest(run) is None
    assert list_checkpoints(run) == {}


def test_torch_alone_reads_a_checkpoint(tmp_path):
    content = torch.load(write_checkpoint(str(tmp_path), make(3, 1.5)), weights_only=True)
    assert (content["format"], content["format_version"], content["step"]) == ("pera-checkpoint", 3, 3)
    assert content["model"]["w"].tolist() == [1.5] * 3000


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGES = {
    "first byte": lambda data: flipped(data, 0),
    "a weight": lambda data: flipped(data, 5000),
    "last byte": lambda data: flipped(data, len(data) - 1),
    "cut": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(run, capsys, damage):
    urls = [write_checkpoint(run, make(step, step)) for step in (100, 200, 400)]
    damaged = damage(storage.read_bytes(urls[2]))
    storage.write_bytes(urls[2], damaged)
    loaded, url = load_newest(run)
    assert (url, loaded.step, loaded.model["w"][0]) == (urls[1], 200, 200)
    told = capsys.readouterr().err
    assert told.startswith(f"pretrain: {urls[2]} is damaged (its {len(damaged)} bytes have the checksum ")
    assert told.endswith("): going on from step 200\n")
    assert told.count("\n") == 1


def test_nothing_is_said_where_all_is_well(run, capsys):
    write_checkpoint(run, make(1))
    load_newest(run)
    assert capsys.readouterr().err == ""


def test_several_damaged_ones_are_all_named(tmp_path, capsys):
    urls = [write_checkpoint(str(tmp_path), make(step, step)) for step in (1, 2, 3)]
    for url in urls[1:]:
        Path(url).write_bytes(b"?")
    assert load_newest(str(tmp_path))[0].step == 1
    told = capsys.readouterr().err
    assert all(url in told for url in urls[1:])
    assert "going on from step 1" in told


def test_a_run_without_a_whole_checkpoint_does_not_begin_again_in_silence(run):
    urls = [write_checkpoint(run, make(step)) for step in (1, 2)]
    for url in urls:
        storage.write_bytes(url, b"")
    with pytest.raises(
        UserError, match=r"^no checkpoint of .* is whole \(.*; .*\): bring one back .* step 0$"
    ) as caught:
        load_newest(run)
    assert all(url in str(caught.value) for url in urls)


def test_a_file_that_the_disk_cannot_read_is_damaged(tmp_path):
    write_checkpoint(str(tmp_path), make(1))
    url = Path(write_checkpoint(str(tmp_path), make(2)))
    url.unlink()
    url.symlink_to("/proc/self/mem")  # whose first page is nowhere: EIO
    with pytest.raises(DamagedCheckpointError, match="the disk cannot read it"):
        read_checkpoint(str(url))
    assert load_newest(str(tmp_path))[0].step == 1


def test_a_store_that_fails_is_no_damage(faulty_store, monkeypatch):
    for step in (1, 2):
        write_checkpoint(faulty_store.url, make(step))
    monkeypatch.setattr(retry, "DEADLINE_S", 0.0)
    faulty_store.proxy.add("answer", method="GET", path="step_00000002", status=503)
    with pytest.raises(storage.StorageError, match="gave up"):
        load_newest(faulty_store.url)


def test_a_checkpoint_of_another_format_is_refused_by_name(tmp_path, monkeypatch):
    write_checkpoint(str(tmp_path), make(1))
    monkeypatch.setattr(checkpoints, "FORMAT_VERSION", 4)
    url = write_checkpoint(str(tmp_path), make(2))
    monkeypatch.undo()
    with pytest.raises(UserError, match=rf"^{url} has format pera-checkpoint 4, but this code reads pera-checkpoint 3"):
        load_newest(str(tmp_path))
    Path(url).rename(old := tmp_path / "checkpoints" / "step_00000002.pt")
    with pytest.raises(UserError, match=rf"^{old} has an earlier format, but this code reads pera-checkpoint 3"):
        load_newest(str(tmp_path))


def test_a_checkpoint_runs_no_code(tmp_path):
    bad = Checkpoint(step=1, model={}, optimiser={}, stream={}, record={"x": subprocess.Popen})
    url = write_checkpoint(str(tmp_path), bad)
    with pytest.raises(Exception, match="Weights only load failed"):
        read_checkpoint(url)


FULL_DISK = """
import resource, sys, torch
from pretrain.runs.checkpoint import Checkpoint, write_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    model = {name: torch.zeros(10_000) for name in "abcdef"}
    write_checkpoint(sys.argv[1], Checkpoint(step=2, model=model, optimiser={}, stream={}, record={}))
except OSError as error:
    print(type(error).__name__, error.errno)
"""


def test_a_file_that_may_not_grow_leaves_nothing(tmp_path):
    url = write_checkpoint(str(tmp_path), make(1))
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert result.stdout == "OSError 27\n"  # EFBIG: what a limit on file size gives instead of ENOSPC
    assert [str(path) for path in (tmp_path / "checkpoints").iterdir()] == [url]


steps_made = st.lists(st.integers(0, 60), unique=True, min_size=1)


@given(steps_made, st.data(), st.integers(1, 5), st.none() | st.integers(1, 20))
def test_the_newest_and_the_multiples_are_kept(steps, data, keep_last, keep_every_steps):
    saved = data.draw(st.sampled_from(steps))
    removed = to_remove(steps, saved=saved, keep_last=keep_last, keep_every_steps=keep_every_steps)
    kept = set(steps) - set(removed)
    made = sorted(step for step in steps if step <= saved)
    assert removed == sorted(set(removed))
    assert set(removed) <= set(steps)
    assert saved in kept
    assert set(made[-keep_last:]) <= kept
    assert max(kept) == saved
    for step in set(made[:-keep_last]):
        assert (step in kept) == (keep_every_steps is not None and step % keep_every_steps == 0)
    again = to_remove(sorted(kept), saved=saved, keep_last=keep_last, keep_every_steps=keep_every_steps)
    assert again == []


def test_what_is_kept_of_a_whole_run():
    steps = [0]
    for step in range(2, 21, 2):
        steps.append(step)
        removed = to_remove(steps, saved=step, keep_last=2, keep_every_steps=6)
        steps = [each for each in steps if each not in removed]
    assert steps == [0, 6, 12, 18, 20]


def test_removal_leaves_what_is_to_be_kept(run):
    urls = {step: write_checkpoint(run, make(step)) for step in (2, 4, 6, 8)}
    remove_outdated(run, urls[8], keep_last=1, keep_every_steps=4)
    assert list_checkpoints(run) == {4: urls[4], 8: urls[8]}


def test_damaged_ones_go_when_the_run_has_made_them_good(tmp_path):
    run = str(tmp_path)
    urls = {step: write_checkpoint(run, make(step)) for step in (1, 2, 3)}
    for step in (2, 3):
        Path(urls[step]).write_bytes(b"?")
    made_good = write_checkpoint(run, make(2, value=1.0))
    remove_outdated(run, made_good, keep_last=2, keep_every_steps=None)
    assert {str(path) for path in (tmp_path / "checkpoints").iterdir()} == {urls[1], made_good}
    assert load_newest(run)[1] == made_good
