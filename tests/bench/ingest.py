"""Packing against its floor, its second worker, and Ray Data: `python -m tests.bench.ingest [ROUNDS]`, 7 minutes.

On a tiled GeoTIFF (20480² × 3, DEFLATE, 512² blocks) for uint8 and uint16, tiles of 512². In this process, in turn for
each of some groups of a plan for four such scenes (about 280 tiles each), on the very tiles of the group:

- floor: window read, scaling and JPEG encoding alone;
- naive: the floor plus webdataset's TarWriter (what a first script does);
- pack: `ingest.pack.pack_group` as Ray calls it, decoder process included: masks, figures, filters, duplicates' hashes,
  metadata, tables, shards, marker, all of it on the disk.

Through Ray, on warm workers, the whole scene, in turn for each round:

- 1 worker, 2 workers: `pack_group` on a cluster of two cores, of which one is taken for the first.

Last and in a cluster of its own, since it has worker processes of its own:

- Ray Data: the naive job as `map_batches` + `write_webdataset`, on two cores.

Prints tiles/s (median, and of how many), and the ratios that count. A machine's speed drifts, by a third within minutes
on a shared one, so a ratio is the median of the ratios of neighbours in time; with Ray Data that of the two medians.
What a group costs beside its tiles (four files that are synced, 11 ms) weighs most in small ones: those of a dataset
above 8 GB have 2000 tiles, so pack/floor is a lower bound for it.
"""

import contextlib
import io
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import ingest  # noqa: F401  (sets GDAL's environment before rasterio is imported)

# isort: split
import rasterio
import ray
import webdataset
from rasterio.windows import Window

from ingest.access import Place
from ingest.cluster import cluster, run_tasks
from ingest.config import IngestConfig, Recipe
from ingest.inventory import build_inventory
from ingest.landcover import draw_land, draw_look, expose, to_uint8, to_uint16
from ingest.look import probe_row
from ingest.pack import group_url, pack_group
from ingest.plan import encode_groups, plan_units
from ingest.sandbox import Limits, decoder
from ingest.toolchain import toolchain
from shards import storage
from shards.images import encode_image, interleave
from shards.keyed import generator
from shards.schema import SCENES

_SIDE, _TILE = 20480, 512
_RAY_DATA_ROUNDS = 2
_SCENES_HERE, _GROUPS_HERE = 4, 9
_LOW, _HIGH = 200, 3000
_RECIPE = {
    "uint8": Recipe(),
    "uint16": Recipe(normalisation="linear", low=float(_LOW), high=float(_HIGH)),
}


Windows = Sequence[tuple[int, int]]  # left and upper edges
Calls = list[tuple[Any, ...]]  # of pack_group
Rates = dict[str, list[float]]  # tiles/s of each time; the same place in two lists: neighbours in time


