"""Part of tests/bench/train.py: seconds from the start of `python -m pretrain` to the end of its first step.

Each start is a process and a run of its own, which is ended when the first row of metrics is there. The two columns are
moments of it: the run folder is made when code is imported, data are opened and the model is built; the first row comes
with the end of the step. Presets of `pretrain/configs`, in float32, with a smaller batch; one start before those that
count reads the code into the file cache.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench.stream_data import ImageSet, draw_jpegs, write_ours
from tests.bench.train_options import Options

_STARTS, _ASKED_S = 5, 15.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is started."""

    preset: str
    images: ImageSet
    batch: int
    workers: int


_CHIPS = ImageSet(name="64²", side_px=64, quality=91, count=256)
_TILES = ImageSet(name="512²", side_px=512, quality=91, count=64)
CASES = (
    Case(preset="vit_tiny_64", images=_CHIPS, batch=16, workers=0),
    Case(preset="vit_tiny_64", images=_CHIPS, batch=16, workers=2),
    Case(preset="vit_s16", images=_TILES, batch=16, workers=0),
    Case(preset="vit_s16", images=_TILES, batch=16, workers=2),
)


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Seconds since the process was started."""

    opened_s: float
    stepped_s: float


def print_tables(_: Options) -> None:
    """Measure and print."""
    print(f"\n{f'Start, median of {_STARTS}':22}{'batch':>6}{'workers':>9}{'opened':>10}{'first step':>12}{'asked':>9}")
    with tempfile.TemporaryDirectory(prefix="pera-bench-") as name:
        folder = Path(name)
        for images in (_CHIPS, _TILES):
            write_ours(folder / images.name, draw_jpegs(images), images.side_px)
        for case in CASES:
            print_case(case, [start(case, folder) for _ in range(1 + _STARTS)][1:])


def print_case(case: Case, starts: list[Moments]) -> None:
    """Print a line."""
    opened_s = statistics.median(each.opened_s for each in starts)
    stepped_s = statistics.median(each.stepped_s for each in starts)
    name = f"{case.preset:22}{case.batch:>6}{case.workers:>9}"
    print(f"{name}{opened_s:>8.1f} s{stepped_s:>10.1f} s{f'< {_ASKED_S:g} s':>9}", flush=True)


def start(case: Case, folder: Path) -> Moments:
    """Start training, wait for its first row, and end it."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        run = Path(name)
        command = [sys.executable, "-m", "pretrain", "--data", str(folder / case.images.name), "--run", name]
        command += ["--config", f"pretrain/configs/{case.preset}.yaml", "--device", "cpu", "--precision", "float32"]
        command += ["--loader.batch", str(case.batch), "--loader.workers", str(case.workers), "--log_every", "1"]
        begin_s = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            opened_s = wait_for(run / "run.json", process) - begin_s
            stepped_s = wait_for(run / "metrics.jsonl", process) - begin_s
        finally:
            process.kill()
            process.communicate()
    return Moments(opened_s=opened_s, stepped_s=stepped_s)


def wait_for(file: Path, process: subprocess.Popen[str]) -> float:
    """Return when a file is there, on the monotonic clock."""
    while not file.exists():
        if process.poll() is not None:
            raise SystemExit(process.communicate()[1])
        time.sleep(0.005)
    return time.monotonic()
