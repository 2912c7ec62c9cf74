"""What training costs, measured: time, waiting for data, requests, memory, and the rate of work.

A stretch is what lies between two rows of metrics. Each rank has its own; a row tells of all.
"""

import resource
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from pretrain.batches.batch import Batch
from pretrain.batches.loader import COUNTS, Delivery
from shards.streaming.stream import Replacement


@dataclass(kw_only=True)
class Stretch:
    """A rank's steps since the last row of metrics; may be pickled."""

    seconds: float = 0.0
    wait_s: float = 0.0
    """Of them, waiting for data."""
    save_blocked_s: float = 0.0
    """Of them, in saves: the state is put together and copied, and the save before waited for."""
    num_steps: int = 0
    counts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(COUNTS, 0)))
    """See `pretrain.batches.loader.COUNTS`."""
    replaced: list[Replacement] = field(default_factory=list)
    """Bad samples and what was taken instead."""
    memory_bytes: int = 0
    """The most that this rank had so far: of the GPU's memory, on a CPU of the process's own."""


class Gauge:
    """Iterate over deliveries and sum up what they and the steps between them cost."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stretch, self._since_s = Stretch(), time.monotonic()

    def watch(self, deliveries: Iterator[Delivery[Batch]]) -> Iterator[Delivery[Batch]]:
        """Yield deliveries as they come."""
        while True:
            begin_s = time.monotonic()
            delivery = next(deliveries, None)
            self._stretch.wait_s += time.monotonic() - begin_s
            if delivery is None:
                return
            self._stretch.num_steps += 1
            self._stretch.counts.update(delivery.counts)
            self._stretch.replaced += delivery.replaced
            yield delivery

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Count the time of a block as that of a save; it is a part of the stretch that has begun by then."""
        begin_s = time.monotonic()
        yield
        self._stretch.save_blocked_s += time.monotonic() - begin_s

    def take(self) -> Stretch:
        """Return the stretch that ends now, and begin the next."""
        stretch, now_s = self._stretch, time.monotonic()
        stretch.seconds = max(now_s - self._since_s, 1e-9)
        stretch.memory_bytes = peak_memory_bytes(self._device)
        self._stretch, self._since_s = Stretch(), now_s
        return stretch


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory that this process had so far: of the GPU, on a CPU resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def costs(stretches: Sequence[Stretch], *, batch: int, step_flops: int, peak_flops_per_s: float) -> dict[str, float]:
    """Return what a row of metrics tells of the stretches of all ranks.

    Args:
        stretches: by rank, of the same steps.
        batch: samples of a step, over all ranks.
        step_flops: of a step on one rank.
        peak_flops_per_s: of a large matrix product on one rank.
    """
    slowest = max(stretches, key=lambda stretch: stretch.seconds)
    steps_per_s = slowest.num_steps / slowest.seconds
    counts = sum((stretch.counts for stretch in stretches), Counter(dict.fromkeys(COUNTS, 0)))
    return {
        "samples_per_s": steps_per_s * batch,
        "data_wait_share": max(stretch.wait_s / stretch.seconds for stretch in stretches),
        "save_blocked_s": max(stretch.save_blocked_s for stretch in stretches),
        "flops_per_s": steps_per_s * step_flops,
        "peak_share": steps_per_s * step_flops / peak_flops_per_s,
        "memory_bytes": max(stretch.memory_bytes for stretch in stretches),
        # Not `+`, which leaves out what is 0.
        **dict.fromkeys(COUNTS, 0),
        **counts,
    }
