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
from eval.report.page import percent
from shards.errors import UserError
from tests.eval.command import run_eval


def test_export_against_floors_end_to_end(tmp_path: Path, write_export, write_classes, capsys):
    run = tmp_path / "run"
    write_export(run / "exports" / "step_00000100")
    data = [f"first={write_classes(tmp_path / 'first')}", f"second={write_classes(tmp_path / 'second', num_classes=2)}"]
    report = run_eval([run], data, tmp_path / "out")
    names = ["run step 100", "floor:random_init", "floor:image_stats", "floor:random_conv"]
    assert [model["name"] for model in report["models"]] == names
    # Six rows of k-NN, linear and retrieval for each of three kinds of features, or a floor's one.
    assert len(report["rows"]) == 2 * (2 * 18 + 2 * 6)
    for row in report["rows"]:
        assert row["low"] <= row["value"] <= row["high"]
        assert row["num_train"] + row["num_test"] == {"first": 60, "second": 40}[row["data"]]
    # Each of the 18 rows of the export on each data set against each of three floors.
    assert len(report["comparisons"]) == 2 * 18 * 3
    assert len(report["verdicts"]) == 2 * 2, "one for each data set and headline protocol, with all floors in it"
    assert all("floor" in sentence for sentence in report["verdicts"])
    printed = capsys.readouterr().out
    assert "report.html" in printed
    assert "next:" in printed

    table = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert [row["value"] for row in table] == [row["value"] for row in report["rows"]]
    split = (tmp_path / "out" / "splits" / "first.tsv").read_text().splitlines()
    truth = [line.split("\t")[1].split("/")[0] for line in split if line.startswith("test")]
    for row in table:
        if row["data"] != "first" or row["metric"] != "accuracy":
            continue
        predicted = np.array([f"class_{label}" for label in row["predictions"]])
        assert (predicted == np.array(truth)).mean() == row["value"]


def test_page_has_the_figures_of_the_results(tmp_path: Path, write_export, write_classes):
    export = write_export(tmp_path / "<b>e & f</b>")
    report = run_eval([export], [f"d={write_classes(tmp_path / 'd')}"], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r'<link|@import|(src|href)="(?!data:|#)', page)
    assert "<b>e" not in page
    text = (tmp_path / "out" / "report.md").read_text()
    for row in report["rows"]:
        assert percent(row["value"]) in page
        assert f"{percent(row['low'])} … {percent(row['high'])}" in text
    for confusion in report["confusions"]:
        assert np.sum(confusion["counts"]) == report["rows"][0]["num_test"]
    for needed in (report["data"][0]["digest"], report["data"][0]["split_digest"], report["models"][0]["digest"][:16]):
        assert needed in page


def test_an_interrupted_evaluation_continues(tmp_path: Path, write_classes, monkeypatch: pytest.MonkeyPatch):
    config = parse(["--models", "floor:image_stats", "--data", f"d={write_classes(tmp_path / 'd')}",
                    "--out", str(tmp_path / "out")])  # fmt: skip
    console = Console(file=io.StringIO())
    append, computed = evaluate_module.Results.append, []

    def append_and_die(results, rows):
        if len(computed) == 4:
            raise KeyboardInterrupt
        count(results, rows)

    def count(results, rows):
        append(results, rows)
        computed.extend((row.model, row.protocol) for row in rows)

    # k-NN has three rows and the linear probe one; retrieval's two are never half there.
    monkeypatch.setattr(evaluate_module.Results, "append", append_and_die)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, "", console)
    assert len(pq.read_table(tmp_path / "out" / "results.parquet")) == 4

    monkeypatch.setattr(evaluate_module.Results, "append", count)
    report = evaluate(config, "", console)
    assert len(report["rows"]) == len(computed) == 12, "each row was computed once"
    again = evaluate(config, "", console)
    assert len(computed) == 12
    for name in ("rows", "comparisons", "confusions", "pictures"):
        assert again[name] == report[name]


@pytest.mark.parametrize(
    ("write", "rows", "num_pictures"),
    [("write_masks", ["segment_linear", "segment_conv"], 3), ("write_pairs", ["change_difference_f1"], 2)],
)
def test_masks_and_changes_end_to_end(
    tmp_path: Path, write_export, request: pytest.FixtureRequest, write, rows, num_pictures
):
    data = request.getfixturevalue(write)(tmp_path / "d")
    models = [write_export(tmp_path / "e"), "floor:image_stats"]
    report = run_eval(models, [f"d={data}"], tmp_path / "out", "--test_share", "0.3", "--floors", "false")
    found = {(row["model"], row["protocol"]): row for row in report["rows"]}
    for name in rows:
        row = found["floor:image_stats", name]
        assert row["value"] > 0.6, "brightness tells all"
        assert row["low"] <= row["value"] <= row["high"]
        assert set(row["detail"]["per_class"]) == set(report["data"][0]["classes"])
        assert found["e step 100", name]["features"] == "patches"
    shown = [p for p in report["pictures"] if (p["model"], p["protocol"]) == ("floor:image_stats", rows[0])]
    assert len(shown) >= num_pictures
    assert any(p["protocol"] == "pca" and p["model"] == "e step 100" for p in report["pictures"])
    confusion = report["confusions"][0]
    assert np.sum(confusion["counts"]) == found["e step 100", rows[0]]["detail"]["num_pixels"]


