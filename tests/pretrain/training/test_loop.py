import json
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pretrain.config import Config, MixConfig
from pretrain.pages.figures import MEANINGS
from pretrain.runs.checkpoint import list_checkpoints
from pretrain.runs.metrics import read_bad_samples, read_rows, stop_kinds
from pretrain.training.loop import train
from pretrain.training.stopping import StopRequest
from pretrain.training.trainer import Trainer
from shards.cli import parse_config
from shards.curation.select import select
from shards.dataset import CorruptSampleError
from shards.errors import UserError

# On one core, as torch sees it, two workers are too many.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

REPOSITORY = Path(__file__).parents[3]


def load(url):
    return torch.load(url, weights_only=True)


def assert_equal_state(left, right, path=""):
    assert type(left) is type(right), path
    if isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_equal_state(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, list):
        assert len(left) == len(right), path
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_equal_state(a, b, f"{path}[{i}]")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), path
    else:
        assert left == right, path


TIMES = ("samples_per_s", "data_wait_share", "save_blocked_s", "flops_per_s", "peak_share", "memory_bytes")


def rows_without_times(run):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_rows(run)]


def weights(outcome):
    return Path(outcome.export_url, "model.safetensors").read_bytes()


DYING = """
import os, signal, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one thread, as here
from pretrain.config import Config
from pretrain.training.loop import train
from pretrain.training.stopping import StopRequest
from pretrain.training.trainer import Trainer
from shards.cli import parse_config
last, step = int(sys.argv[1]), Trainer.step

def die(self, number, batch, stop):
    if number == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, number, batch, stop)

Trainer.step = die
train(parse_config("pretrain", "", Config, sys.argv[2:]))
"""


def die_at(config, step, wait_until_gone):
    """Run training in a process of its own that is killed -9 at a step; return when all its processes are gone."""
    file = Path(config.run).with_suffix(".yaml")
    file.write_text(yaml.safe_dump(json.loads(json.dumps(asdict(config)))))
    command = [sys.executable, "-c", DYING, str(step), "--config", str(file)]
    process = subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True)
    assert process.wait() == -signal.SIGKILL
    wait_until_gone(process.pid)


def test_stopped_and_resumed_equals_uninterrupted(tiny, tmp_path):
    whole = train(replace(tiny, run=str(tmp_path / "whole")))
    parts = replace(tiny, run=str(tmp_path / "parts"))
    assert train(replace(parts, max_steps=3)).position.step == 3
    resumed = train(parts)
    assert (resumed.first_step, resumed.position) == (3, whole.position)
    left, right = load(whole.checkpoint_url), load(resumed.checkpoint_url)
    for name in ("model", "optimiser", "step", "stream"):
        assert_equal_state(left[name], right[name], name)
    assert rows_without_times(str(tmp_path / "whole")) == rows_without_times(str(tmp_path / "parts"))
    assert weights(whole) == weights(resumed)


@pytest.mark.parametrize("where", ["_forward", "step"])
def test_asked_to_stop_in_a_step_it_saves_after_it_and_goes_on_as_if_nothing_had_been(
    tiny, tmp_path, monkeypatch, where
):
    whole = train(replace(tiny, run=str(tmp_path / "whole")))
    asked = StopRequest()
    method = getattr(Trainer, where)

    def asking(self, number, *arguments):
        result = method(self, number, *arguments)
        asked.asked = number == 2
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, where, asking)
        outcome = train(tiny, asked)
    assert (outcome.stopped, outcome.position.step) == (True, 3)
    assert 3 in list_checkpoints(tiny.run)
    assert weights(train(tiny)) == weights(whole)
    assert rows_without_times(tiny.run) == rows_without_times(str(tmp_path / "whole"))


def test_checkpoints_are_kept_for_good_at_their_interval(tiny):
    train(replace(tiny, checkpoint=replace(tiny.checkpoint, every="1 step", keep_last=1, keep_every="2 steps")))
    assert list(list_checkpoints(tiny.run)) == [2, 4, 6]


