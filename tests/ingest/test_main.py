"""The command line of ingest, as users and scripts meet it."""

import pytest


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--scenes", "missing", "--out", "out"], "missing does not exist"),
        (["--scenes", "empty", "--out", "out"], "no scenes found: .*empty holds no files"),
        (["--scenes", "text", "--out", "out"], "none of the 1 files in .*text can be used: 1 not_a_raster"),
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
def test_wrong_use_is_one_line_exit_2_and_nothing_written(tmp_path, run_stage, arguments, expected):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text/file").write_text("x")
    (tmp_path / "bad.yaml").write_text("tile_pixels: 64\n")
    (tmp_path / "null.yaml").write_text("tile_px: null\n")
    before = sorted(tmp_path.rglob("*"))
    places = {"missing", "empty", "text", "out", "text/out", "bad.yaml", "null.yaml"}
    absolute = [str(tmp_path / word) if word in places else word for word in arguments]
    result = run_stage("ingest", *absolute)
    assert result.returncode == 2
    errors = [line for line in result.stderr.splitlines() if not line.startswith("probe: ")]
    assert len(errors) == 1, result.stderr
    assert errors[0].startswith("ingest: error: ")
    import re

    assert re.search(expected, errors[0])
    assert sorted(tmp_path.rglob("*")) == before
