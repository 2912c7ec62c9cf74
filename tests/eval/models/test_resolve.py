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


def test_models_of_one_name_are_told_apart(tmp_path: Path, write_export):
    words = [str(write_export(tmp_path / side / "run" / "exports" / "step_00000100")) for side in "ab"]
    assert [candidate.name for candidate in _resolve(*words)] == words


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
