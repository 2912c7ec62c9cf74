"""A report as an evaluation gives it, of fixed draws: scenes, segmentation, change, and a run at several steps."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.protocols.task import Picture
from eval.report.pictures import figures

FLOORS = ("floor:random_init", "floor:image_stats", "floor:random_conv")
SCENES = ("linear", "knn_5", "knn_20", "knn_20_weighted", "few_shot_knn_5", "few_shot_linear_5", "retrieval_map")
BASE = {"pera-s step 40000": 0.9, "pera-s step 20000": 0.85, "pera-s step 10000": 0.75, "timm:vit_small": 0.89}
FEATURES = ("cls", "patch_mean", "cls+mean")


@pytest.fixture
def report() -> dict[str, Any]:
    """A whole report: every key there is, several tasks, 45 classes in one data set."""
    return _report()


@pytest.fixture
def make_report():
    """Make a whole report whose names and texts all have something added that users might write."""
    return _report


def _report(hostile: str = "") -> dict[str, Any]:
    """Return a report; `hostile` is added to every name and text that users write."""
    draw = np.random.default_rng(7)
    classes = {
        "eurosat": [f"Class {n}{hostile}" for n in ("Annual crop", "Forest", "Highway", "Industrial", "River", "Sea")],
        "resisc45": [f"scene_{n:02d}" for n in range(45)],
        "loveda": ["background", "building", "road", "water", "barren", "forest", "agriculture"],
        "levir": ["unchanged", "changed"],
    }
    models = {name + hostile: value for name, value in BASE.items()} | dict.fromkeys(FLOORS, 0.6)
    rows = [
        row
        for data, names in classes.items()
        for number, (model, level) in enumerate(models.items())
        for row in _rows(draw, data, names, model, level - 0.05 * (model in FLOORS) * number)
    ]
    shown = [model for model in models if model not in FLOORS]
    return {
        "format": "pera-eval",
        "format_version": 1,
        "command": f"python -m eval --models run timm:vit_small{hostile} --data eurosat=/data/eurosat --out report",
        "config": {"models": ["run"], "num_draws": 2000, "seed": 0, "note": hostile, "split": {"kind": "spatial"}},
        "hardware": f"AMD EPYC 7B13, 2 cores{hostile}",
        "versions": {"python": "3.11.9", "torch": "2.9.1", "timm": "1.0.22"},
        "started": "2026-11-25T20:00:00Z",
        "seconds": 1234.5,
        "models": [_model(model, hostile) for model in models],
        "data": [_data(name, names, hostile) for name, names in classes.items()],
        "rows": rows,
        "comparisons": _comparisons(rows, set(shown)),
        "verdicts": [f"On eurosat, pera-s step 40000{hostile} is better than floor:image_stats: +29.1 points."],
        "confusions": [
            _confusion(draw, data, classes[data], model) for data in ("eurosat", "resisc45") for model in shown
        ],
        "costs": [
            {"model": model, "data": data, "images_per_s": 41.5 + len(model), "memory_bytes": 900 << 20}
            for model in models
            for data in classes
        ],
        "pictures": _pictures(draw, shown, hostile),
    }


def _rows(draw, data, classes, model, level) -> Iterator[dict[str, Any]]:
    tasks = {"loveda": ("semantic segmentation", ("segment_linear", "segment_conv"), "miou"),
             "levir": ("change detection", ("change_difference_f1", "change_concat_f1"), "f1")}  # fmt: skip
    task, protocols, metric = tasks.get(data, ("scene classification", SCENES, "accuracy"))
    for protocol in protocols:
        for features in ("stats",) if model in FLOORS[1:] else FEATURES if task.startswith("scene") else ("patches",):
            value = float(np.clip(level + draw.normal(0, 0.02), 0.02, 0.99))
            detail: dict[str, Any] = {"validation": value - 0.01}
            if protocol != "retrieval_map":
                detail["per_class"] = {name: float(np.clip(value + draw.normal(0, 0.1), 0, 1)) for name in classes}
                detail["per_class"][classes[-1]] = None if data == "loveda" else value
            step = int(model.split("step ")[1][:5]) if "step" in model else None
            yield {
                "task": task, "data": data, "model": model, "protocol": protocol, "features": features,
                "chosen": features in ("stats", "patch_mean", "patches"),
                "metric": "average_precision" if protocol == "retrieval_map" else metric,
                "value": value, "low": max(0.0, value - 0.02), "high": min(1.0, value + 0.018),
                "num_train": 4320, "num_test": 1080, "seconds": 1.5, "detail": detail,
                "step": step, "samples_seen": step and step * 512,
            }  # fmt: skip


def _comparisons(rows, backbones) -> list[dict[str, Any]]:
    found, before = [], list(dict.fromkeys(row["model"] for row in rows))
    for row in rows:
        if row["model"] not in backbones:
            continue
        for other in rows:
            same = all(row[name] == other[name] for name in ("data", "protocol"))
            is_counterpart = other["features"] in (row["features"], "stats")
            is_before = other["model"] in FLOORS or before.index(other["model"]) < before.index(row["model"])
            if same and is_counterpart and is_before:
                value = row["value"] - other["value"]
                low, high = value - 0.02, value + 0.02
                found.append({
                    **{name: row[name] for name in ("data", "protocol", "model", "features")},
                    "other": other["model"], "other_features": other["features"],
                    "other_is_floor": other["model"] in FLOORS, "value": value, "low": low, "high": high,
                    "verdict": "better" if low > 0 else "worse" if high < 0 else "no difference",
                })  # fmt: skip
    return found


def _confusion(draw, data, classes, model) -> dict[str, Any]:
    mistaken = draw.dirichlet(np.full(len(classes), 0.1), len(classes))
    counts = draw.multinomial(24, 0.8 * np.eye(len(classes)) + 0.2 * mistaken)
    return {"data": data, "model": model, "protocol": "linear", "features": "cls", "classes": classes,
            "counts": counts.tolist()}  # fmt: skip


def _model(name: str, hostile: str) -> dict[str, Any]:
    kind = "floor" if name in FLOORS else "export" if "step" in name else "timm"
    step = int(name.split("step ")[1][:5]) if kind == "export" else None
    return {
        "run": "/runs/pera-s" if step else None, "run_name": f"pera-s{hostile}" if step else None,
        "step": step, "samples_seen": step and 512 * step,
        "training": step and {"samples_per_s": 1234.5, "memory_bytes": (step + 777) << 20},
        "mean": None if kind == "floor" else [0.485, 0.456, 0.406],
        "std": None if kind == "floor" else [0.229, 0.224, 0.225],
        "name": name, "kind": kind, "digest": hashlib.sha256(name.encode()).hexdigest(),
        "image_px": None if kind == "floor" else 224, "bands": ["red", "green", "blue"], "dtype": "uint8",
        "description": f"ViT 384 × 12, patch 16 px, of {kind}{hostile}",
    }  # fmt: skip


def _data(name: str, classes: list[str], hostile: str) -> dict[str, Any]:
    return {
        "name": name, "url": f"/data/{name}{hostile}", "digest": "ab" * 32, "split_digest": "cd" * 32,
        "classes": classes, "num_images": 5400, "bands": ["red", "green", "blue"], "dtype": "uint8", "split": "spatial",
        "rejected": [{"path": f"Forest/bad{hostile}.png", "reason": "truncated"}] if name == "eurosat" else [],
    }  # fmt: skip


def _pictures(draw, models, hostile) -> list[dict[str, str]]:
    found = []
    for model in (models[0], models[1], models[3]):
        for data, protocol in (("eurosat", "pca"), ("eurosat", "retrieval_map"), ("loveda", "segment_linear")):
            for number in range(2):
                pixels = np.kron(draw.integers(0, 255, (7, 28, 3)), np.ones((32, 32, 1))).astype(np.uint8)
                picture = Picture(caption=f"image, truth, prediction {number}{hostile}", pixels=pixels)
                found.append(figures(data, model, protocol, picture))
    return found


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium that keeps its console."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1600"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture
def opened(browser, tmp_path: Path, report):
    """The page of `report`, opened from a file."""
    from eval.report.page import write_report

    write_report(report, str(tmp_path))
    browser.get((tmp_path / "report.html").as_uri())
    return browser
