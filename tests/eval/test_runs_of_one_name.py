import json
import re
from pathlib import Path

import pyarrow.parquet as pq

from eval.report.charts import series
from eval.report.contents import contents
from tests.eval.command import run_eval


def _write_runs(root: Path, write_export, **steps):
    """Write runs ROOT/NAME/vitb with exports of some steps, each with weights of its own; return their folders."""
    for number, (name, found) in enumerate(steps.items(), 1):
        for step in found:
            folder = write_export(root / name / "vitb" / "exports" / f"step_{step:08d}", step=1000 * number + step)
            fields = json.loads((folder / "model.json").read_text())
            (folder / "model.json").write_text(json.dumps(fields | {"step": step}))
    return [str(root / name / "vitb") for name in steps]


def test_runs_of_one_folder_name_are_two_everywhere(tmp_path: Path, write_export, write_classes, capsys):
    """With a step in common and steps of their own."""
    runs = _write_runs(tmp_path, write_export, jan=(10, 20), feb=(10, 30))
    words, data = [f"{run}@all" for run in runs], [f"d={write_classes(tmp_path / 'd')}"]
    report = run_eval(words, data, tmp_path / "out", "--protocols", "knn", "--floors", "false")
    names = ["jan/vitb step 10", "jan/vitb step 20", "feb/vitb step 10", "feb/vitb step 30"]
    assert [model["name"] for model in report["models"]] == names
    assert [(model["run"], model["run_name"]) for model in report["models"]] == [
        (run, f"{month}/vitb") for month, run in zip(("jan", "feb"), runs, strict=True) for _ in range(2)
    ]
    assert {(one["model"], one["other"]) for one in report["comparisons"]} == {
        ("jan/vitb step 20", "jan/vitb step 10"), ("feb/vitb step 30", "feb/vitb step 10"),
        ("feb/vitb step 30", "jan/vitb step 20"),
    }  # fmt: skip
    index = contents(report)
    assert index.newest == {"jan/vitb step 20", "feb/vitb step 30"}
    found = {one.name: [row["model"] for row in one.rows] for one in series(index, index.tables[0])}
    assert found == {
        f"{run}, {kind}": [name for name in names if name.startswith(run)]
        for run in ("feb/vitb", "jan/vitb") for kind in ("cls", "cls+mean", "patch_mean")
    }  # fmt: skip
    table = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert {(row["run"], row["step"]) for row in table} == {
        (runs[0], 10), (runs[0], 20), (runs[1], 10), (runs[1], 30),
    }  # fmt: skip
    page, printed = (tmp_path / "out" / "report.html").read_text(), capsys.readouterr().out
    assert all(text in page for text in ("jan/vitb, cls</span>", "feb/vitb, cls</span>"))
    for text in (page, (tmp_path / "out" / "report.md").read_text(), printed):
        assert all(name in text for name in names)
        assert not re.search(r"(?<!jan/|feb/)vitb step", text)


def test_a_run_that_was_moved_is_told_where_it_is(tmp_path: Path, write_export, write_classes):
    """Its figures are not computed again."""
    (run,) = _write_runs(tmp_path, write_export, jan=(10,))
    data, flags = [f"d={write_classes(tmp_path / 'd')}"], ("--protocols", "knn", "--floors", "false")
    before = run_eval([run], data, tmp_path / "out", *flags)
    (tmp_path / "jan").rename(tmp_path / "archive")
    after = run_eval([tmp_path / "archive" / "vitb"], data, tmp_path / "out", *flags)
    assert {row["run"] for row in before["rows"]} == {run}
    assert {row["run"] for row in after["rows"]} == {str(tmp_path / "archive" / "vitb")}
    assert [row["seconds"] for row in after["rows"]] == [row["seconds"] for row in before["rows"]]


def test_seeds_of_runs_of_one_folder_name(tmp_path: Path, write_export, write_classes):
    months = {"jan": (0, 8), "feb": (1, 8), "mar": (0, 9), "apr": (1, 9)}
    runs = _write_runs(tmp_path, write_export, **dict.fromkeys(months, (10, 20)))
    for run, (seed, width) in zip(runs, months.values(), strict=True):
        record = {"format": "pera-run", "format_version": 2, "identity": {"seed": seed, "width": width}, "digests": []}
        (Path(run) / "run.json").write_text(json.dumps(record))
    data = [f"d={write_classes(tmp_path / 'd')}"]
    report = run_eval(runs, data, tmp_path / "out", "--protocols", "knn", "--floors", "false")
    found = [(f["method"], f["models"]) for f in report["seeds"] if f["protocol"] == "knn_20"]
    assert found == [
        ("jan/vitb", ["jan/vitb step 20", "feb/vitb step 20"]), ("mar/vitb", ["mar/vitb step 20", "apr/vitb step 20"]),
    ]  # fmt: skip
