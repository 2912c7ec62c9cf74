"""What an evaluation costs on a CPU: `python -m tests.bench.eval [features] [knn] [bootstrap]`, all parts by default.

- features: images/s of `eval.features.extract` from class folders of JPEG files (reading, decoding, resizing, forward
  pass, pooling) as a share of a bare loop of the same timm network over batches that are decoded already: 0.9 or more.
  For a small ViT on images of 64² and for ViT-S/16 on images of 256² that it sees at 224².
- knn: 10,000 queries against a bank of 100,000 × 384 features, three votes, in a process of its own: below 10 s and
  2 GB, features included; and against the matrix product alone.
- bootstrap: the share of intervals and paired comparisons in the time of a whole evaluation whose features are in the
  cache, by k-NN and retrieval, the quickest protocols: they must not be most of it.

What is compared takes turns, and a ratio is the median of those of neighbours in time. Nothing fails for its speed.
Some 6 minutes on 2 cores.
"""

import hashlib
import io
import json
import multiprocessing
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import timm
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save

from eval import evaluate as evaluation
from eval import summary
from eval.config import EvalConfig
from eval.data.kinds import LabelledData
from eval.data.resolve import open_data
from eval.features import Work, extract, model_input
from eval.models.model import Model, embedder, normaliser
from eval.models.pooling import cell_px

