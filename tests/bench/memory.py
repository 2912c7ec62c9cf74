"""How much memory a worker takes for the largest scenes: `python -m tests.bench.memory`.

Cuts one scene as large as a Sentinel-2 granule at 10 m (10980² × 4 bands of uint16, 964 MB) into tiles of 512², once
stored in tiles and once in strips, through `ingest` with one worker. Prints the largest resident memory of the
worker and of its decoder (VmHWM), their sum, and its ratio to the limit of 1 GB and to the scene.
"""

import re
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

import ingest  # noqa: F401  (sets GDAL's environment before rasterio is imported)

# isort: split
import rasterio

from ingest.config import IngestConfig
from ingest.run import ingest as run_ingest

_SIDE, _BANDS, _LIMIT_MB = 10980, ("blue", "green", "red", "nir"), 1000
_SCENE_MB = _SIDE**2 * len(_BANDS) * 2 / 1e6


def main() -> None:
    """Print the table."""
    print(f"{'layout':>8}{'worker MB':>12}{'decoder MB':>12}{'together':>10}{'/ limit':>9}{'/ scene':>9}{'tiles/s':>9}")
    for layout, options in [
        ("tiled", {"tiled": True, "blockxsize": 512, "blockysize": 512}),
        ("strips", {"tiled": False, "blockysize": 16}),
    ]:
        with tempfile.TemporaryDirectory() as folder:
            _write_scene(Path(folder, "scenes"), options)
            config = IngestConfig(
                scenes=f"{folder}/scenes",
                out=f"{folder}/data",
                workers=1,
                bands=_BANDS,
                normalisation="keep",
                dtype="uint16",
            )
            watch = _Watch()
            begin = time.perf_counter()
            made = run_ingest(config).version
            rate = made.num_samples / (time.perf_counter() - begin)
            worker, decoder = watch.stop()
        both = worker + decoder
        print(
            f"{layout:>8}{worker:>12.0f}{decoder:>12.0f}{both:>10.0f}{both / _LIMIT_MB:>9.2f}{both / _SCENE_MB:>9.2f}"
            f"{rate:>9.1f}"
        )


def _write_scene(folder: Path, options: dict[str, object]) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = rng.integers(200, 4000, (len(_BANDS), 512, _SIDE), np.uint16)
    profile = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 4e5, 0, -10, 5e6), "compress": "lzw"}
    with rasterio.open(
        folder / "s2.tif", "w", driver="GTiff", width=_SIDE, height=_SIDE, count=len(_BANDS), dtype="uint16",
        interleave="pixel", **profile, **options,
    ) as target:  # fmt: skip
        target.descriptions = _BANDS
        for top in range(0, _SIDE, 512):
            height = min(512, _SIDE - top)
            window = rasterio.windows.Window(0, top, _SIDE, height)
            # Other values in every row of tiles: equal tiles would be left out.
            target.write(rows[:, :height] + np.uint16(top // 512), window=window)


class _Watch:
    """Looks at the processes of this run twice a second and keeps their largest resident memory, MB."""

    def __init__(self) -> None:
        self._peaks: dict[str, float] = {"ray::": 0.0, "ingest.decoder": 0.0}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def stop(self) -> tuple[float, float]:
        self._done.set()
        self._thread.join()
        return self._peaks["ray::"], self._peaks["ingest.decoder"]

    def _look(self) -> None:
        while not self._done.wait(0.2):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    command = (process / "cmdline").read_text()
                    found = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())
                except OSError:
                    continue  # it ended meanwhile
                for name in self._peaks:
                    if name in command and found:
                        self._peaks[name] = max(self._peaks[name], int(found[1]) / 1000)


if __name__ == "__main__":
    main()
