"""Part of tests/bench/train.py: samples/s and memory of PerA and of the dense form, over batch sizes.

ViT-S/16 and ViT-B/16 with 2 × 224² + 8 × 96² and 4,096 prototypes. Each cell is a process of its own, the two forms
one after the other; the dense one is described in train_setup.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pretrain.config import Config
from tests.bench.train_memory import Cost, cost
from tests.bench.train_setup import SMALL, dense, with_batch

VIT_B = replace(SMALL, model=replace(SMALL.model, width=768, heads=12))
_SERIES: Mapping[str, tuple[Config, Sequence[int]]] = {
    "ViT-S/16": (SMALL, (2, 4, 8, 16, 32)),
    "ViT-B/16": (VIT_B, (2, 4, 8, 16)),
}


def print_tables(_: bool) -> None:
    """Measure and print."""
    print(f"\n{'2 × 224² + 8 × 96²':20}{'':>6}{'samples/s':>16}{'':>9}{'peak memory, MiB':>20}")
    print(f"{'':20}{'batch':>6}{'PerA':>8}{'dense':>8}{'ratio':>9}{'PerA':>11}{'dense':>9}{'ratio':>9}")
    for name, (config, batches) in _SERIES.items():
        for batch in batches:
            print(
                _line(name, batch, cost(with_batch(config, batch)), cost(with_batch(dense(config), batch))), flush=True
            )


def _line(name: str, batch: int, ours: Cost, other: Cost) -> str:
    rates = f"{batch / ours.seconds:>8.2f}{batch / other.seconds:>8.2f}{other.seconds / ours.seconds:>8.2f}×"
    memory = f"{ours.peak_bytes / 2**20:>11,.0f}{other.peak_bytes / 2**20:>9,.0f}"
    return f"{name:20}{batch:>6}{rates}{memory}{ours.peak_bytes / other.peak_bytes:>8.2f}×"
