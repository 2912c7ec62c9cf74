"""Part of tests/bench/train.py: the memory that a step needs, and a dense two-view method's at the same crops.

Each is measured in a process of its own: the most that was resident in three steps, less what was before the model was
made. So parameters, gradients, moments and the teacher are in it, equal on both sides.
"""

import itertools
import multiprocessing
import re
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from pretrain.config import Config
from tests.bench.train_options import Options
from tests.bench.train_setup import CONFIGS, dense, make_trainer, noise_batch

_STEPS, _ASKED = 3, 0.45


class Cost(NamedTuple):
    """Of a step."""

    seconds: float
    """Median of those after the first."""
    peak_bytes: int


def print_tables(_: Options) -> None:
    """Measure and print."""
    print(f"\n{'Memory of a step':20}{'batch':>6}{'ours':>10}{'dense':>10}{'ours / dense':>14}{'asked':>9}")
    for name, config in CONFIGS.items():
        ours, other = cost(config).peak_bytes, cost(dense(config)).peak_bytes
        figures = f"{ours / 2**20:>6.0f} MiB{other / 2**20:>6.0f} MiB{ours / other:>13.2f}×"
        print(f"{name:20}{config.loader.batch:>6}{figures}{f'≤ {_ASKED}×':>9}", flush=True)


def cost(config: Config) -> Cost:
    """Return what a step costs, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_cost, config).result()


def _cost(config: Config) -> Cost:
    batch = noise_batch(config)
    before = _resident_bytes("VmRSS")
    trainer = make_trainer(config)
    # From here on the largest value is a new one: the process may have had more while it started.
    Path("/proc/self/clear_refs").write_text("5")
    ends = [time.perf_counter()]
    for step in range(_STEPS):
        trainer.step(step, batch)
        ends.append(time.perf_counter())
    seconds = [end - begin for begin, end in itertools.pairwise(ends[1:])]
    return Cost(statistics.median(seconds), _resident_bytes("VmHWM") - before)


def _resident_bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024
