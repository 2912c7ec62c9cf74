"""One worker's packing against its floor: `python -m tests.bench.ingest`.

On one real-sized tiled GeoTIFF (4096² × 3, DEFLATE, 512² tiles) for uint8 and uint16, in one run and in turn:

- floor: window read and JPEG encoding alone;
- naive: window read, JPEG, webdataset's TarWriter (what a first script does);
- pack: `ingest.pack.pack_group` as Ray calls it: masks, figures, filters, hashes, metadata, tables, marker.

Prints tiles/s (median of the rounds) and the ratios pack/floor and pack/naive.
"""

import io
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

import ingest  # noqa: F401  (sets GDAL's environment before rasterio is imported)

# isort: split
import rasterio
import webdataset
from rasterio.windows import Window

from ingest.config import IngestConfig, Recipe
from ingest.inventory import list_scenes
from ingest.landcover import draw_land, draw_look, expose, to_uint8, to_uint16
from ingest.pack import pack_group
from ingest.pixels import Scaling, scale
from ingest.plan import plan_units
from ingest.probe import probe_scenes
from ingest.run import write_units
from shards.images import encode_image
from shards.keyed import generator

_SIDE, _TILE, _ROUNDS = 4096, 512, 5


def main() -> None:
    """Print the table."""
    print(f"{'':8}{'floor/s':>10}{'naive/s':>10}{'pack/s':>10}{'pack/floor':>12}{'pack/naive':>12}")
    for dtype in ("uint8", "uint16"):
        with tempfile.TemporaryDirectory() as folder:
            scene = Path(folder, "scenes", "scene.tif")
            scene.parent.mkdir()
            _write_scene(scene, dtype)
            times: dict[str, list[float]] = {"floor": [], "naive": [], "pack": []}
            for number in range(_ROUNDS):
                times["floor"].append(_seconds(_floor, scene, dtype))
                times["naive"].append(_seconds(_naive, scene, dtype, Path(folder, f"{number}.tar")))
                times["pack"].append(_pack_seconds(scene.parent, Path(folder, f"out{number}")))
        count = (_SIDE // _TILE) ** 2
        floor, naive, pack = (count / statistics.median(values) for values in times.values())
        print(f"{dtype:8}{floor:>10.1f}{naive:>10.1f}{pack:>10.1f}{pack / floor:>12.2f}{pack / naive:>12.2f}")


def _write_scene(path: Path, dtype: str) -> None:
    rng = generator("bench scene")
    look = draw_look(1.0, south=False, rng=rng)
    quarter = expose(draw_land((_SIDE // 4, _SIDE // 4), look, rng), look, rng)[..., :3]
    pixels = np.tile((to_uint8 if dtype == "uint8" else to_uint16)(quarter), (4, 4, 1)).transpose(2, 0, 1)
    with rasterio.open(
        path, "w", driver="GTiff", width=_SIDE, height=_SIDE, count=3, dtype=dtype, tiled=True, compress="deflate",
        predictor=2, blockxsize=512, blockysize=512, crs="EPSG:32633", transform=rasterio.Affine(1, 0, 4e5, 0, -1, 5e6),
    ) as target:  # fmt: skip
        target.write(pixels)


def _tiles(scene: Path, dtype: str) -> "list[bytes]":
    encoded = []
    scaling = Scaling(low=(200.0,) * 3, high=(3000.0,) * 3, offset=0.0)
    with rasterio.open(scene) as source:
        for y in range(0, _SIDE, _TILE):
            for x in range(0, _SIDE, _TILE):
                values = source.read(window=Window(x, y, _TILE, _TILE))
                pixels = scale(values, scaling) if dtype == "uint16" else values
                encoded.append(encode_image(np.ascontiguousarray(pixels.transpose(1, 2, 0)), "jpeg")[1])
    return encoded


def _floor(scene: Path, dtype: str) -> None:
    _tiles(scene, dtype)


def _naive(scene: Path, dtype: str, out: Path) -> None:
    with out.open("wb") as file, webdataset.TarWriter(io.BufferedWriter(file)) as writer:
        for number, data in enumerate(_tiles(scene, dtype)):
            writer.write({"__key__": f"{number:06d}", "jpg": data, "json": {"number": number}})


def _pack_seconds(scenes: Path, out: Path) -> float:
    config = IngestConfig(scenes=str(scenes), out=str(out))
    recipe = Recipe()
    probed = probe_scenes(str(scenes), list_scenes(config).to_pylist(), recipe)
    units = plan_units(probed, recipe)
    write_units(str(out), "plan", units, probed)
    groups = range(units["group"][-1].as_py() + 1)
    begin = time.perf_counter()
    for group in groups:
        pack_group(str(out), "plan", group, str(scenes), recipe)
    return time.perf_counter() - begin


def _seconds(work, *arguments) -> float:
    begin = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
