import json
from pathlib import Path

import pytest
import yaml

from eval.models.runs import export_folders, find_exports, is_complete, num_steps, split_word
from shards.errors import UserError


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("runs/a", ("runs/a", "")),
        ("runs/a/@all", ("runs/a", "all")),
        ("s3://bucket/a@400", ("s3://bucket/a", "400")),
        ("a@b/c", ("a@b/c", "")),
        ("/", ("/", "")),
    ],
)
def test_words(word, parts):
    assert split_word(word) == parts


def test_a_run_gives_its_newest_valid_export(tmp_path: Path, write_export):
    run = tmp_path / "run"
    for step in (90, 100, 110, 120):
        write_export(run / "exports" / f"step_{step:08d}", step=step)
    (run / "exports" / "step_00000120" / "model.json").unlink()
    weights = run / "exports" / "step_00000110" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    (export,), faults = find_exports(str(run))
    assert export.step == 100
    assert len(faults) == 1
    assert "step_00000110/model.safetensors is corrupt" in faults[0]
    assert list(export_folders(str(run)).values()) == [90, 100, 110]


def test_one_step_or_all_of_them(tmp_path: Path, write_export):
    run = tmp_path / "run"
    for step in (5, 40):
        write_export(run / "exports" / f"step_{step:08d}", step=step)
    (run / "exports" / "step_00000050").mkdir()
    (run / "exports" / "step_00000050" / "model.json").write_text("{")
    assert find_exports(f"{run}@5")[0][0].step == 5
    exports, faults = find_exports(f"{run}@all")
    assert [export.step for export in exports] == [5, 40]
    assert len(faults) == 1
    with pytest.raises(UserError, match="has no export of step 6: it has 5, 40, 50"):
        find_exports(f"{run}@6")


def test_what_is_no_run_is_refused_by_name(tmp_path: Path, write_export):
    (tmp_path / "run" / "exports").mkdir(parents=True)
    for word in (tmp_path / "run", f"{tmp_path / 'run'}@all"):
        with pytest.raises(UserError, match="run has no valid export"):
            find_exports(str(word))
    with pytest.raises(UserError, match="nowhere does not exist"):
        find_exports(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="is one export, not a run"):
        find_exports(f"{write_export(tmp_path / 'e')}@all")


@pytest.mark.parametrize(
    ("length", "max_steps", "steps"),
    [("400 steps", None, 400), ("10 epochs", None, 391), ("12800 samples", None, 400), ("10 epochs", 50, 50)],
)
def test_the_length_of_a_schedule(length, max_steps, steps):
    """32 samples a step, 1252 an epoch."""
    row = {"step": 10, "samples": 320, "epoch": 320 / 1252}
    assert num_steps({"schedule": {"length": length}, "max_steps": max_steps}, row) == steps


def test_a_run_is_complete_when_its_last_step_is_exported(tmp_path: Path, write_export):
    run = tmp_path / "run"
    run.mkdir()
    assert not is_complete(str(run))
    (run / "config.yaml").write_text(yaml.safe_dump({"schedule": {"length": "20 steps"}, "max_steps": None}))
    metrics = run / "metrics.jsonl"

    def log(*steps, tail=""):
        rows = [json.dumps({"step": step, "samples": 4 * step, "epoch": step / 8}) + "\n" for step in steps]
        metrics.write_text("".join(rows) + tail)

    log()
    assert not is_complete(str(run))
    log(10, 20)
    assert not is_complete(str(run))
    write_export(run / "exports" / "step_00000020", step=20)
    assert is_complete(str(run))
    log(10, tail='{"step": 20')
    assert not is_complete(str(run)), "a line that is being written is no row"
    metrics.write_text("step 20\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged"):
        is_complete(str(run))