def test_every_protocol_by_name(tmp_path: Path, write_export, write_classes):
    """Classes that colour tells: all protocols find more than chance."""
    data = [f"d={write_classes(tmp_path / 'd', num_images=24)}"]
    report = run_eval([write_export(tmp_path / "e")], data, tmp_path / "out", "--protocols", "all", "--floors", "false")
    best: dict[str, float] = {}
    for row in report["rows"]:
        best[row["protocol"]] = max(best.get(row["protocol"], 0), row["value"])
    assert {"knn_20", "linear", "few_shot_linear_5", "knn_20_over_scales", "retrieval_map"} <= set(best)
    assert "fine_tune" not in best
    assert min(best.values()) > 0.4
    few = next(row for row in report["rows"] if row["protocol"] == "few_shot_knn_5")
    assert len(few["detail"]["draws"]) == 5
    gallery = [p for p in report["pictures"] if p["protocol"] == "retrieval_map"]
    assert len(gallery) == 1


def test_every_protocol_on_real_images(tmp_path: Path, real_images: Path, write_export):
    """Twenty chips of each of ten classes; masks and pairs of real images are in the tests of their protocols."""
    for folder in (folder for folder in (real_images / "eurosat_rgb").iterdir() if folder.is_dir()):
        (tmp_path / "d" / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:20]:
            (tmp_path / "d" / folder.name / file.name).write_bytes(file.read_bytes())
    models = [write_export(tmp_path / "e"), "floor:image_stats", "floor:random_conv"]
    flags = ("--floors", "false", "--protocols", "all", "fine_tune", "--test_share", "0.4")
    report = run_eval(models, [f"d={tmp_path / 'd'}"], tmp_path / "out", *flags)
    best: dict[str, float] = {}
    for row in report["rows"]:
        best[row["protocol"]] = max(best.get(row["protocol"], 0), row["value"])
        assert row["low"] <= row["value"] <= row["high"]
    assert set(best) >= {"knn_20", "linear", "few_shot_knn_5", "few_shot_linear_5", "knn_20_at_12"}
    assert set(best) >= {"knn_20_over_scales", "retrieval_map", "fine_tune"}
    assert min(best.values()) > 0.15, "chance is 0.1"


def test_fine_tuning_is_asked_for_by_name_and_of_networks(tmp_path: Path, write_export, write_classes):
    data = [f"d={write_classes(tmp_path / 'd', num_classes=2, num_images=8)}"]
    models = [write_export(tmp_path / "e"), "floor:image_stats"]
    report = run_eval(models, data, tmp_path / "out", "--protocols", "fine_tune", "--floors", "false")
    (row,) = report["rows"]
    assert (row["model"], row["protocol"], row["features"]) == ("e step 100", "fine_tune", "tuned")
    assert row["detail"]["validation"] is not None


def test_features_are_chosen_by_validation(tmp_path: Path, write_export, write_classes):
    report = run_eval([write_export(tmp_path / "e")], [f"d={write_classes(tmp_path / 'd')}"], tmp_path / "out")
    for protocol in ("knn_20", "linear", "retrieval_map"):
        rows = [row for row in report["rows"] if (row["model"], row["protocol"]) == ("e step 100", protocol)]
        chosen = [row for row in rows if row["chosen"]]
        assert len(chosen) == 1
        assert chosen[0]["detail"]["validation"] == max(row["detail"]["validation"] for row in rows)


def test_figures_by_step_of_all_exports(tmp_path: Path, write_export, write_classes):
    run = tmp_path / "run"
    for step in (10, 20, 30):
        write_export(run / "exports" / f"step_{step:08d}", step=step)
    (run / "exports" / "step_00000020" / "model.safetensors").write_bytes(b"?")
    data = [f"d={write_classes(tmp_path / 'd')}"]
    report = run_eval([f"{run}@all"], data, tmp_path / "out", "--protocols", "knn")
    steps = {row["model"]: (row["step"], row["samples_seen"]) for row in report["rows"]}
    assert steps["run step 10"] == (10, 100)
    assert steps["run step 30"] == (30, 300)
    assert steps["floor:random_init"] == (None, None)
    assert "run step 20" not in steps, "it is damaged and was passed over"


