import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from eval.__main__ import parse
from eval.evaluate import Evaluation
from eval.report.charts import series
from eval.report.contents import contents
from eval.watch import watch
from shards.errors import UserError


def _evaluation(models, data, out):
    arguments = ["--models", *map(str, models), "--data", f"d={data}", "--out", str(out), "--floors", "false"]
    evaluation = Evaluation(parse([*arguments, "--protocols", "knn"]), "", Console(file=io.StringIO()))
    evaluation.run()
    return evaluation


def test_exports_are_evaluated_as_they_come_until_the_run_is_complete(tmp_path: Path, write_export, write_classes):
    run, console = tmp_path / "run", Console(file=io.StringIO())
    write_export(run / "exports" / "step_00000010", step=10)
    (run / "config.yaml").write_text(yaml.safe_dump({"schedule": {"length": "40 steps"}}))
    record = {"format": "pera-run", "format_version": 2, "identity": {"seed": 7}, "digests": []}
    (run / "run.json").write_text(json.dumps(record))
    evaluation = _evaluation([run], write_classes(tmp_path / "d"), tmp_path / "out")
    waits, reports = [], []

    def export(step):
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "samples": step, "epoch": 1}) + "\n")
        write_export(run / "exports" / f"step_{step:08d}", step=step)

    def sleep(seconds):
        """Another 20 steps and a damaged export, then the end."""
        waits.append(seconds)
        if len(waits) == 1:
            export(20)
            write_export(run / "exports" / "step_00000030", step=30)
            (run / "exports" / "step_00000030" / "model.safetensors").write_bytes(b"?")
        elif len(waits) == 2:
            export(40)

    def write():
        reports.append([(row["model"], row["step"], row["samples_seen"]) for row in evaluation.report()["rows"]])

    watch(evaluation, write, console, sleep)
    assert waits == [30, 30]
    steps = [sorted({step for _, step, _ in report}) for report in reports]
    assert steps == [[10, 20], [10, 20, 40]]
    assert ("run step 40", 40, 400) in reports[-1]
    assert [model["record"]["seed"] for model in evaluation.report()["models"]] == [7, 7, 7]
    assert "step_00000030/model.safetensors is corrupt" in console.file.getvalue().replace("\n", "")


def test_a_complete_run_is_not_waited_for(tmp_path: Path, write_export, write_classes):
    run = tmp_path / "run"
    write_export(run / "exports" / "step_00000010", step=10)
    (run / "config.yaml").write_text(yaml.safe_dump({"schedule": {"length": "10 steps"}}))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 10, "samples": 10, "epoch": 1}) + "\n")
    evaluation = _evaluation([run], write_classes(tmp_path / "d"), tmp_path / "out")

    def never(*_):
        raise AssertionError

    watch(evaluation, never, Console(file=io.StringIO()), never)


def test_all_runs_are_watched(tmp_path: Path, write_export, write_classes):
    runs = [tmp_path / "one", tmp_path / "two"]
    for run in runs:
        write_export(run / "exports" / "step_00000010", step=10)
        (run / "config.yaml").write_text(yaml.safe_dump({"schedule": {"length": "20 steps"}}))
    evaluation = _evaluation(runs, write_classes(tmp_path / "d"), tmp_path / "out")
    for run in runs:
        write_export(run / "exports" / "step_00000020", step=20)
    finished = []

    def sleep(seconds):
        """Each run's end is logged while the other still goes on."""
        run = runs[len(finished)]
        (run / "metrics.jsonl").write_text(json.dumps({"step": 20, "samples": 20, "epoch": 1}) + "\n")
        finished.append(run)

    watch(evaluation, lambda: None, Console(file=io.StringIO()), sleep)
    assert len(finished) == 2
    assert {row["model"] for row in evaluation.report()["rows"]} == {
        f"{run} step {step}" for run in ("one", "two") for step in (10, 20)
    }


def test_new_exports_of_runs_of_one_folder_name_are_of_their_runs(tmp_path: Path, write_export, write_classes):
    """Both come to a step that the other has, or had."""
    runs = {month: tmp_path / month / "vitb" for month in ("jan", "feb")}

    def export(month, step):
        # Weights are drawn by the step, and are to be each export's own.
        folder = write_export(runs[month] / "exports" / f"step_{step:08d}", step=step + 1000 * (month == "feb"))
        fields = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_text(json.dumps(fields | {"step": step}))

    export("jan", 10)
    export("feb", 20)
    evaluation = _evaluation(runs.values(), write_classes(tmp_path / "d"), tmp_path / "out")
    for run in runs.values():
        (run / "config.yaml").write_text(yaml.safe_dump({"schedule": {"length": "30 steps"}}))
        (run / "metrics.jsonl").write_text(json.dumps({"step": 30, "samples": 30, "epoch": 1}) + "\n")
    for month, step in (("jan", 20), ("jan", 30), ("feb", 30)):
        export(month, step)
    reports = []
    watch(evaluation, lambda: reports.append(evaluation.report()), Console(file=io.StringIO()), lambda _: None)
    names = [f"{run}/vitb step {step}" for run, steps in (("jan", (10, 20, 30)), ("feb", (20, 30))) for step in steps]
    assert [model["name"] for model in reports[-1]["models"]] == names
    assert [model["run"] for model in reports[-1]["models"]] == [str(runs[name[:3]]) for name in names]
    index = contents(reports[-1])
    assert index.newest == {"jan/vitb step 30", "feb/vitb step 30"}
    steps = {one.name: [row["step"] for row in one.rows] for one in series(index, index.tables[0])}
    assert (steps["jan/vitb, cls"], steps["feb/vitb, cls"]) == ([10, 20, 30], [20, 30])
    compared = {(one["model"], one["other"]) for one in reports[-1]["comparisons"]}
    assert ("feb/vitb step 30", "jan/vitb step 30") in compared
    assert ("feb/vitb step 30", "feb/vitb step 20") in compared


def test_a_run_is_asked_for_before_the_work(tmp_path: Path, write_classes):
    data = write_classes(tmp_path / "d")
    arguments = ["--models", "floor:image_stats", "--data", f"d={data}", "--out", str(tmp_path / "out"), "--watch"]
    with pytest.raises(UserError, match="--watch needs a run among --models"):
        Evaluation(parse(arguments), "", Console(file=io.StringIO()))
    assert not (tmp_path / "out").exists()


def test_a_run_without_an_export_says_when_to_watch_it(tmp_path: Path, write_classes):
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="start --watch after its first export"):
        _evaluation([tmp_path / "run"], write_classes(tmp_path / "d"), tmp_path / "out")
