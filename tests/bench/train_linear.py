"""Part of tests/bench/train.py: what a step costs against batch size and against depth.

A straight line through the outer sizes says what the one between them should cost; the table shows how far that one is
from it.
"""

import statistics
from collections.abc import Callable, Mapping

import torch

from pretrain.config import Config
from tests.bench.train_memory import cost
from tests.bench.train_options import Options
from tests.bench.train_setup import SMALL, make_trainer, noise_batch, with_batch, with_depth
from tests.bench.train_step import race

_ASKED = "≤ 10 %"
_BATCHES = {size: with_batch(SMALL, size) for size in (8, 16, 32)}
_DEPTHS = {depth: with_depth(with_batch(SMALL, 8), depth) for depth in (6, 12, 24)}


def print_tables(_: Options) -> None:
    """Measure and print."""
    print(f"\n{'Cost of a step':20}{'':>8}{'s':>8}{'off the line':>14}{'memory':>13}{'off the line':>14}{'asked':>9}")
    print_series("batch", _BATCHES)
    print_series("depth", _DEPTHS)


def print_series(what: str, configs: Mapping[int, Config]) -> None:
    """Measure three sizes, and compare the middle one with the line through the others."""
    times, _ = race([_step(config) for config in configs.values()], torch.device("cpu"))
    seconds = [statistics.median(each) for each in times]
    memory = [cost(config).peak_bytes / 2**20 for config in configs.values()]
    sizes = list(configs)
    for place, size in enumerate(sizes):
        cells = [f"{seconds[place]:>8.2f}", f"{memory[place]:>9.0f} MiB"]
        off = [f"{_off_the_line(sizes, costs):>+14.1%}" if place == 1 else f"{'':14}" for costs in (seconds, memory)]
        print(f"{what:20}{size:>8}{cells[0]}{off[0]}{cells[1]}{off[1]}{_ASKED if place == 1 else '':>9}", flush=True)


def _step(config: Config) -> Callable[[int], object]:
    trainer, batch = make_trainer(config), noise_batch(config)
    return lambda step: trainer.step(step, batch)


def _off_the_line(sizes: list[int], costs: list[float]) -> float:
    share = (sizes[1] - sizes[0]) / (sizes[2] - sizes[0])
    return costs[1] / (costs[0] + share * (costs[2] - costs[0])) - 1