def test_a_damaged_newest_checkpoint_is_passed_over(tiny, tmp_path, capsys):
    whole = train(replace(tiny, run=str(tmp_path / "whole")))
    train(tiny)
    newest = Path(list_checkpoints(tiny.run)[6])
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    resumed = train(tiny)
    assert resumed.first_step == 4
    assert f"{newest} is damaged" in capsys.readouterr().err
    assert weights(resumed) == weights(whole)


def test_a_run_starts_from_given_weights_and_goes_on_without_them(tiny, tmp_path, capsys):
    export = train(replace(tiny, run=str(tmp_path / "first"))).export_url
    config = replace(tiny, init_from=export, schedule=replace(tiny.schedule, lr=1e-9, lr_end=1e-9))
    train(replace(config, max_steps=2))
    assert "first/exports/step_00000006" in capsys.readouterr().err
    given, ours = (load_file(Path(url, "model.safetensors")) for url in (export, f"{tiny.run}/exports/step_00000002"))
    for name, value in given.items():
        torch.testing.assert_close(ours[name], value, atol=1e-6, rtol=0)
    Path(export, "model.json").unlink()
    assert train(config).first_step == 2


def test_a_checkpoint_of_another_run_is_refused(tiny, tmp_path):
    train(replace(tiny, max_steps=2))
    other = replace(tiny, run=str(tmp_path / "other"), seed=1, max_steps=2)
    train(other)
    for url in list_checkpoints(other.run).values():
        Path(url).unlink()
    newest = Path(list_checkpoints(tiny.run)[2])
    shutil.copy(newest, Path(other.run, "checkpoints", newest.name))
    with pytest.raises(UserError, match="is of a run of another configuration"):
        train(other)