def test_costs_of_training_and_a_baseline_are_in_the_report(tmp_path: Path, write_export, write_classes):
    run = tmp_path / "run"
    for step in (10, 20, 30):
        write_export(run / "exports" / f"step_{step:08d}", step=step)
    rows = [{"step": step, "samples_per_s": 100 + step, "memory_bytes": step << 20} for step in (10, 20, 30)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    models = [write_export(tmp_path / "other"), f"{run}@all", write_export(tmp_path / "third")]
    flags = ("--protocols", "knn", "--floors", "false", "--baseline", f"{run}@all")
    report = run_eval(models, [f"d={write_classes(tmp_path / 'd')}"], tmp_path / "out", *flags)
    training = {model["name"]: model["training"] for model in report["models"]}
    assert training["run step 20"] == {"samples_per_s": 115, "memory_bytes": 20 << 20}
    assert training["run step 30"] == {"samples_per_s": 120, "memory_bytes": 30 << 20}
    assert training["other step 100"] is None
    assert report["baseline"] == "run step 30"
    pairs = {(one["model"], one["other"]) for one in report["comparisons"]}
    newest = {("other step 100", "run step 30"), ("third step 100", "run step 30")}
    assert pairs == newest | {("run step 20", "run step 10"), ("run step 30", "run step 20")}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "against run step 30, " in page
    assert "against run step 30" in (tmp_path / "out" / "report.md").read_text()
    for sentence in report["verdicts"]:
        assert sentence.split(", ")[1].split(" ")[0] in ("other", "third", "run")


def test_runs_that_differ_in_their_seed_alone_are_told_as_one_method(tmp_path: Path, write_export, write_classes):
    identities = {"base-0": (0, 8), "base-1": (1, 8), "wide-0": (0, 9), "wide-1": (1, 9)}
    for number, (name, (seed, width)) in enumerate(identities.items(), 1):
        for step in (number, 10):
            # Weights are drawn by the step: the newest exports have one step in common, and weights of their own.
            folder = write_export(tmp_path / name / "exports" / f"step_{step:08d}", step=10 * number + step)
            fields = json.loads((folder / "model.json").read_text())
            (folder / "model.json").write_text(json.dumps(fields | {"step": step}))
        record = {"format": "pera-run", "format_version": 2, "identity": {"seed": seed, "width": width}, "digests": []}
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    runs = [f"{tmp_path / name}@all" for name in identities]
    flags = ("--protocols", "knn", "--baseline", runs[1])
    data = [f"d={write_classes(tmp_path / 'd')}"]
    report = run_eval([*runs, write_export(tmp_path / "alone")], data, tmp_path / "out", *flags)
    base, wide = (figure for figure in report["seeds"] if figure["protocol"] == "knn_20")
    assert [base["method"], base["against"], wide["method"], wide["against"]["other"]] == ["base", None, "wide", "base"]
    for figure in (base, wide):
        models = [f"{figure['method']}-{seed} step 10" for seed in (0, 1)]
        values = [
            row["value"]
            for row in report["rows"]
            if row["model"] in models and (row["protocol"], row["features"]) == ("knn_20", figure["features"])
        ]
        assert (figure["models"], figure["num_seeds"], figure["mean"]) == (models, 2, pytest.approx(np.mean(values)))
    assert report["verdicts"][0].startswith("On d, over 2 seeds each, wide ")
    assert "over 2 seeds" not in report["verdicts"][1]
    assert report["models"][0]["record"]["seed"] == 0
    assert report["models"][-4]["record"] is None, "an export that stands alone"
    for name in ("report.html", "report.md"):
        assert "Over seeds" in (tmp_path / "out" / name).read_text()


def test_intervals_are_over_places_where_the_split_keeps_them_whole(
    tmp_path: Path, write_export, write_classes, write_masks
):
    """The five images of a place are one image, five times: intervals over images are too sure by √5."""
    classes, masks = write_classes(tmp_path / "c", num_images=40), write_masks(tmp_path / "m", num_images=24)
    files = {
        classes: [
            [f"class_{label}/image_{n}.png" for n in range(s, s + 5)] for label in range(3) for s in range(0, 40, 5)
        ],
        masks: [[f"{n}" for n in range(start, start + 2)] for start in range(0, 24, 2)],
    }
    models, data = [write_export(tmp_path / "e"), "floor:image_stats"], [f"c={classes}", f"m={masks}"]
    flags = ["--protocols", "knn", "few_shot", "segmentation", "--test_share", "0.5"]
    for folder, groups in files.items():
        (folder / "groups.txt").write_text("".join(f"{' '.join(group)}\n" for group in groups))
    for first, *others in files[classes]:
        for other in others:
            (classes / other).write_bytes((classes / first).read_bytes())
    report = run_eval(models, data, tmp_path / "out", *flags)
    assert [data["test_places"] for data in report["data"]] == [12, 6]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "of c, over its 12 test places, of m, over its 6 test places" in page
    text = (tmp_path / "out" / "report.md").read_text()
    assert re.findall("^Data .* (intervals over its .* test places)", text, re.M) == [
        f"intervals over its {number} test places" for number in (12, 6)
    ]
    # The splits as given ones, without the places: the same test images and figures, narrower intervals.
    for name, folder in (("c", classes), ("m", masks)):
        (folder / "groups.txt").unlink()
        lines = (tmp_path / "out" / "splits" / f"{name}.tsv").read_text().splitlines()
        (folder / "split.tsv").write_text("".join(line.rsplit("\t", 1)[0] + "\n" for line in lines))
    plain = run_eval(models, data, tmp_path / "plain", *flags)
    assert not any("test_places" in data for data in plain["data"])
    assert [row["value"] for row in plain["rows"]] == [row["value"] for row in report["rows"]]
    widths = [
        [row["high"] - row["low"] for row in one["rows"] if row["protocol"].startswith("knn")]
        for one in (report, plain)
    ]
    assert 1.5 < np.median(np.divide(*widths)) < 4
    # Published with its third column, the split tells its places again.
    for name, folder in (("c", classes), ("m", masks)):
        (folder / "split.tsv").write_bytes((tmp_path / "out" / "splits" / f"{name}.tsv").read_bytes())
    again = run_eval(models, data, tmp_path / "again", *flags)
    assert [row["low"] for row in again["rows"]] == [row["low"] for row in report["rows"]]
    assert [data["split_digest"] for data in again["data"]] == [data["split_digest"] for data in report["data"]]


def test_redo_repeats_with_equal_figures(tmp_path: Path, write_classes):
    data = [f"d={write_classes(tmp_path / 'd')}"]
    first = run_eval(["floor:image_stats"], data, tmp_path / "out")
    again = run_eval(["floor:image_stats"], data, tmp_path / "out", "--redo")
    assert [row["value"] for row in again["rows"]] == [row["value"] for row in first["rows"]]
    assert [row["seconds"] for row in again["rows"]] != [row["seconds"] for row in first["rows"]]


def test_a_corrupt_image_is_in_the_report(tmp_path: Path, write_classes):
    root = write_classes(tmp_path / "d", num_images=40)
    (root / "class_1" / "image_5.png").write_bytes(b"no image")
    report = run_eval(["floor:image_stats"], [f"d={root}"], tmp_path / "out", "--floors", "false")
    assert [item["path"] for item in report["data"][0]["rejected"]] == ["class_1/image_5.png"]
    assert "class_1/image_5.png" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("normalisation", ["model", "dataset"])
def test_values_that_are_missing_stop_nothing_and_are_told(
    tmp_path: Path, write_export, write_floats, capsys, normalisation
):
    data = write_floats(tmp_path / "d", {f"dry/{number}.tif": np.nan for number in range(3)} | {"wet/5.tif": np.inf})
    export, flags = write_export(tmp_path / "e", dtype="float32"), ("--normalisation", normalisation)
    for protocols in ("knn", "linear"):  # the first computes, the second goes on from the cache
        report = run_eval([export], [f"d={data}"], tmp_path / "out", "--protocols", protocols, *flags)
        assert report["data"][0]["images_with_missing_values"] == 4
        assert report["data"][0]["rejected"] == []
        assert "d: in 4 images some values are NaN or infinite" in " ".join(capsys.readouterr().out.split())
    assert "Images with missing values" in (tmp_path / "out" / "report.html").read_text()
    assert "4 with values that are NaN or infinite" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "d"], "not name=PATH"),
        (["--data", "d=/nowhere/at/all"], "does not exist"),
        (["--models", "/nowhere/at/all"], "does not exist"),
        (["--num_draws", "10"], "below 1000"),
        (["--test_share", "1.5"], "between 0 and 1"),
        (["--colour", "red"], "colour"),
        (["--protocols", "knnn"], "knnn does not exist"),
        (["--protocols", "change"], "none for d, data of classes"),
        (["--split", "given"], "without a split"),
        (["--poll_s", "0"], "not above 0"),
        (["--models", "official:/nowhere/at/all.pth"], "does not exist"),
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
    report = run_eval(["floor:image_stats"], data, tmp_path / "out", "--floors", "false")
    values = {row["protocol"]: row["value"] for row in report["rows"]}
    assert 0.68 < values["knn_20"] < 0.8
    assert 0.6 < values["linear"] < 0.8
