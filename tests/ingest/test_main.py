"""The command line of ingest, as users and scripts meet it."""

import re

import pytest

import ingest.rebuild
import ingest.run
from ingest.__main__ import main
from ingest.pack import NotDeterministicError
from shards.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text/file").write_text("x")
    (tmp_path / "bad.yaml").write_text("tile_pixels: 64\n")
    (tmp_path / "null.yaml").write_text("tile_px: null\n")
    return tmp_path


def placed(folder, arguments):
    """Return arguments with the names of places below a folder made absolute."""
    places = {"missing", "empty", "text", "out", "text/out", "bad.yaml", "null.yaml"}
    return [str(folder / word) if word in places else word for word in arguments]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--scenes", "missing", "--out", "out"], "missing does not exist"),
        (["--scenes", "empty", "--out", "out"], "no scenes found: .*empty holds no files"),
        (["--scenes", "text", "--out", "text/out"], "lies inside --scenes"),
        (["--scenes", "text"], "out"),
        (["--scenes", "text", "--out", "out", "--tile_px", "5"], "tile_px is 5"),
        (["--scenes", "text", "--out", "out", "--tile_size", "64"], "tile_size"),
        (["--scenes", "text", "--out", "out", "--config", "bad.yaml"], "tile_pixels"),
        (["--scenes", "text", "--out", "bad.yaml"], "cannot be a folder: .*bad.yaml is a file"),
        (["--scenes", "text", "--out", "out", "--config", "null.yaml"], "tile_px is null"),
        (["--scenes", "text", "--out", "out", "--max_scene_gb", ".inf"], "max_scene_gb is inf"),
        (["--scenes", "text", "--out", "out", "--seed", "9" * 40], "seed is 9999"),
        (["--scenes", "text", "--out", "out", "--address", "127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1"),
        (["--scenes", "", "--out", "out"], "an empty path was given"),
        (["--scenes", "s3://", "--out", "out"], "names no bucket"),
    ],
)
def test_wrong_use_is_one_line_and_nothing_is_written(folder, arguments, expected):
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=expected) as caught:
        main(placed(folder, arguments))
    assert "\n" not in str(caught.value)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("arguments", [["--scenes", "text"], ["--rebuild", "text"]])
def test_other_bytes_than_before_are_one_line_and_end_with_1(folder, monkeypatch, capsys, arguments):
    def fail(config):
        raise NotDeterministicError("group x gave other bytes")

    monkeypatch.setattr(ingest.run, "ingest", fail)
    monkeypatch.setattr(ingest.rebuild, "rebuild", fail)
    assert main(placed(folder, [*arguments, "--out", "out"])) == 1
    assert capsys.readouterr().err == "ingest: group x gave other bytes\n"


@pytest.mark.parametrize("arguments", [["--scenes", "missing", "--out", "out"], ["--scenes", "text", "--tile_px", "5"]])
def test_wrong_use_ends_with_2(folder, run_stage, arguments):
    result = run_stage("ingest", *placed(folder, arguments))
    assert result.returncode == 2
    assert re.fullmatch(r"ingest: error: .+\n", result.stderr)


def test_help_says_from_where_a_cluster_is_reached_and_what_its_machines_need(run_stage):
    told = " ".join(run_stage("ingest", "--help").stdout.split())
    told = told[told.index("An existing Ray cluster") :]
    for words in ("HOST:PORT of its head, from one of its machines", "ray://HOST:10001 from any other", "AWS_…"):
        assert words in told[:500]
