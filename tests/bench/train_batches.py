"""Part of tests/bench/train.py: samples/s and memory of PerA and of the dense form, over batch sizes.

ViT-S/16 and ViT-B/16 with 2 × 224² + 8 × 96² and 4,096 prototypes; the dense form is described in train_setup.py. On a
CPU each cell is a process of its own, the two forms one after the other. On a GPU cells follow one another in this
process: the memory is the most that torch had allocated there, and a batch that does not fit is shown as such.
"""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pretrain.batches.batch import Batch
from pretrain.config import Config
from pretrain.training.peak import wait_for
from tests.bench.train_chart import write_charts
from tests.bench.train_memory import Cost, cost
from tests.bench.train_options import Options
from tests.bench.train_setup import SMALL, dense, make_trainer, noise_batch, on_device, with_batch

VIT_B = replace(SMALL, model=replace(SMALL.model, width=768, heads=12))
_CONFIGS = {"ViT-S/16": SMALL, "ViT-B/16": VIT_B}
_BATCHES: Mapping[str, Mapping[str, Sequence[int]]] = {
    "cpu": {"ViT-S/16": (2, 4, 8, 16, 32), "ViT-B/16": (2, 4, 8, 16)},
    "cuda": {"ViT-S/16": (32, 64, 128, 256, 512, 1024), "ViT-B/16": (32, 64, 128, 256, 512)},
}
_STEPS = 5


def print_tables(options: Options) -> None:
    """Measure and print."""
    print(f"\n{'2 × 224² + 8 × 96²':20}{'':>6}{'samples/s':>18}{'':>9}{'peak memory, MiB':>20}")
    print(f"{'':20}{'batch':>6}{'PerA':>9}{'dense':>9}{'ratio':>9}{'PerA':>11}{'dense':>9}{'ratio':>9}")
    measured = _costs if options.device == "cpu" else _costs_on_a_gpu
    curves: dict[str, list[tuple[int, Cost | None]]] = {}
    for name, batches in _BATCHES[options.device].items():
        config = on_device(_CONFIGS[name], options)
        # Taken in turns: the machine may be another one in a minute.
        forms = measured(config, batches), measured(dense(config), batches)
        for batch, ours, other in zip(batches, *forms, strict=True):
            print(_line(name, batch, ours, other), flush=True)
            curves.setdefault(f"{name}, PerA", []).append((batch, ours))
            curves.setdefault(f"{name}, dense", []).append((batch, other))
    if options.charts:
        write_charts(Path(options.charts), curves)


def _costs(config: Config, batches: Sequence[int]) -> Iterator[Cost | None]:
    for batch in batches:
        yield cost(with_batch(config, batch))


def _costs_on_a_gpu(config: Config, batches: Sequence[int]) -> Iterator[Cost | None]:
    """Yield the cost of a step of each batch; None where it does not fit."""
    # Made once: to cut the views of a thousand images takes longer than all steps.
    largest = noise_batch(with_batch(config, max(batches)))
    for batch in batches:
        yield _cost_on_a_gpu(with_batch(config, batch), largest.split(max(batches) // batch)[0])


def _cost_on_a_gpu(config: Config, batch: Batch) -> Cost | None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    times, device = [], torch.device(config.device)
    try:
        trainer, batch = make_trainer(config), batch.pin_memory()
        for step in range(1 + _STEPS):
            begin_s = time.perf_counter()
            trainer.step(step, batch)
            wait_for(device)
            times.append(time.perf_counter() - begin_s)
    except torch.OutOfMemoryError:
        return None
    return Cost(statistics.median(times[1:]), torch.cuda.max_memory_allocated())


def _line(name: str, batch: int, ours: Cost | None, other: Cost | None) -> str:
    rates = [f"{batch / each.seconds:>9.2f}" if each else f"{'–':>9}" for each in (ours, other)]
    memory = [f"{each.peak_bytes / 2**20:,.0f}" if each else "no room" for each in (ours, other)]
    ratios = [f"{'':>9}"] * 2
    if ours and other:
        ratios = [f"{other.seconds / ours.seconds:>8.2f}×", f"{ours.peak_bytes / other.peak_bytes:>8.2f}×"]
    return f"{name:20}{batch:>6}{''.join(rates)}{ratios[0]}{memory[0]:>11}{memory[1]:>9}{ratios[1]}"
