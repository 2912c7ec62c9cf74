"""PerA's batches by the loader against torch's own way of handing them over; see `tests.bench.stream`.

The same maker cuts the same crops of 512² JPEGs. torch moves each tensor of a batch into new shared memory and sends a
descriptor of it; the loader has them in parcels (`pretrain.batches.parcels`).
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pretrain.batches.batch import BatchMaker
from pretrain.batches.loader import deliver
from pretrain.batches.sources import begin_stream, open_sources
from shards.streaming.state import open_stream
from tests.bench.stream_data import IMAGE_SETS, draw_jpegs, write_ours
from tests.bench.stream_peers import load
from tests.bench.stream_race import BATCH, Entry, print_rates, race
from tests.bench.train_setup import vit_s

_TURNS, _HEATS, _BATCHES = 5, 3, 4


def print_tables() -> None:
    """Measure and print, for two sizes of crops."""
    images = IMAGE_SETS[-1]
    with TemporaryDirectory(prefix="pera-bench-") as folder:
        write_ours(Path(folder, "data"), draw_jpegs(images), images.side_px)
        for crop_px in (224, 448):
            arguments = {"url": str(Path(folder, "data")), "crop_px": crop_px}
            title = f"loader, {images.name} to 2 × {crop_px}² + 8 × 96²"
            for workers in (1, 2):
                entries = [
                    Entry(name="parcels", batches=in_parcels, arguments=arguments, workers=workers),
                    Entry(name="torch's own", batches=by_torch, arguments=arguments, workers=workers),
                    Entry(name="no worker", batches=in_parcels, arguments=arguments, workers=0),
                ]
                rates = race(entries, turns=_TURNS, batches=_BATCHES, heats=_HEATS)
                print_rates(f"{title}: {workers} workers", rates, ours="parcels", asked={})


def in_parcels(url: str, crop_px: int, workers: int) -> Iterator[object]:
    """Yield batches of the loader."""
    return deliver(_maker(url, crop_px), num_steps=10**9, workers=workers)


def by_torch(url: str, crop_px: int, workers: int) -> Iterator[object]:
    """Yield the same, each tensor in shared memory of its own."""
    return load(_Steps(_maker(url, crop_px)), workers)


class _Steps:
    """Map-style: the batch of each step."""

    def __init__(self, maker: BatchMaker) -> None:
        self._maker = maker

    def __getitem__(self, step: int) -> Any:
        return self._maker.make(step, torch.empty)


def _maker(url: str, crop_px: int) -> BatchMaker:
    config = replace(vit_s(crop_px, 4096, BATCH), data=url)
    sources = open_sources(config)
    state = begin_stream(config, sources)
    stream = open_stream(state, sources.datasets, global_batch=BATCH)
    return BatchMaker(stream, config, sources.places)