_ROUNDS, _LONG_ROUNDS, _BATCH, _WORKERS = 5, 3, 64, 2
_ASKED_OF_LOOP, _ASKED_S, _ASKED_GB, _ASKED_SHARE = 0.9, 10, 2, 0.5
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SMALL = {"img_size": 64, "patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3}
_BANK, _QUERIES, _WIDTH, _CLASSES = 100_000, 10_000, 384, 45


def main() -> None:
    """Run the chosen parts."""
    parts = {"features": print_features, "knn": print_knn, "bootstrap": print_bootstrap}
    chosen = sys.argv[1:] or list(parts)
    unknown = [name for name in chosen if name not in parts]
    if unknown:
        raise SystemExit(f"no such part: {', '.join(unknown)}; choose from {', '.join(parts)}")
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            parts[name](Path(folder))


def print_features(folder: Path) -> None:
    """Let the extraction from files and the bare loop take turns."""
    title = f"Features, {torch.get_num_threads()} threads"
    print(f"{title:34}{'bare/s':>10}{'ours/s':>10}{'ours/bare':>11}{'asked':>9}")
    for title, name, arguments, image_px, number in [
        ("ViT 192 × 6, patch 8, at 64²", "vit_tiny_patch16_224", _SMALL, 64, 1024),
        ("ViT-S/16 at 224² of 256²", "vit_small_patch16_224", {}, 256, 128),
    ]:
        model = make_model(name, arguments)
        data = open_data("d", str(write_classes(folder / title, image_px, number)), _WORKERS)
        bare, ours, ratio = race(_bare_loop(model, data), lambda m=model, d=data: _extract(m, d))
        rates = f"{number / bare:>10.1f}{number / ours:>10.1f}"
        print(f"{title:34}{rates}{ratio:>10.2f}×{f'≥ {_ASKED_OF_LOOP}×':>9}", flush=True)


def make_model(name: str, arguments: dict[str, int]) -> Model:
    """Return a timm network with fresh weights as a model of the evaluation."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0, **arguments).eval()
    normalise = normaliser(_MEAN, _STD, torch.device("cpu"))
    return Model(
        name=name, kind="timm", digest="0" * 64, description=name, image_px=arguments.get("img_size", 224),
        bands=("red", "green", "blue"), dtype="uint8", standardise=False, patch_px=cell_px(network),
        embed=embedder(network, normalise), network=network, normalise=normalise,
    )  # fmt: skip


def write_classes(folder: Path, side_px: int, number: int, num_classes: int = 4) -> Path:
    """Write images of noise that is smooth, as JPEG files in class folders."""
    draw = np.random.default_rng(0)
    for place in range(number):
        low = draw.integers(0, 256, (side_px // 4, side_px // 4, 3)).astype(np.uint8)
        low[..., place % 3] //= 1 + place % num_classes
        home = folder / f"class_{place % num_classes}"
        home.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(low).resize((side_px, side_px), Image.Resampling.BICUBIC)
        image.save(home / f"{place}.jpg", quality=95)
    return folder


def _extract(model: Model, data: LabelledData) -> None:
    extract(model, data, range(len(data.ids)), Work(batch_size=_BATCH, workers=_WORKERS))


def _bare_loop(model: Model, data: LabelledData) -> Callable[[], None]:
    images = torch.stack([model_input(data.read(place), model.image_px) for place in range(len(data.ids))])
    network, normalise = model.network, model.normalise
    assert network is not None
    assert normalise is not None

    def run() -> None:
        with torch.inference_mode():
            for batch in torch.split(images, _BATCH):
                network.forward_features(normalise(batch))

    return run


def race(
    yardstick: Callable[[], object], ours: Callable[[], object], num_rounds: int = _ROUNDS
) -> tuple[float, float, float]:
    """Return the median seconds of both, and the median ratio of speeds of turns, after one turn to warm up."""
    turns = [[_seconds(yardstick), _seconds(ours)] for _ in range(num_rounds + 1)][1:]
    medians = [statistics.median(times) for times in zip(*turns, strict=True)]
    return medians[0], medians[1], statistics.median(bare / mine for bare, mine in turns)


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def print_knn(_: Path) -> None:
    """Measure k-NN in processes of their own: the peak in one, time against the product in another."""
    print(f"{'k-NN':34}{'product s':>10}{'s':>10}{'/ product':>11}{'asked':>9}{'GB':>7}{'asked':>9}")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        peak_bytes = process.submit(_knn_peak).result()
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        product, seconds, ratio = process.submit(_knn_race).result()
    title = f"{_QUERIES:,} in {_BANK:,} × {_WIDTH}"
    print(
        f"{title:34}{product:>10.2f}{seconds:>10.2f}{1 / ratio:>10.2f}×{f'< {_ASKED_S} s':>9}"
        f"{peak_bytes / 1e9:>7.2f}{f'< {_ASKED_GB} GB':>9}",
        flush=True,
    )


def _features() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    bank, queries = (draw.standard_normal((number, _WIDTH), np.float32) for number in (_BANK, _QUERIES))
    return bank, draw.integers(0, _CLASSES, _BANK), queries


def _knn_peak() -> int:
    """Return the most that was resident, with Python, torch and the features."""
    from eval.protocols.knn import VOTES, knn_predict

    knn_predict(*_features(), VOTES)
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def _knn_race() -> tuple[float, float, float]:
    from eval.protocols.knn import VOTES, knn_predict

    bank, labels, queries = _features()

    def product() -> None:
        for part in np.array_split(queries, 32):
            part @ bank.T

    return race(product, lambda: knn_predict(bank, labels, queries, VOTES), _LONG_ROUNDS)


def print_bootstrap(folder: Path) -> None:
    """Time the bootstrap within whole evaluations whose features are cached."""
    print(f"{'Bootstrap, features cached':34}{'whole s':>10}{'bootstrap':>10}{'share':>11}{'asked':>9}")
    models = [str(write_export(folder / f"export_{seed}", seed)) for seed in range(2)]
    data = f"d={write_classes(folder / 'd', 32, 1200, num_classes=10)}"
    # The quick protocols: beside the linear probe's minute the bootstrap would not show.
    config = EvalConfig(models=models, data=[data], out=str(folder / "out"), protocols=["knn", "retrieval"])
    rows, comparisons = (len(_evaluate(config)[name]) for name in ("rows", "comparisons"))
    turns = [_bootstrap_turn(replace(config, seed=seed)) for seed in range(1, _LONG_ROUNDS + 1)]
    whole, inside = (statistics.median(times) for times in zip(*turns, strict=True))
    share = statistics.median(part / total for total, part in turns)
    title, asked = f"{rows} intervals, {comparisons} comparisons", f"< {_ASKED_SHARE:.0%}"
    print(f"{title:34}{whole:>10.2f}{inside:>10.2f}{share:>11.0%}{asked:>9}", flush=True)


def write_export(folder: Path, seed: int) -> Path:
    """Write an export of a small network with fresh weights."""
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 2, "num_heads": 3}
    torch.manual_seed(seed)
    weights = save(timm.create_model("vit_tiny_patch16_224", num_classes=0, **arguments).state_dict())
    fields = {
        "format": "pera-export", "format_version": 1, "architecture": "vit_tiny_patch16_224", "model_args": arguments,
        "image_px": 32, "bands": ["red", "green", "blue"], "dtype": "uint8", "mean": _MEAN, "std": _STD, "step": seed,
        "samples_seen": seed, "dataset_digest": "0" * 64, "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }  # fmt: skip
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "model.json").write_text(json.dumps(fields))
    return folder


def _evaluate(config: EvalConfig) -> dict[str, Any]:
    with redirect_stderr(io.StringIO()):
        return evaluation.evaluate(config, "", Console(file=io.StringIO()))


def _bootstrap_turn(config: EvalConfig) -> tuple[float, float]:
    """Return the seconds of an evaluation, and those of them that the bootstrap took; another seed is another row."""
    inside = 0.0

    def timed(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            nonlocal inside
            begin = time.perf_counter()
            found = work(*arguments)
            inside += time.perf_counter() - begin
            return found

        return run

    with (
        mock.patch.object(evaluation, "bootstrap_interval", timed(evaluation.bootstrap_interval)),
        mock.patch.object(summary, "paired_difference", timed(summary.paired_difference)),
    ):
        whole = _seconds(lambda: _evaluate(config))
    return whole, inside


if __name__ == "__main__":
    main()
