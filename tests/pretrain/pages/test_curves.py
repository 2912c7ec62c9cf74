"""The curve page: complete, self-contained, small, and drawn from whatever rows there are."""

import json
import math
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.config import Config
from pretrain.pages.curves import main, render, write_curves
from pretrain.training.loop import train
from shards.cli import parse_config
from shards.errors import UserError
from tests.page_reader import read_page

CONFIG = {
    "data": "s3://bucket/tiles",
    "model": {"image_px": 64, "patch_px": 8, "width": 128, "depth": 6},
    "views": {"num_global": 2, "num_local": 4, "local_px": 32},
    "head": {"prototypes": 1024},
    "loader": {"batch": 32},
    "schedule": {"length": "20 epochs"},
}
RECORD = {"digests": ["feed"], "dataset_versions": [3], "mean": [0.5], "std": [0.2], "versions": {"torch": "2.14"}}
HOSTILE = "<img src=x onerror=alert(1)>$name ${digest}&amp;"


def rows(count, **changes):
    return [
        {"step": 10 * n, "samples": 320 * n, "epoch": n / 4, "loss": 8 / n, "teacher_entropy": 3.0 + n / count}
        | {"samples_per_s": 32.0, "data_wait_share": 0.125, "gets": 0, **changes}
        for n in range(1, count + 1)
    ]


def titles(page_text):
    return [part.split('"')[0] for part in page_text.split('aria-label="')[1:]]


def test_says_what_the_run_is_and_how_it_stands():
    text = render(rows(40), CONFIG, RECORD, run="runs/my run", exports=[200, 400])
    page = read_page(text)
    for told in [
        "PerA: ViT 128 × 6, patch 8 px, on s3://bucket/tiles. 40 rows of metrics, the last at step 400.",
        "Steps 400 of 800",
        "Samples 12,800",
        "Time of these steps 6.7 min",
        "Waiting for data, median 12.5 %",
        "Crops 2 × 64² + 4 × 32²",
        "ln 1,024 = 6.93",
        "loss 0.2 8 0.2 8 the total that is minimised",
        "The same in all rows: gets 0.",
        "python -m pretrain curves --run 'runs/my run'",
        "s3://bucket/tiles 3 feed",
        "head.prototypes 1024",
        "torch 2.14",
    ]:
        assert told in page.text, told
    files = ("model.safetensors", "model.json", "config.json")
    assert page.links() == [f"exports/step_{step:08d}/{file}" for step in (200, 400) for file in files]
    assert "Alarms" not in page.text
    assert titles(text) == ["Loss", "Entropy of the teacher, nats", "Samples per second", "Waiting for data"]


def test_the_command_that_goes_on_leaves_max_steps(tiny):
    stopped = replace(tiny, max_steps=2)
    train(stopped)
    page = read_page(Path(write_curves(tiny.run)).read_text())
    command = f"--config {tiny.run}/config.yaml --max_steps null"
    assert f"python -m pretrain {command}" in page.text
    assert parse_config("pretrain", "", Config, shlex.split(command)) == tiny
    assert "--max_steps" not in read_page(render(rows(1), CONFIG, RECORD)).text


def test_one_row_is_enough():
    page = read_page(render(rows(1), {}, {}, exports=[]))
    assert "1 row of metrics, the last at step 10." in page.text
    assert "None yet: every checkpoint has one." in page.text
    assert sum(tag == "circle" for tag, _ in page.elements) == 4


def test_unknown_figures_are_drawn_and_hostile_names_stay_text():
    told = [row | {HOSTILE: n, "new": n, "same": 7, "text": HOSTILE} for n, row in enumerate(rows(3))]
    text = render(told, CONFIG | {"data": HOSTILE}, RECORD | {"versions": {HOSTILE: HOSTILE}}, run=HOSTILE)
    page = read_page(text.replace("https", ""))
    assert "img" not in {tag for tag, _ in page.elements}
    assert page.text.count(HOSTILE) >= 6
    assert "Others The same in all rows: same 7." in page.text
    assert "new" in titles(text)


def test_what_is_no_number_is_left_out():
    told = rows(4)
    told[1] |= {"loss": math.nan, "lr": None}
    told[2] |= {"loss": math.inf, "samples_per_s": math.nan}
    text = render(told, CONFIG, RECORD)
    read_page(text)
    assert "nan" not in text.lower().replace("nanosecond", "")
    assert ">inf" not in text
    assert "Learning rate" not in titles(text)


def test_alarms_are_told_first_and_together():
    told = rows(9)
    for n in (2, 3, 4):
        told[n]["alarm"] = "entropy near ln K <6.93>"
    told[7]["alarm"] = ["features alike", "rank 1"]
    text = render(told, CONFIG, RECORD)
    page = read_page(text)
    assert "Alarms steps 30 … 50, 3 rows : entropy near ln K <6.93> step 80 : features alike; rank 1" in page.text
    assert text.index("Alarms") < text.index("Losses")
    many = [row | {"alarm": f"alarm {n}"} for n, row in enumerate(rows(50))]
    assert "30 more, the last at step 500" in read_page(render(many, CONFIG, RECORD)).text


def test_numbers_of_symptoms_are_explained():
    signs = {"global_cls": 1.0, "local_cls": 1.0, "teacher_diversity": 0.05, "feature_spread": 0.5, "feature_rank": 9.0}
    told = [row | {"teacher_entropy": 2.0, "alarm": int(n > 4)} | signs for n, row in enumerate(rows(8))]
    text = render(told, CONFIG, RECORD)
    page = read_page(text)
    assert "Alarms steps 60 … 80, 3 rows : the teacher puts all images on one prototype" in page.text
    assert "Alarms" in titles(text)
    assert "2 symptoms of a collapse" in render([row | {"alarm": 2} for row in rows(8)], CONFIG, RECORD)
    calm = render([row | {"alarm": 0} for row in rows(8)], CONFIG, RECORD)
    assert "The same in all rows: alarm 0." in calm
    assert "<h2>Alarms" not in calm


def test_long_runs_have_small_pages():
    text = render(rows(20_000), CONFIG, RECORD)
    page = read_page(text)
    assert len(text) < 200_000
    assert "the band their lowest and highest" in page.text
    lines = [attrs["d"] for tag, attrs in page.elements if tag == "path" and attrs["class"].startswith("curve ")]
    assert all(len(line.split("L")) <= 500 for line in lines)


def test_a_run_gets_its_page(tiny, capsys):
    train(tiny)
    assert main(["--run", tiny.run]) == 0
    assert capsys.readouterr().out == f"wrote {tiny.run}/curves.html\n"
    before = Path(tiny.run, "curves.html").read_bytes()
    page = read_page(before.decode())
    assert "Steps 6 of 6" in page.text
    record = json.loads(Path(tiny.run, "run.json").read_bytes())
    assert record["digests"][0] in page.text
    assert all(Path(tiny.run, link).is_file() for link in page.links())
    assert len(page.links()) == 3 * 3
    assert Path(write_curves(tiny.run)).read_bytes() == before


def test_wrong_use_is_told(tmp_path):
    with pytest.raises(UserError, match=r"nowhere holds no run: give the folder"):
        write_curves(str(tmp_path / "nowhere"))
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    (run / "config.yaml").write_text("{}")
    with pytest.raises(UserError, match=r"no metrics yet"):
        write_curves(str(run))
    with pytest.raises(UserError, match=r"rum"):
        main(["--rum", "x"])