def test_alarms_are_the_same_after_a_stop(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("pretrain.training.alarm._LEAST_RANK", 1e9)
    schedule = replace(tiny.schedule, length="10 steps", lr_warmup="1 step")
    config = replace(tiny, schedule=schedule, checkpoint=replace(tiny.checkpoint, every="10 steps"))
    whole = replace(config, run=str(tmp_path / "whole"))
    train(whole)
    train(replace(config, max_steps=7))
    train(config)
    alarms = [row["alarm"] for row in read_rows(config.run)]
    assert alarms == [row["alarm"] for row in read_rows(whole.run)]
    assert sum(alarms) == 6


def test_killed_at_a_random_step_and_resumed_with_other_workers_equals_uninterrupted(tiny, tmp_path, wait_until_gone):
    whole = train(replace(tiny, run=str(tmp_path / "whole")))
    killed = replace(tiny, run=str(tmp_path / "killed"), loader=replace(tiny.loader, workers=1))
    step = random.randrange(6)
    die_at(killed, step, wait_until_gone)
    resumed = train(replace(killed, loader=replace(tiny.loader, workers=2)))
    # The save of the newest checkpoint may have been under way.
    assert resumed.first_step in (step // 2 * 2, max(0, step // 2 * 2 - 2)), step
    assert weights(resumed) == weights(whole), step
    left, right = load(whole.checkpoint_url), load(resumed.checkpoint_url)
    assert_equal_state(left["optimiser"], right["optimiser"])
    assert left["stream"] == right["stream"]
    assert rows_without_times(str(tmp_path / "whole")) == rows_without_times(killed.run)


def test_a_crash_between_checkpoints_is_made_good(tiny, tmp_path, monkeypatch):
    whole = train(replace(tiny, run=str(tmp_path / "whole")))
    step = Trainer.step

    def crash(self, number, batch, stop):
        if number == 3:
            raise ConnectionError("the node is gone")
        return step(self, number, batch, stop)

    # Not undone as a whole: the number of threads is patched, too.
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", crash)
        with pytest.raises(ConnectionError):
            train(tiny)
    assert max(list_checkpoints(tiny.run)) == 2
    resumed = train(tiny)
    assert_equal_state(load(whole.checkpoint_url)["model"], load(resumed.checkpoint_url)["model"])
    assert rows_without_times(tiny.run) == rows_without_times(str(tmp_path / "whole"))


def test_a_run_leaves_what_it_promises(tiny):
    outcome = train(tiny)
    run = Path(tiny.run)
    # The resolved configuration can be given back as it is.
    assert parse_config("pretrain", "", Config, ["--config", str(run / "config.yaml")]) == tiny
    assert len(list((run / "checkpoints").iterdir())) == 2
    assert list(list_checkpoints(tiny.run)) == [4, 6]
    assert (run / "curves.html").exists()
    assert [path.name for path in sorted((run / "exports").iterdir())][-1] == "step_00000006"
    rows = read_rows(tiny.run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["samples"] == outcome.position.samples == 60
    assert rows[-1]["ema"] == 1
    assert all(row.keys() >= MEANINGS.keys() for row in rows)
    assert all(isinstance(value, int | float) for value in rows[-1].values())
    assert list((run / "tensorboard").iterdir())
    # Saves follow rows 2, 4 and 6.
    assert [row["step"] for row in rows if row["save_blocked_s"] > 0] == [3, 5]


def test_a_finished_run_is_left_alone(tiny):
    train(tiny)
    before = {path: path.stat().st_mtime_ns for path in Path(tiny.run).rglob("*.pt")}
    again = train(tiny)
    assert (again.first_step, again.position.step, again.figures) == (6, 6, {})
    assert {path: path.stat().st_mtime_ns for path in Path(tiny.run).rglob("*.pt")} == before


def test_training_learns(variant):
    train(variant(schedule__length="40 steps", schedule__lr=3e-3, schedule__ema=(0.9, 1.0)))
    rows = read_rows(variant().run)
    pixel = [row["pixel"] for row in rows]
    # Of ten steps each: batches are small and differ.
    assert sum(pixel[-10:]) < 0.85 * sum(pixel[:10])
    assert rows[-1]["feature_spread"] > 0.1


def test_another_dataset_is_refused(tiny, tmp_path, write_dataset):
    train(replace(tiny, max_steps=1))
    other = write_dataset(str(tmp_path / "other"), seed=5)
    with pytest.raises(UserError, match=r"made from other data: digest [0-9a-f]{64}, but .* has [0-9a-f]{64}"):
        train(replace(tiny, data=other))
    with pytest.raises(UserError, match="made from 1 datasets, not 2"):
        train(replace(tiny, mix=(MixConfig(data=other),)))


def test_a_run_goes_on_with_the_version_that_it_began_with(tiny, tmp_path, write_dataset):
    data = write_dataset(str(tmp_path / "data"))
    config = replace(tiny, data=data)
    whole = train(replace(config, run=str(tmp_path / "whole")))
    train(replace(config, max_steps=3))
    select(data, "key > 'sample-000003'")
    assert weights(train(config)) == weights(whole)
    with pytest.raises(UserError, match="made from other data"):
        train(replace(config, version=2))
    newest, chosen = (replace(config, run=str(tmp_path / name), max_steps=1) for name in ("newest", "chosen"))
    train(newest)
    train(replace(chosen, version=2))
    assert read_rows(newest.run)[0]["loss"] == read_rows(chosen.run)[0]["loss"]
    assert read_rows(newest.run)[0]["epoch"] == 10 / 20


def test_the_same_samples_in_other_shards_are_refused(tiny, tmp_path, write_dataset):
    data = write_dataset(str(tmp_path / "data"))
    train(replace(tiny, data=data, max_steps=2))
    rebuilt = write_dataset(str(tmp_path / "rebuilt"), num_shards=2)
    with pytest.raises(UserError, match=rf"{rebuilt} version 1 has the samples .* in other shards"):
        train(replace(tiny, data=rebuilt))


def damage(url):
    """Flip a byte of a shard's first sample."""
    shard = sorted(Path(url, "shards").iterdir())[0]
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    return shard


def test_a_bad_sample_stops_the_run_and_harms_nothing(variant, tmp_path, write_dataset):
    config = variant(data=write_dataset(str(tmp_path / "data")))
    train(replace(config, max_steps=2))
    before = load(list_checkpoints(config.run)[2])
    damage(config.data)
    with pytest.raises(CorruptSampleError, match="does not match its checksum"):
        train(config)
    assert_equal_state(load(list_checkpoints(config.run)[2]), before)
    assert stop_kinds(read_rows(config.run)[-1]) == ["corrupt"]


def test_bad_samples_are_replaced_and_listed_once_whatever_happens(variant, tmp_path, write_dataset):
    config = variant(data=write_dataset(str(tmp_path / "data")), loader__on_bad="replace")
    shard = damage(config.data)
    whole = train(replace(config, run=str(tmp_path / "whole")))
    # 60 samples are two and a half epochs of 24.
    assert whole.num_bad in (2, 3)
    parts = replace(config, run=str(tmp_path / "parts"))
    train(replace(parts, max_steps=3))
    resumed = train(replace(parts, loader=replace(config.loader, workers=1)))
    assert weights(resumed) == weights(whole)
    listed = read_bad_samples(parts.run)
    assert listed == read_bad_samples(str(tmp_path / "whole"))
    assert [str(shard) in entry["name"] for entry in listed] == [True] * whole.num_bad
    assert sum(row["bad_samples"] for row in read_rows(parts.run)) == resumed.num_bad == whole.num_bad
    assert rows_without_times(parts.run) == rows_without_times(str(tmp_path / "whole"))


def test_another_configuration_is_refused_by_key(variant):
    train(variant(max_steps=1))
    with pytest.raises(UserError, match=r"model\.depth 2 -> 4; seed 0 -> 1"):
        train(variant(model__depth=4, seed=1))


def test_what_does_not_change_the_result_may_change(variant):
    train(variant(max_steps=1))
    outcome = train(variant(max_steps=2, log_every=2, loader__workers=1, checkpoint__keep_last=1))
    assert outcome.first_step == 1


def test_a_folder_with_other_things_is_refused(tiny):
    Path(tiny.run).mkdir()
    (Path(tiny.run) / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="holds no run"):
        train(tiny)
    assert [path.name for path in Path(tiny.run).iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__image_px": 64, "views__local_px": 32}, "tiles of 32 px"),
        ({"schedule__length": "1 samples"}, "less than one step"),
        ({"bands": ("nir",)}, "no band nir"),
        ({"data": "/nowhere/at/all"}, "holds no dataset"),
    ],
)
def test_nothing_is_written_where_nothing_fits(variant, change, message):
    config = variant(**change)
    with pytest.raises(UserError, match=message):
        train(config)
    assert not Path(config.run).exists()


def test_a_run_may_live_in_a_bucket(tiny, object_store):
    config = replace(tiny, run=f"{object_store}/runs/tiny", max_steps=2)
    train(config)
    assert train(replace(config, max_steps=4)).first_step == 2
    assert [row["step"] for row in read_rows(config.run)] == [1, 2, 3, 4]
    assert json.dumps(list(list_checkpoints(config.run))) == "[2, 4]"


def test_data_in_a_bucket_give_the_same_run(tiny, tmp_path, object_store):
    import s3fs

    s3fs.S3FileSystem().put(tiny.data, f"{object_store}/data", recursive=True)
    local = train(replace(tiny, run=str(tmp_path / "local")))
    config = replace(tiny, data=f"{object_store}/data", loader=replace(tiny.loader, cache=str(tmp_path / "cache")))
    tight = replace(config, loader=replace(config.loader, cache_gb=1e-5))
    with pytest.raises(UserError, match=r"needs .*B, allowed 10\.0 kB.*--loader\.cache_gb"):
        train(tight)
    assert not Path(config.run).exists()
    remote = train(config)
    assert weights(remote) == weights(local)
    rows = read_rows(config.run)
    assert sum(row["gets"] for row in rows) > 0
    assert sum(row["bytes_fetched"] for row in rows) >= 24 * 1024
    assert max(row["cache_bytes"] for row in rows) > 0
    assert list((tmp_path / "cache").iterdir()) == []