def main() -> None:
    """Print the tables."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    # Ray ends workers that had nothing to do for a second: the one that waits while the other works would begin cold.
    os.environ["RAY_idle_worker_killing_time_threshold_ms"] = str(10**6)  # noqa: SIM112 (Ray reads it as it is)
    for dtype in ("uint8", "uint16"):
        with tempfile.TemporaryDirectory() as folder:
            path, out = Path(folder, "scenes", "scene.tif"), Path(folder, "out")
            path.parent.mkdir()
            _write_scene(path, dtype)
            rates = _here(path, dtype, out) | _through_workers(path, dtype, out, rounds) | _ray_data(path, dtype, out)
        medians = {name: statistics.median(values) for name, values in rates.items()}
        print(f"{dtype}: " + "  ".join(f"{name} {medians[name]:.1f}/s ({len(rates[name])})" for name in rates))
        for ours, theirs in [("pack", "floor"), ("pack", "naive"), ("2 workers", "1 worker")]:
            ratios = [mine / other for mine, other in zip(rates[ours], rates[theirs], strict=True)]
            spread = f"{min(ratios):.2f}…{max(ratios):.2f}, {len(ratios)} pairs"
            print(f"    {ours} / {theirs}: {statistics.median(ratios):.2f} ({spread})")
        print(f"    2 workers / ray data: {medians['2 workers'] / medians['ray data']:.2f}", flush=True)


def _take_turns(rates: Rates, turn: int, num_tiles: int, candidates: dict[str, Callable[[], object]]) -> None:
    """Add the rate of each candidate; every other turn in reverse, so that none gains by its place."""
    for name in sorted(candidates, reverse=turn % 2 == 1):
        os.sync()  # what one candidate left unwritten must not slow the next one's fsync
        begin = time.perf_counter()
        candidates[name]()
        rates.setdefault(name, []).append(num_tiles / (time.perf_counter() - begin))


def _here(path: Path, dtype: str, out: Path) -> Rates:
    rates: Rates = {}
    scenes = path.parent.with_name("scenes-here")
    scenes.mkdir()
    for number in range(_SCENES_HERE):
        (scenes / f"{number}.tif").hardlink_to(path)
    for turn, call in enumerate(_planned(scenes, dtype, out)[:_GROUPS_HERE]):
        windows = _windows(call)
        _take_turns(rates, turn, len(windows), {
            "floor": lambda: _tiles(path, dtype, windows),  # noqa: B023
            "naive": lambda: _naive(path, dtype, windows, out / "naive.tar"),  # noqa: B023
            "pack": lambda: pack_group(*call),  # noqa: B023
        })  # fmt: skip
    shutil.rmtree(out)
    return rates


def _through_workers(path: Path, dtype: str, out: Path, rounds: int) -> Rates:
    rates: Rates = {}
    with cluster("", 2):
        _pack_all(_planned(path.parent, dtype, out / "warm-up"), 2)
        for turn in range(rounds):
            one, two = (_planned(path.parent, dtype, out / f"{turn}-{workers}") for workers in (1, 2))
            _take_turns(rates, turn, (_SIDE // _TILE) ** 2, {
                "1 worker": lambda: _pack_all(one, 1),  # noqa: B023
                "2 workers": lambda: _pack_all(two, 2),  # noqa: B023
            })  # fmt: skip
            shutil.rmtree(out)
    return rates


def _pack_all(calls: Calls, workers: int) -> None:
    with contextlib.nullcontext() if workers == 2 else _one_core_taken():
        failures = run_tasks(pack_group, calls, lambda _place, _marker: None, attempts=1, deadline_s=600)
    assert not failures, failures


@contextlib.contextmanager
def _one_core_taken() -> Iterator[None]:
    """Take one of the cluster's cores, without a process that would cost a warm worker its place."""
    taken = ray.util.placement_group([{"CPU": 1}])
    assert taken.wait(60)
    yield
    ray.util.remove_placement_group(taken)


def _ray_data(path: Path, dtype: str, out: Path) -> Rates:
    rates: Rates = {}
    windows = [(x, y) for y in range(0, _SIDE, _TILE) for x in range(0, _SIDE, _TILE)]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    _ray_data_job(path, dtype, windows[:64], out)  # warms up
    for turn in range(_RAY_DATA_ROUNDS):
        shutil.rmtree(out)
        _take_turns(rates, turn, len(windows), {"ray data": lambda: _ray_data_job(path, dtype, windows, out)})
    ray.shutdown()
    shutil.rmtree(out)
    return rates


