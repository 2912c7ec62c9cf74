"""Opening and resuming a dataset of many million rows, and what it takes of memory; see `tests.bench.stream`.

The dataset is synthetic: tables as `shards.commit` writes them (2 million rows a file, all columns, but those that the
stream does not read are null), shards of 2,000 samples. All shards are parts, each from a place of its own on, of one
tar of 16,384 samples that takes little disk space (53 kB of zeros each, in holes): any sample can be read.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa

from shards.dataset import Dataset, Sample, open_dataset
from shards.schema import SAMPLES, SHARDS
from shards.streaming.footprint import opening_need
from shards.streaming.order import OrderSettings, default_lanes
from shards.streaming.stream import Stream
from shards.tar import BLOCK, header
from tests.bench.stream_data import commit

_SHARD_ROWS, _FILE_SHARDS = 2000, 1000
_MEMBERS, _MEAN_BYTES = 16_384, 53_000
_GLOBAL_BATCH = 256
_WORKERS = 2
_PROBES = 1000
"""Steps of an epoch that are located, evenly spread."""
_ASKED = {"open + first step s": 5.0, "resume s": 1.0, "rank MB": 1000.0, "peak MB": 1000.0}


def print_tables(num_rows: int = 50_000_000, folder: str = "") -> None:
    """Measure and print, for a fiftieth of the rows and for all of them; a folder that is given keeps the dataset."""
    with TemporaryDirectory(prefix="pera-bench-") as made:
        figures = {}
        for count in (num_rows // 50, num_rows):
            path = Path(folder or made) / f"rows-{count}"
            if not (path / "versions").is_dir():
                write_rows(path, count)
            figures[count] = {workers: _in_fresh_process(path, workers) for workers in (0, _WORKERS)}
    _print(figures)


def write_rows(folder: Path, num_rows: int) -> None:
    """Write a dataset of that many rows, a multiple of 2,000; 1 to 2 s per million."""
    (folder / "shards").mkdir(parents=True)
    places = _write_shard(folder / "shards" / "all.tar")
    num_shards = num_rows // _SHARD_ROWS
    ids = [f"{number:064x}" for number in range(num_shards)]
    sizes = pa.repeat((folder / "shards" / "all.tar").stat().st_size, num_shards)
    shards = {"shard": pa.array(ids), "url": pa.repeat("shards/all.tar", num_shards), "size": sizes}
    chunks = (
        _samples(ids[first : first + _FILE_SHARDS], places, first) for first in range(0, num_shards, _FILE_SHARDS)
    )
    tables: dict[str, Any] = {"samples": chunks, "shards": [_filled(shards, num_shards, SHARDS)]}
    commit(folder, tables, num_samples=num_shards * _SHARD_ROWS, num_shards=num_shards, tile_px=400)


def _write_shard(path: Path) -> Mapping[str, np.ndarray]:
    """Write the tar; return offset, size and crc32c of each of its samples."""
    rng = np.random.default_rng(0)
    contents = rng.integers(_MEAN_BYTES // 2, _MEAN_BYTES * 3 // 2, _MEMBERS)
    sizes = BLOCK + -(-contents // BLOCK) * BLOCK
    offsets = np.cumsum(sizes) - sizes
    zeros, crcs = bytes(sizes.max()), np.empty(_MEMBERS, np.uint32)
    with path.open("wb") as file:
        for number, (content, size, offset) in enumerate(zip(contents, sizes, offsets, strict=True)):
            head = header(f"{number:08d}.jpg", int(content))
            crcs[number] = google_crc32c.value(head + zeros[: size - BLOCK])
            file.seek(offset)
            file.write(head)
        file.truncate(int(sizes.sum()) + 2 * BLOCK)
    return {"offset": offsets, "size": sizes.astype(np.int32), "crc32c": crcs}


def _samples(ids: list[str], places: Mapping[str, np.ndarray], seed: int) -> pa.Table:
    """Return the rows of some shards, each a part of the tar."""
    first = np.random.default_rng(seed).integers(0, _MEMBERS - _SHARD_ROWS, len(ids))
    chosen = (first[:, None] + np.arange(_SHARD_ROWS)).reshape(-1)
    codes = pa.array(np.repeat(np.arange(len(ids), dtype=np.int32), _SHARD_ROWS))
    columns = {name: pa.array(values[chosen]) for name, values in places.items()}
    columns["shard"] = pa.DictionaryArray.from_arrays(codes, pa.array(ids)).cast(pa.string())
    columns["member"] = pa.repeat("jpg", len(chosen))
    return _filled(columns, len(chosen), SAMPLES)


def _filled(columns: Mapping[str, pa.Array], count: int, schema: pa.Schema) -> pa.Table:
    return pa.table(
        [columns[f.name].cast(f.type) if f.name in columns else pa.nulls(count, f.type) for f in schema], schema
    )


def _in_fresh_process(folder: Path, workers: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.bench.stream_rows", str(folder), str(workers)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = json.loads(run.stdout)
    return figures


def _measure(folder: str, workers: int) -> dict[str, float]:
    """Be a rank: open, step, resume, go through three epochs; return seconds and megabytes."""
    import torch.utils.data  # noqa: F401  (a rank has it, so its memory counts)

    figures = {"imports MB": _resident_mb()}
    settings = OrderSettings(seed=0, lanes=default_lanes(_GLOBAL_BATCH))
    dataset, figures["open s"] = _timed(lambda: open_dataset(folder))
    stream = Stream([dataset], settings, global_batch=_GLOBAL_BATCH)
    steps, first_s = _timed(lambda: Stream([dataset], settings, global_batch=_GLOBAL_BATCH))
    with _in_a_store(dataset):
        _, figures["cache need s"] = _timed(lambda: opening_need(steps, node_ranks=1, queued_steps=2 * workers))
    batches = _batches(steps, workers)
    _, read_s = _timed(lambda: next(batches))
    figures["open + first step s"] = figures["open s"] + first_s + figures["cache need s"] + read_s
    for _ in range(10):
        next(batches)
    figures["rank MB"] = _resident_mb()
    start = dataset.num_samples * 4 // 3
    _, figures["resume s"] = _timed(
        lambda: Stream([dataset], settings, global_batch=_GLOBAL_BATCH, start=start).read(0, _size)
    )
    for epoch in range(3):
        stride = dataset.num_samples // _GLOBAL_BATCH // _PROBES or 1
        for probe in range(_PROBES):
            stream.slots((epoch * _PROBES + probe) * stride)
        figures[f"after epoch {epoch + 1} MB"] = _resident_mb()
    figures["peak MB"] = _field(Path("/proc/self/status"), "VmHWM") * 1024 / 1e6
    return figures


@contextmanager
def _in_a_store(dataset: Dataset) -> Iterator[None]:
    """Have a dataset say for a while that its shards lie in a store: what a cache would need is looked at then."""
    local, dataset.shards = dataset.shards, [replace(shard, local=False) for shard in dataset.shards]
    yield
    dataset.shards = local


def _batches(stream: Stream, workers: int) -> Iterator[object]:
    from tests.bench.stream_peers import load_stream

    return load_stream(stream, bytes, workers)  # a view could not be sent to another process


def _size(sample: Sample, _: int) -> int:
    return len(sample.image)


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    return work(), time.perf_counter() - begin


def _resident_mb() -> float:
    """Return the resident memory of this process and all below it, what they share counted once (PSS)."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            children.setdefault(_field(status, "PPid"), []).append(int(status.parent.name))
        except OSError:
            continue  # it ended meanwhile
    family = _family(os.getpid(), children)
    return sum(_field(Path(f"/proc/{pid}/smaps_rollup"), "Pss") for pid in family) * 1024 / 1e6


def _family(pid: int, children: Mapping[int, list[int]]) -> Iterator[int]:
    yield pid
    for child in children.get(pid, []):
        yield from _family(child, children)


def _field(path: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", path.read_text(), re.MULTILINE)
    assert found, (path, name)
    return int(found[1])


def _print(figures: Mapping[int, Mapping[int, Mapping[str, float]]]) -> None:
    columns = [(count, workers) for workers in (0, _WORKERS) for count in figures]
    heads = "".join(f"{f'{count / 1e6:g} M, {workers} w.':>15}" for count, workers in columns)
    print("\nrows: seconds, and megabytes of a rank with its workers (PSS; the peak is of the main process)")
    print(f"{'':22}{heads}{'asked':>9}")
    for name in next(iter(figures.values()))[0]:
        values = "".join(f"{figures[count][workers][name]:>15.2f}" for count, workers in columns)
        asked = f"< {_ASKED[name]:g}" if name in _ASKED else "–"
        print(f"{name:22}{values}{asked:>9}")


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], int(sys.argv[2]))))
