"""The page of samples: complete, self-contained, with and without a run; wrong use is one line."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from pretrain.pages.show import ShowConfig, main
from pretrain.training.loop import train
from shards.errors import UserError
from tests.page_reader import read_page

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def config_file(tiny, tmp_path):
    path = tmp_path / "config.yaml"
    settings = yaml.safe_load(yaml.safe_dump({**asdict(tiny), "mix": [], "bands": None}).replace("!!python/tuple", ""))
    del settings["run"], settings["data"]
    path.write_text(yaml.safe_dump(settings))
    return str(path)


@pytest.mark.parametrize(("command", "option"), [("show", "--samples"), ("curves", "--run")])
def test_help_needs_no_torch(command, option):
    code = f"""
import sys
from pretrain.pages.{command} import main
try:
    main(["--help"])
finally:
    assert "torch" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert option in result.stdout


def captions(page):
    return [attrs["alt"] for tag, attrs in page.elements if tag == "img"]


def test_without_a_run_it_shows_what_goes_in(config_file, data_url, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert main(["--data", data_url, "--config", config_file, "--out", str(out), "--samples", "2"]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    page = read_page(out.read_text())
    for told in [
        "What training sees 2 samples of",
        "Global views 2 of 32 px",
        "Patch 8 × 8 × 3",
        "Bands red, green, blue",
        "cls of the student's patches of view i, i = G0, G1, L0, L1",
        "3 predicted patches of each global view, 192 values each",
        "Of a global view's 16 patches:",
        "student: 3 predicted by the student: 3 teacher: 10",
        "Of a local view: student 2, teacher 5; nobody gets 2 others.",
        "sample-0000",
    ]:
        assert told in page.text, told
    assert "Cross-entropy 0" not in page.text
    names = captions(page)
    # Per sample: the tile, five pictures of each global view, four of each local one.
    assert len(names) == 2 * (1 + 2 * 5 + 2 * 4)
    assert names.count("global 1: Teacher") == 2
    assert all(link.startswith("data:image/webp;base64,") for link in page.links())
    assert sum(tag == "rect" and attrs["class"] in ("global", "local") for tag, attrs in page.elements) == 2 * 4


def test_with_a_run_it_shows_what_the_checkpoint_makes_of_it(tiny, tmp_path):
    train(tiny)
    out = tmp_path / "page.html"
    assert main(["--run", tiny.run, "--out", str(out), "--samples", "3"]) == 0
    page = read_page(out.read_text())
    assert "What training sees, and what it makes of it 3 samples of" in page.text
    assert f"the checkpoint of {tiny.run} at step 6 makes of them" in page.text
    names = captions(page)
    assert names.count("global 0: Predicted") == 3
    assert names.count("global 1: The teacher's features of all patches") == 3
    assert page.text.count("the teacher's first choice, prototype") == 3 * 4
    first = out.read_bytes()
    assert main([f"--run={tiny.run}", "--out", str(out), "--samples", "3"]) == 0
    assert out.read_bytes() == first


def test_without_a_teacher_nobody_is_compared_with_it(config_file, data_url, tmp_path):
    out = tmp_path / "page.html"
    arguments = ["--data", data_url, "--config", config_file, "--out", str(out), "--samples", "1"]
    assert main([*arguments, "--views.num_local", "0", "--loss.cls", "0", "--masks.independent", "true"]) == 0
    text = read_page(out.read_text()).text
    assert "Pairs 0" in text
    assert "teacher: 0" in text
    assert "Pixel loss" in text
    assert not [told for told in ("Cross-entropy", "0 pairs", "drawn on their own") if told in text]


def test_no_local_views_are_fine(config_file, data_url, tmp_path):
    out = tmp_path / "page.html"
    arguments = ["--data", data_url, "--config", config_file, "--out", str(out), "--views.num_local", "0"]
    assert main([*arguments, "--samples", "1", "--step", "2"]) == 0
    page = read_page(out.read_text())
    assert "Local views none" in page.text
    assert len(captions(page)) == 1 + 2 * 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--data": "nowhere"}, r"nowhere.*"),
        ({"--out": "{tmp}/none/page.html"}, r"there is no folder .*/none"),
        ({"--out": "{tmp}"}, r"is a folder: name a file"),
        ({"--samples": "11"}, r"samples 11 is outside 1…10"),
        ({"--step": "-1"}, r"step -1 is negative"),
        ({"--bands": "[infrared]"}, r"has no band infrared"),
        ({"--run": "{tmp}/none"}, r"none holds no run: give the folder"),
        ({"--config": "nowhere.yaml"}, r"nowhere.yaml"),
    ],
)
def test_wrong_use_is_one_line(config_file, data_url, tmp_path, changes, message):
    options = {"--data": data_url, "--config": config_file, "--out": str(tmp_path / "page.html")}
    options |= {name: value.format(tmp=tmp_path) for name, value in changes.items()}
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=message) as caught:
        main([part for option in options.items() for part in option])
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_run_that_is_not_there_is_told_and_not_options_that_it_would_have(tmp_path):
    out = str(tmp_path / "page.html")
    for arguments in (["--run", str(tmp_path / "nowhere")], [f"--run={tmp_path / 'nowhere'}"]):
        with pytest.raises(UserError, match=r"nowhere holds no run: give the folder"):
            main([*arguments, "--out", out])
    with pytest.raises(UserError, match=r"--run.* expected one argument"):
        main(["--run", "--out", out])


def test_a_run_that_cannot_be_shown_is_told(tiny, variant, tmp_path):
    train(tiny)
    out = str(tmp_path / "page.html")
    with pytest.raises(UserError, match=r"model\.depth 2 -> 4"):
        main(["--run", tiny.run, "--out", out, "--model.depth", "4"])
    for path in Path(tiny.run, "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"has no checkpoint yet: wait for its first, or leave --run"):
        main(["--run", tiny.run, "--out", out])


def test_a_damaged_sample_is_told(write_dataset, config_file, tmp_path):
    url = write_dataset(str(tmp_path / "data"))
    for shard in Path(url, "shards").iterdir():
        shard.write_bytes(b"\0" * shard.stat().st_size)
    with pytest.raises(UserError, match=r"restore its shard, or show others with --step"):
        main(["--data", url, "--config", config_file, "--out", str(tmp_path / "page.html")])


def test_the_shown_training_is_the_configured_one(tiny):
    show = ShowConfig(**{**vars(tiny), "out": "page.html", "samples": 2})
    assert show.training() == tiny
