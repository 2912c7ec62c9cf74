"""Packing against its floor, its second worker, and Ray Data: `python -m tests.bench.ingest [ROUNDS]`.

On a real-sized tiled GeoTIFF (20480² × 3, DEFLATE, 512² tiles) for uint8 and uint16, in one run and in turn:

- floor: window read, scaling and JPEG encoding alone, in this process;
- naive: the floor plus webdataset's TarWriter (what a first script does);
- pack: `ingest.pack.pack_group` as Ray calls it, decoder process included: masks, figures, filters, duplicates' hashes,
  metadata, tables, shards, marker;
- 1 worker, 2 workers: the same through Ray, on warm workers;
- Ray Data: the naive job as `map_batches` + `write_webdataset`, on two cores.

Prints tiles/s (median of the rounds) and the ratios that count: pack/floor, pack/naive, 2 workers/1 worker,
2 workers/Ray Data.
"""

import contextlib
import io
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

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
from ingest.pixels import Scaling, scale
from ingest.plan import encode_groups, plan_units
from ingest.sandbox import Limits, decoder
from ingest.toolchain import toolchain
from shards import storage
from shards.images import encode_image, interleave
from shards.keyed import generator
from shards.schema import SCENES

_SIDE, _TILE = 20480, 512
_NUM_TILES = (_SIDE // _TILE) ** 2
_BOUNDS = (200.0,) * 3, (3000.0,) * 3
_RECIPE = {
    "uint8": Recipe(),
    "uint16": Recipe(normalisation="linear", low=200.0, high=3000.0),
}


def main() -> None:
    """Print the tables."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    for dtype in ("uint8", "uint16"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "scenes", "scene.tif")
            path.parent.mkdir()
            _write_scene(path, dtype)
            rates = _measure(dtype, path, Path(folder, "out"), rounds)
        print(f"{dtype}: " + "  ".join(f"{name} {rate:.1f}/s" for name, rate in rates.items()))
        for ours, theirs in [
            ("pack", "floor"),
            ("pack", "naive"),
            ("2 workers", "1 worker"),
            ("2 workers", "ray data"),
        ]:
            print(f"    {ours} / {theirs}: {rates[ours] / rates[theirs]:.2f}")


def _measure(dtype: str, path: Path, out: Path, rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {}

    def clock(name: str, work: Callable[[], object]) -> None:
        os.sync()  # what one candidate left unwritten must not slow the next one's fsync
        begin = time.perf_counter()
        work()
        times.setdefault(name, []).append(time.perf_counter() - begin)
        shutil.rmtree(out, ignore_errors=True)

    for _ in range(rounds):
        clock("floor", lambda: _tiles(path, dtype))
        clock("naive", lambda: _naive(path, dtype, out))
        calls = _planned(dtype, path, out)
        clock("pack", lambda: [pack_group(*call) for call in calls])  # noqa: B023
    for workers in (1, 2):
        with cluster("", workers):
            for number in range(rounds + 1):
                calls = _planned(dtype, path, out)
                clock("warm-up" if number == 0 else _workers(workers), lambda: _through_ray(calls))  # noqa: B023
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    for number in range(rounds + 1):
        clock("warm-up" if number == 0 else "ray data", lambda: _ray_data(path, dtype, out))
    ray.shutdown()
    times.pop("warm-up")
    return {name: _NUM_TILES / statistics.median(values) for name, values in times.items()}


def _workers(count: int) -> str:
    return f"{count} worker" + "s" * (count > 1)


def _write_scene(path: Path, dtype: str) -> None:
    rng = generator("bench scene")
    look = draw_look(1.0, south=False, rng=rng)
    piece = expose(draw_land((_TILE * 2, _TILE * 2), look, rng), look, rng)[..., :3]
    rows = np.tile((to_uint8 if dtype == "uint8" else to_uint16)(piece), (1, _SIDE // (_TILE * 2), 1))
    with rasterio.open(
        path, "w", driver="GTiff", width=_SIDE, height=_SIDE, count=3, dtype=dtype, tiled=True, compress="deflate",
        predictor=2, blockxsize=512, blockysize=512, crs="EPSG:32633", transform=rasterio.Affine(1, 0, 4e5, 0, -1, 5e6),
    ) as target:  # fmt: skip
        for top in range(0, _SIDE, len(rows)):
            target.write(rows.transpose(2, 0, 1), window=Window(0, top, _SIDE, len(rows)))


def _tile(source: Any, x: int, y: int, dtype: str) -> bytes:
    values = source.read(window=Window(x, y, _TILE, _TILE))
    if dtype == "uint16":
        values = scale(values, Scaling(low=_BOUNDS[0], high=_BOUNDS[1]))
    return encode_image(interleave(values), "jpeg")[1]


def _origins() -> list[tuple[int, int]]:
    return [(x, y) for y in range(0, _SIDE, _TILE) for x in range(0, _SIDE, _TILE)]


def _tiles(scene: Path, dtype: str) -> list[bytes]:
    with rasterio.open(scene) as source:
        return [_tile(source, x, y, dtype) for x, y in _origins()]


def _naive(path: Path, dtype: str, out: Path) -> None:
    out.mkdir()
    with (out / "0.tar").open("wb") as file, webdataset.TarWriter(io.BufferedWriter(file)) as writer:
        for number, data in enumerate(_tiles(path, dtype)):
            writer.write({"__key__": f"{number:06d}", "jpg": data, "json": {"number": number}})


def _planned(dtype: str, path: Path, out: Path) -> list[tuple[Any, ...]]:
    """Plan as the driver does; return the calls of `pack_group`."""
    recipe, limits = _RECIPE[dtype], Limits()
    config = IngestConfig(scenes=str(path.parent), out=str(out))
    place = Place(root=config.scenes, absolute=False)
    rows = [probe_row(decoder(limits), place, row, recipe) for row in build_inventory(config).to_pylist()]
    scenes = SCENES.empty_table().from_pylist(rows, schema=SCENES)
    calls = []
    for name, data in encode_groups(plan_units(scenes, recipe), scenes, recipe, toolchain()):
        storage.write_bytes(group_url(str(out), name, ".parquet"), data)
        calls.append((str(out), name, place, recipe, limits, toolchain()))
    return calls


def _through_ray(calls: list[tuple[Any, ...]]) -> None:
    failures = run_tasks(pack_group, calls, lambda _place, _marker: None, attempts=1, deadline_s=600)
    assert not failures, failures


def _ray_data(path: Path, dtype: str, out: Path) -> None:
    """Do the naive job as one would with Ray Data."""
    rows = [{"path": str(path), "x": x, "y": y} for x, y in _origins()]
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