def _write_scene(path: Path, dtype: str) -> None:
    rng = generator("bench scene")
    look = draw_look(1.0, south=False, rng=rng)
    piece = expose(draw_land((_TILE * 2, _TILE * 2), look, rng), look, rng)[..., :3]
    rows = np.tile((to_uint8 if dtype == "uint8" else to_uint16)(piece), (1, _SIDE // (_TILE * 2), 1))
    with rasterio.open(
        path, "w", driver="GTiff", width=_SIDE, height=_SIDE, count=3, dtype=dtype, tiled=True, compress="deflate",
        predictor=2, blockxsize=512, blockysize=512, crs="EPSG:32633", transform=rasterio.Affine(1, 0, 4e5, 0, -1, 5e6),
        num_threads=2,
    ) as target:  # fmt: skip
        for top in range(0, _SIDE, len(rows)):
            target.write(rows.transpose(2, 0, 1), window=Window(0, top, _SIDE, len(rows)))


def _tile(source: Any, x: int, y: int, dtype: str) -> bytes:
    values = source.read(window=Window(x, y, _TILE, _TILE))
    if dtype == "uint16":
        values = _scaled(values)
    return encode_image(interleave(values), "jpeg")[1]


def _scaled(values: np.ndarray) -> np.ndarray:
    """Scale 16 bits to 8 in single precision, as a first script would do at best: a table costs twice as much."""
    kept = np.clip(values, _LOW, _HIGH).astype(np.float32)
    kept -= np.float32(_LOW)
    kept *= np.float32(255 / (_HIGH - _LOW))
    return np.rint(kept, out=kept).astype(np.uint8)


def _tiles(path: Path, dtype: str, windows: Windows) -> list[bytes]:
    with rasterio.open(path) as source:
        return [_tile(source, x, y, dtype) for x, y in windows]


def _naive(path: Path, dtype: str, windows: Windows, target: Path) -> None:
    with target.open("wb") as file, webdataset.TarWriter(io.BufferedWriter(file)) as writer:
        for number, data in enumerate(_tiles(path, dtype, windows)):
            writer.write({"__key__": f"{number:06d}", "jpg": data, "json": {"number": number}})


def _planned(scenes_folder: Path, dtype: str, out: Path) -> Calls:
    """Plan as the driver does; return the calls of `pack_group`."""
    recipe, limits = _RECIPE[dtype], Limits()
    config = IngestConfig(scenes=str(scenes_folder), out=str(out))
    place = Place(root=config.scenes, absolute=False)
    rows = [probe_row(decoder(limits), place, row, recipe) for row in build_inventory(config).to_pylist()]
    scenes = SCENES.empty_table().from_pylist(rows, schema=SCENES)
    calls = []
    for name, data in encode_groups(plan_units(scenes, recipe), scenes, recipe, toolchain()):
        storage.write_bytes(group_url(str(out), name, ".parquet"), data)
        calls.append((str(out), name, place, recipe, limits, toolchain()))
    return calls


def _windows(call: tuple[Any, ...]) -> Windows:
    """Return the windows of a group's tiles."""
    out, name = call[:2]
    units = pq.read_table(pa.BufferReader(storage.read_bytes(group_url(out, name, ".parquet")))).to_pylist()
    return [
        (column * _TILE, row * _TILE)
        for unit in units
        for row in range(unit["first_row"], unit["end_row"])
        for column in range(unit["first_column"], unit["end_column"])
    ]


def _ray_data_job(path: Path, dtype: str, windows: Windows, out: Path) -> None:
    """Do the naive job as one would with Ray Data."""
    rows = [{"path": str(path), "x": x, "y": y} for x, y in windows]
    dataset = ray.data.from_items(rows).map_batches(_cut_batch, batch_size=16, fn_kwargs={"dtype": dtype})
    dataset.write_webdataset(str(out), encoder=lambda sample: sample)  # all members are bytes already


def _cut_batch(batch: dict[str, Any], dtype: str) -> dict[str, Any]:
    images = []
    with contextlib.ExitStack() as stack:
        sources = {path: stack.enter_context(rasterio.open(path)) for path in set(batch["path"])}
        for path, x, y in zip(batch["path"], batch["x"], batch["y"], strict=True):
            images.append(_tile(sources[path], int(x), int(y), dtype))
    keys = [f"{Path(p).stem}-{x}-{y}" for p, x, y in zip(batch["path"], batch["x"], batch["y"], strict=True)]
    return {"__key__": keys, "jpg": images, "json": [b'{"number":%d}' % x for x in batch["x"]]}


if __name__ == "__main__":
    main()
