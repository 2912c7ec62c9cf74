import pytest


def test_help_is_quick_and_names_the_options(run_stage):
    result = run_stage("pretrain", "--help", check=True)
    assert "--model.patch_px" in result.stdout
    assert "loader.workers" in result.stdout


def test_a_run_ends_with_what_was_made_and_what_to_do_next(run_stage, data_url, tmp_path):
    run = tmp_path / "run"
    arguments = ["--data", data_url, "--run", run, "--max_steps", "2", "--loader.batch", "4"]
    arguments += [
        "--model.image_px",
        "32",
        "--views.local_px",
        "16",
        "--model.width",
        "48",
        "--model.depth",
        "2",
    ]
    result = run_stage("pretrain", *arguments, check=True)
    assert f"export: {run}/exports/step_00000002" in result.stdout
    assert f"make eval RUN={run}" in result.stdout
    again = run_stage("pretrain", *arguments, check=True)
    assert "finished" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.dept", "3"], "dept"),
        (["--loader.batch", "1"], "KoLeo"),
        (["--seed", "many"], "seed"),
        (["--bands", "[nir]"], "nir"),
        (["--model.image_px", "448"], "448"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(run_stage, data_url, tmp_path, arguments, message):
    run = tmp_path / "run"
    result = run_stage("pretrain", "--data", data_url, "--run", run, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not run.exists()
