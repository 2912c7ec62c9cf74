from pathlib import Path

import pytest
import torch

from eval.models.model import RGB, timm_model
from eval.models.resolve import resolve_models
from shards.errors import UserError

CPU = torch.device("cpu")


def _resolve(*words, floors=False, tell=lambda line: None):
    return resolve_models([str(word) for word in words], floors, CPU, tell)


def test_floors_come_last_and_random_init_has_the_export_s_shape(tmp_path: Path, write_export):
    candidates = _resolve("floor:image_stats", write_export(tmp_path / "e"), floors=True)
    names = ["e step 100", "floor:image_stats", "floor:random_init", "floor:random_conv"]
    assert [candidate.name for candidate in candidates] == names
    assert [candidate.is_floor for candidate in candidates] == [False, True, True, True]
    models = [candidate.load() for candidate in candidates]
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    trained, fresh = (models[place].embed(images).pooled["cls"] for place in (0, 2))
    assert trained.shape == fresh.shape
    assert not torch.equal(trained, fresh)
    again = _resolve(tmp_path / "e", "floor:random_init")[1].load()
    assert torch.equal(again.embed(images).pooled["cls"], fresh)
    assert again.digest == models[2].digest != models[0].digest
    assert models[0].patch_px == 8


def test_all_exports_of_a_run_are_loaded_one_at_a_time(tmp_path: Path, write_export):
    run = tmp_path / "run"
    for step in (20, 100, 90):
        write_export(run / "exports" / f"step_{step:08d}", step=step)
    candidates = _resolve(f"{run}@all")
    assert [(c.name, c.step, c.samples_seen, c.run) for c in candidates] == [
        (f"run step {step}", step, 10 * step, str(run)) for step in (20, 90, 100)
    ]
    assert candidates[0].load() is not candidates[0].load(), "nothing is held"
    weights = run / "exports" / "step_00000090" / "model.safetensors"
    weights.write_bytes(b"?")
    assert candidates[1].may_fail
    with pytest.raises(UserError, match=r"step_00000090/model\.safetensors is corrupt"):
        candidates[1].load()


def test_what_two_words_mean_is_taken_once(tmp_path: Path, write_export):
    run = tmp_path / "run"
    for step in (1, 2):
        write_export(run / "exports" / f"step_{step:08d}", step=step)
    assert [c.step for c in _resolve(run, f"{run}@1", f"{run}@2", f"{run}/exports/step_00000002")] == [2, 1]


def test_a_damaged_newest_export_is_passed_over_and_told(tmp_path: Path, write_export):
    run = tmp_path / "run"
    for step in (1, 2):
        write_export(run / "exports" / f"step_{step:08d}", step=step)
    (run / "exports" / "step_00000002" / "model.safetensors").write_bytes(b"?")
    told: list[str] = []
    assert [c.step for c in _resolve(run, tell=told.append)] == [1]
    assert len(told) == 1
    assert "step_00000002/model.safetensors is corrupt" in told[0]


def _named(*words):
    return [(candidate.name, candidate.run_name) for candidate in _resolve(*words)]


def test_runs_of_one_folder_name_are_called_by_what_tells_them_apart(tmp_path: Path, write_export):
    """Whatever their steps, and a folder that stands alone is no run, but is told from them, too."""
    for side, steps in (("a", (1, 2)), ("b", (2, 3)), ("c", (7,))):
        for step in steps:
            write_export(tmp_path / side / "run" / "exports" / f"step_{step:08d}", step=step)
    a, b, c = (tmp_path / side / "run" for side in "abc")
    alone = write_export(tmp_path / "alone" / "run", step=3)
    assert _named(c, c / "exports" / "step_00000007") == [("run step 7", "run")]
    assert _named(f"{a}@1", f"{b}@3") == [("a/run step 1", "a/run"), ("b/run step 3", "b/run")]
    assert _named(f"{a}@all", f"{b}@all", f"{b}@2") == [
        ("a/run step 1", "a/run"), ("a/run step 2", "a/run"), ("b/run step 2", "b/run"), ("b/run step 3", "b/run"),
    ]  # fmt: skip
    assert _named(b, alone) == [("b/run step 3", "b/run"), ("alone/run step 3", None)]


def test_exports_of_one_run_and_step_are_called_by_their_folders(tmp_path: Path, write_export):
    words = [str(write_export(tmp_path / "run" / "exports" / name)) for name in ("step_00000100", "again_100")]
    assert _named(*words) == [(word, "run") for word in words]


def test_runs_of_one_folder_name_in_a_bucket(tmp_path: Path, write_export, object_store: str):
    from shards import storage

    folder = write_export(tmp_path / "e")
    for side in "ab":
        for file in folder.iterdir():
            url = f"{object_store}/eval-runs/{side}/run/exports/step_00000100/{file.name}"
            storage.write_bytes(url, file.read_bytes())
    runs = [f"{object_store}/eval-runs/{side}/run/" for side in "ab"]
    found = [(candidate.name, candidate.run) for candidate in _resolve(*runs)]
    assert found == [(f"{side}/run step 100", run.rstrip("/")) for side, run in zip("ab", runs, strict=True)]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("floor:random_init", "add one, or name a timm architecture"),
        ("floor:cellar", "floor:cellar does not exist"),
        ("timm:vit_of_nobody", "has no model 'vit_of_nobody'"),
        ("floor:random_init=vit_of_nobody", "has no model"),
        ("official:/nowhere.pth", "nowhere.pth does not exist"),
    ],
)
def test_unknown_names(word, message):
    with pytest.raises(UserError, match=message):
        _resolve(word)


def test_timm_weights_are_never_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="not on disk and nothing is downloaded"):
        timm_model("vit_tiny_patch16_224", CPU)


def test_random_init_of_a_timm_architecture():
    candidate = _resolve("floor:random_init=resnet18")[0]
    assert (candidate.is_floor, candidate.bands, candidate.dtype) == (True, RGB, "uint8")
    images = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    assert candidate.load().embed(images).pooled["pooled"].shape == (1, 512)
