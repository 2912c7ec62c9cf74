"""Planning five million scenes: `python -m tests.bench.plan [NUM_SCENES]`.

Makes a synthetic table of probed scenes (mostly of one tile of 512², some of up to 20 × 20, as in a real archive of
chips and scenes), then measures what the driver does alone: cut the scenes into units, mix and group them, encode
each group's units and name it. Prints the seconds of each step and the largest resident memory (the table and
what making it took included), for a tenth and for all; the yardstick is one pass of zstd and sha256 over the table.
"""

import hashlib
import resource
import sys
import time

import numpy as np
import pyarrow as pa

from ingest.config import Recipe
from ingest.plan import encode_groups, in_one_chunk, plan_id, plan_units
from shards.commit import encode_table
from shards.keyed import mix64
from shards.schema import SCENES

_CHUNK = 500_000
_COLUMNS = ("scenes", "units", "groups", "cut s", "encode s", "in all s", "/ yardstick", "peak MB")


def main() -> None:
    """Print the table."""
    num_scenes = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000_000
    print("".join(f"{name:>12}" for name in _COLUMNS))
    for count in (num_scenes // 10, num_scenes):
        scenes = synthetic_scenes(count)
        begin = time.perf_counter()
        for start in range(0, count, _CHUNK):
            hashlib.sha256(encode_table(scenes.slice(start, _CHUNK))).digest()
        yardstick_s = time.perf_counter() - begin
        recipe = Recipe()
        begin = time.perf_counter()
        units = plan_units(scenes, recipe)
        units_s = time.perf_counter() - begin
        names = [name for name, _ in encode_groups(units, scenes, recipe, {"gdal": "bench"})]
        assert plan_id(names)
        all_s = time.perf_counter() - begin
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        figures = units_s, all_s - units_s, all_s, all_s / yardstick_s, peak_mb
        print(f"{count:>12}{units.num_rows:>12}{len(names):>12}" + "".join(f"{figure:>12.1f}" for figure in figures))


def synthetic_scenes(count: int) -> pa.Table:
    """Return probed scenes (SCENES), made without an object per scene."""
    parts = [_chunk(start, min(_CHUNK, count - start)) for start in range(0, count, _CHUNK)]
    return in_one_chunk(parts)


def _chunk(start: int, count: int) -> pa.Table:
    numbers = np.arange(start, start + count, dtype=np.uint64)
    drawn = mix64(numbers, 1)
    names = pa.array([f"{value:016x}" for value in mix64(numbers, 2).tolist()])
    side = (512 * (1 + (drawn % np.uint64(20)) * ((drawn >> np.uint64(32)) % np.uint64(20) == 0))).astype(np.int32)
    paths = pa.array([f"2023/{number % 1000:03d}/scene_{number:08d}_analytic.tif" for number in numbers.tolist()])
    transform = np.tile(np.array([10.0, 0, 4e5, 0, -10, 5e6]), count)
    filled = {
        "scene": names,
        "path": paths,
        "size": pa.array(side.astype(np.int64) ** 2 * 3),
        "etag": pa.array([f"{value:032x}" for value in drawn.tolist()]),
        "state": _constant("used", count),
        "driver": _constant("GTiff", count),
        "width": pa.array(side),
        "height": pa.array(side),
        "num_bands": _constant(3, count),
        "dtype": _constant("uint16", count),
        "crs": _constant("EPSG:32633", count),
        "transform": pa.FixedSizeListArray.from_arrays(pa.array(transform), 6),
        "gsd_m": _constant(10.0, count),
        "block_width": _constant(256, count),
        "block_height": _constant(256, count),
        "palette": _constant(False, count),
        "factor": _constant(1, count),
        "grid_width": pa.array(side),
        "grid_height": pa.array(side),
        "band_indexes": _lists([1, 2, 3], count),
        "low": _lists([100.0, 100.0, 100.0], count),
        "high": _lists([3000.0, 3000.0, 3000.0], count),
    }
    return pa.table(
        [filled[f.name].cast(f.type) if f.name in filled else pa.nulls(count, f.type) for f in SCENES], SCENES
    )


def _constant(value: object, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(value), count)


def _lists(values: list[float], count: int) -> pa.Array:
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * len(values))
    return pa.ListArray.from_arrays(offsets, pa.array(np.tile(np.array(values), count)))


if __name__ == "__main__":
    main()
