import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from eval import evaluate as evaluate_module
from eval.__main__ import main, parse
from eval.evaluate import evaluate
from eval.report import percent
from shards.errors import UserError


def _run(models, data, out, *flags):
    arguments = ["--models", *map(str, models), "--data", *data, "--out", str(out), *flags]
    assert main(arguments) == 0
    return json.loads((Path(out) / "results.json").read_text())


def test_export_against_floors_end_to_end(tmp_path: Path, write_export, write_classes, capsys):
    run = tmp_path / "run"
    write_export(run / "exports" / "step_00000100")
    data = [f"first={write_classes(tmp_path / 'first')}", f"second={write_classes(tmp_path / 'second', num_classes=2)}"]
    report = _run([run], data, tmp_path / "out")
    names = ["run step 100", "floor:random_init", "floor:image_stats", "floor:random_conv"]
    assert [model["name"] for model in report["models"]] == names
    assert len(report["rows"]) == 2 * (2 * 12 + 2 * 4)
    for row in report["rows"]:
        assert row["low"] <= row["value"] <= row["high"]
        assert row["num_train"] + row["num_test"] == {"first": 60, "second": 40}[row["data"]]
    # Each of the 12 rows of the export on each data set against each of three floors.
    assert len(report["comparisons"]) == 2 * 12 * 3
    assert any("floor:image_stats" in sentence for sentence in report["verdicts"])
    printed = capsys.readouterr().out
    assert "report.html" in printed
    assert "next:" in printed

    table = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert [row["value"] for row in table] == [row["value"] for row in report["rows"]]
    split = (tmp_path / "out" / "splits" / "first.tsv").read_text().splitlines()
    truth = [line.split("\t")[1].split("/")[0] for line in split if line.startswith("test")]
    for row in table[:12]:
        predicted = np.array([f"class_{label}" for label in row["predictions"]])
        assert (predicted == np.array(truth)).mean() == row["value"]


def test_page_is_self_contained_and_has_the_figures_of_the_results(tmp_path: Path, write_export, write_classes):
    export = write_export(tmp_path / "<b>e & f</b>")
    report = _run([export], [f"d={write_classes(tmp_path / 'd')}"], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r"https?://|<script|<link|@import|url\(|src=", page)
    assert "<b>e" not in page
    shown = re.findall(r'<tr class="\w+"><td>.*?</td><td>(\w+)</td><td class="num">([\d.]+)</td>', page)
    assert sorted(shown) == sorted((row["features"], percent(row["value"])) for row in report["rows"])
    for confusion in report["confusions"]:
        assert np.sum(confusion["counts"]) == report["rows"][0]["num_test"]
    text = (tmp_path / "out" / "report.md").read_text()
    for row in report["rows"]:
        interval = f"{percent(row['low'])} … {percent(row['high'])}"
        assert f"| {row['features']} | {percent(row['value'])} | {interval} |" in text
    for needed in (report["data"][0]["digest"], report["data"][0]["split_digest"], report["models"][0]["digest"][:16]):
        assert needed in page


def test_an_interrupted_evaluation_continues(tmp_path: Path, write_classes, monkeypatch: pytest.MonkeyPatch):
    config = parse(["--models", "floor:image_stats", "--data", f"d={write_classes(tmp_path / 'd')}",
                    "--out", str(tmp_path / "out")])  # fmt: skip
    console = Console(file=io.StringIO())
    append, computed = evaluate_module.Results.append, []

    def append_and_die(results, row):
        if len(computed) == 4:
            raise KeyboardInterrupt
        append(results, row)
        computed.append((row.model, row.protocol))

    monkeypatch.setattr(evaluate_module.Results, "append", append_and_die)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, "", console)
    assert len(pq.read_table(tmp_path / "out" / "results.parquet")) == 4

    def count(results, row):
        append(results, row)
        computed.append((row.model, row.protocol))

    monkeypatch.setattr(evaluate_module.Results, "append", count)
    report = evaluate(config, "", console)
    assert len(report["rows"]) == len(computed) == 8, "each row was computed once"
    again = evaluate(config, "", console)
    assert len(computed) == 8
    assert again["rows"] == report["rows"]
    assert again["comparisons"] == report["comparisons"]


def test_redo_repeats_with_equal_figures(tmp_path: Path, write_classes):
    data = [f"d={write_classes(tmp_path / 'd')}"]
    first = _run(["floor:image_stats"], data, tmp_path / "out")
    again = _run(["floor:image_stats"], data, tmp_path / "out", "--redo")
    assert [row["value"] for row in again["rows"]] == [row["value"] for row in first["rows"]]
    assert [row["seconds"] for row in again["rows"]] != [row["seconds"] for row in first["rows"]]


def test_a_corrupt_image_is_in_the_report(tmp_path: Path, write_classes):
    root = write_classes(tmp_path / "d", num_images=40)
    (root / "class_1" / "image_5.png").write_bytes(b"no image")
    report = _run(["floor:image_stats"], [f"d={root}"], tmp_path / "out", "--floors", "false")
    assert [item["path"] for item in report["data"][0]["rejected"]] == ["class_1/image_5.png"]
    assert "class_1/image_5.png" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "d"], "not name=PATH"),
        (["--data", "d=/nowhere/at/all"], "does not exist"),
        (["--models", "/nowhere/at/all"], "does not exist"),
        (["--num_draws", "10"], "below 1000"),
        (["--test_share", "1.5"], "between 0 and 1"),
        (["--colour", "red"], "colour"),
        (["--device", "abacus"], "device"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(tmp_path: Path, write_classes, arguments, message):
    defaults = {"--models": "floor:image_stats", "--data": f"d={write_classes(tmp_path / 'd')}"}
    defaults |= {"--out": str(tmp_path / "out"), arguments[0]: arguments[1]}
    with pytest.raises(UserError, match=message) as caught:
        main([item for pair in defaults.items() for item in pair])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_out_that_is_a_file_is_refused(tmp_path: Path, write_classes):
    (tmp_path / "file").write_text("here")
    data = write_classes(tmp_path / "d")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="file"):
            main(["--models", "floor:image_stats", "--data", f"d={data}",
                  "--out", str(out)])  # fmt: skip


def test_lists_come_from_flags_and_from_a_config_file(tmp_path: Path):
    path = tmp_path / "eval.yaml"
    path.write_text("models: [a, b]\ndata: [x=1]\nout: o\nseed: 3\n")
    config = parse(["--models", "c", "d", "--config", str(path)])
    assert (config.models, config.data, config.out, config.seed) == (["c", "d"], ["x=1"], "o", 3)


def test_image_statistics_on_real_eurosat(tmp_path: Path, real_images: Path):
    """On a random split of the whole subset; eval.md's benchmark figures are on other splits."""
    data = [f"eurosat={real_images / 'eurosat_rgb'}"]
    report = _run(["floor:image_stats"], data, tmp_path / "out", "--floors", "false")
    values = {row["protocol"]: row["value"] for row in report["rows"]}
    assert 0.68 < values["knn_20"] < 0.8
    assert 0.6 < values["linear"] < 0.8
