"""Trainer and loader on the same cores: samples/s of the whole and share of waiting: `python -m tests.bench.threads`.

A ViT-Ti/8 trains on 64 px chips (vit_tiny_64.yaml, batch 8), with 0, 1 and 2 workers, and beside a process that keeps
one core busy. Yardsticks are the usual ways: threads that sleep or that spin while they wait, and a core set aside for
each worker. Each run is `python -m pretrain` in a process of its own; candidates take turns, the median counts.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.stream_data import ImageSet, draw_jpegs, write_ours

_ROUNDS, _STEPS, _BATCH = 3, 20, 8
_CHIPS = ImageSet(name="64²", side_px=64, quality=91, count=1024)
_SPIN = """while True:
    pass"""
_FORCED = """
import sys, torch
set_threads, number = torch.set_num_threads, int(sys.argv[1])
torch.set_num_threads = lambda _: set_threads(number)
from pretrain.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What else runs."""

    workers: int
    is_busy: bool = False
    """Whether another process keeps a core busy."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """How the trainer uses the cores."""

    name: str
    policy: str | None = None
    """OMP_WAIT_POLICY; None: the default of pretrain."""
    sets_aside: bool = False
    """Whether each worker has a core for itself."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of the later part of a run."""

    samples_per_s: float
    data_wait_share: float


SCENES = (Scene(workers=0), Scene(workers=1), Scene(workers=2), Scene(workers=0, is_busy=True))
OURS = Way(name="ours")
WAYS = (
    OURS,
    Way(name="sleeping", policy="PASSIVE"),
    Way(name="spinning", policy="ACTIVE"),
    Way(name="cores − workers", sets_aside=True),
)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="pera-bench-") as name:
        folder = Path(name)
        write_ours(folder / "data", draw_jpegs(_CHIPS), _CHIPS.side_px)
        print(f"{len(os.sched_getaffinity(0))} cores, median of {_ROUNDS} runs of {_STEPS} steps of {_BATCH} samples")
        print(f"{'workers':>7}{'busy':>6}  {'':18}{'samples/s':>10}{'waiting for data':>18}{'ours / this':>13}")
        for scene in SCENES:
            print_scene(scene, measure(scene, folder))
        begin_s = time.monotonic()
        run_pretrain(folder, OURS, Scene(workers=2), steps=1)
        print(f"a run of one step with 2 workers, start, save and export included: {time.monotonic() - begin_s:.1f} s")


def measure(scene: Scene, folder: Path) -> dict[Way, list[Figures]]:
    """Return what each way reached in each round; without workers nothing can be set aside for them."""
    ways = [way for way in WAYS if scene.workers or not way.sets_aside]
    found: dict[Way, list[Figures]] = {way: [] for way in ways}
    with busy_process() if scene.is_busy else contextlib.nullcontext():
        for _ in range(_ROUNDS):
            for way in ways:
                found[way].append(run_pretrain(folder, way, scene, _STEPS))
    return found


def print_scene(scene: Scene, found: dict[Way, list[Figures]]) -> None:
    """Print a line for each way; the ratio is the median of those of neighbours in time."""
    for way, runs in found.items():
        rate = statistics.median(run.samples_per_s for run in runs)
        waiting = statistics.median(run.data_wait_share for run in runs)
        pairs = zip(found[OURS], runs, strict=True)
        ratio = statistics.median(ours.samples_per_s / run.samples_per_s for ours, run in pairs)
        busy = "yes" if scene.is_busy else "no"
        print(f"{scene.workers:>7}{busy:>6}  {way.name:18}{rate:>10.1f}{waiting:>18.1%}{ratio:>13.2f}", flush=True)


def run_pretrain(folder: Path, way: Way, scene: Scene, steps: int) -> Figures:
    """Train in a process of its own; the first third is not counted: memory is fetched, workers fill their queue."""
    with tempfile.TemporaryDirectory(dir=folder) as run:
        command = [*start_of(way, scene), "--data", str(folder / "data"), "--run", run, "--device", "cpu"]
        command += ["--config", "pretrain/configs/vit_tiny_64.yaml", "--loader.workers", str(scene.workers)]
        command += ["--loader.batch", str(_BATCH), "--max_steps", str(steps), "--log_every", "1"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        environment |= {"OMP_WAIT_POLICY": way.policy} if way.policy else {}
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        rows = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    counted = rows[len(rows) // 3 :]
    seconds = [_BATCH / row["samples_per_s"] for row in counted]
    waiting = sum(row["data_wait_share"] * second for row, second in zip(counted, seconds, strict=True))
    return Figures(
        samples_per_s=_BATCH * len(counted) / sum(seconds),
        data_wait_share=waiting / sum(seconds),
    )


def start_of(way: Way, scene: Scene) -> list[str]:
    """Return the command up to the options; threads are forced where pretrain would not choose them so."""
    if not way.sets_aside:
        return [sys.executable, "-m", "pretrain"]
    threads = max(1, len(os.sched_getaffinity(0)) - scene.workers)
    return [sys.executable, "-c", _FORCED, str(threads)]


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """Keep a core busy meanwhile."""
    process = subprocess.Popen([sys.executable, "-c", _SPIN])
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
