"""Make one group: cut and encode its units' tiles, sort them into shards, write tables and the marker.

Idempotent: the same plan gives the same bytes, at names that are made of the content, so that a task may run
twice, die anywhere, or finish late without harm. The marker is written last and only once.

Memory: a strip of a scene (a row of tiles, at most 128 MB of values) at a time; encoded tiles wait in a scratch file.
"""

import hashlib
import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rasterio.windows import Window

from ingest import raster
from ingest.config import Recipe
from ingest.grid import tile_origins
from ingest.pixels import Scaling, TileFigures, measure, outside, policy, refusal, scale
from ingest.plan import encoding
from ingest.reasons import SceneRejectedError
from shards import storage
from shards.commit import encode_table
from shards.images import Pixels, encode_image
from shards.keyed import hash64
from shards.schema import REJECTS, SAMPLES, canonical_json, sha256_hex
from shards.tar import ShardWriter

_STRIP_BYTES = 128 * 2**20  # of source values read at a time


class Tile(NamedTuple):
    """One tile before encoding."""

    x: int
    y: int
    pixels_HWC: Pixels
    valid_HW: NDArray[np.bool_]
    clipped_share: float


class _Scratch:
    """Encoded tiles of a group on local disk, until their order is known."""

    def __init__(self, file: BinaryIO, num_bands: int) -> None:
        self._file = file
        self.rows: list[dict[str, Any]] = []
        self.rejects: list[dict[str, Any]] = []
        self.num_valid = 0
        # Of integer types these are Python integers: exact however many tiles there are.
        self.sums: list[float] = [0] * num_bands
        self.squares: list[float] = [0] * num_bands

    def add(self, row: dict[str, Any], image: bytes, metadata: bytes) -> None:
        self.rows.append({**row, "_at": (self._file.tell(), len(image), len(metadata))})
        self._file.write(image + metadata)

    def add_figures(self, figures: TileFigures) -> None:
        self.num_valid += figures.num_valid
        for band, (total, square) in enumerate(zip(figures.sums, figures.squares, strict=True)):
            self.sums[band] += total
            self.squares[band] += square

    def read(self, row: dict[str, Any]) -> tuple[bytes, bytes]:
        position, image_size, metadata_size = row["_at"]
        self._file.seek(position)
        data = self._file.read(image_size + metadata_size)
        return data[:image_size], data[image_size:]


def group_url(out: str, plan: str, group: int, suffix: str) -> str:
    """Return where a group's file lies; the marker has the suffix ".json"."""
    return storage.join(out, "plans", plan, "groups", f"{group:06d}{suffix}")


def pack_group(out: str, plan: str, group: int, root: str, recipe: Recipe) -> dict[str, Any]:
    """Pack one group of a plan and return its marker; a group that has one is done already.

    Args:
        out: the dataset.
        plan: id of the plan; its units lie in plans/<id>/units.parquet, one row group per group.
        group: number of the group.
        root: the scenes' root.
        recipe: the plan's recipe.

    Raises:
        RuntimeError: a marker of this group exists and says something else: the build is not deterministic.
    """
    marker_url = group_url(out, plan, group, ".json")
    if storage.exists(marker_url):
        return _read_marker(marker_url)
    units = read_units(out, plan, group)
    with tempfile.TemporaryDirectory(prefix="ingest-") as folder:
        with Path(folder, "tiles").open("w+b") as file:
            scratch = _Scratch(file, len(recipe.bands))
            # Units of one scene in a row, so that a remote scene is fetched once per group.
            units.sort(key=lambda unit: (unit["scene"], unit["first_row"]))
            for _, of_scene in itertools.groupby(units, key=lambda unit: str(unit["scene"])):
                _pack_scene(list(of_scene), root, recipe, scratch)
            shards, samples = _write_shards(scratch, out, recipe, Path(folder))
        marker = {
            "group": group,
            "shards": shards,
            "samples": _put_table(out, plan, group, "samples", pa.Table.from_pylist(samples, schema=SAMPLES)),
            "rejects": _put_table(out, plan, group, "rejects", pa.Table.from_pylist(scratch.rejects, schema=REJECTS)),
            "num_valid": scratch.num_valid,
            "sums": scratch.sums,
            "squares": scratch.squares,
        }
    return _put_marker(marker_url, marker)


def read_units(out: str, plan: str, group: int) -> list[dict[str, Any]]:
    """Read the units of one group: unit columns and the probed scene's columns in one row."""
    fs, path = storage.filesystem(storage.join(out, "plans", plan, "units.parquet"))
    with fs.open(path, "rb") as file:
        rows: list[dict[str, Any]] = pq.ParquetFile(file).read_row_group(group).to_pylist()
    return rows


def _pack_scene(units: Sequence[Mapping[str, Any]], root: str, recipe: Recipe, scratch: _Scratch) -> None:
    with _local_copy(storage.child(root, units[0]["path"]), units[0]) as path:
        for unit in units:
            _pack_unit(unit, path, recipe, scratch)


def _pack_unit(unit: Mapping[str, Any], path: str, recipe: Recipe, scratch: _Scratch) -> None:
    placed = _Placement(unit)
    for tile in _read_tiles(unit, path, recipe, scratch):
        figures = measure(tile.pixels_HWC, tile.valid_HW)
        refused = refusal(figures, recipe)
        if refused:
            scratch.rejects.append(_reject(unit, tile.x, tile.y, *refused))
            continue
        height, width, _ = tile.pixels_HWC.shape
        row = {
            "key": f"{unit['scene']}-y{tile.y:06d}-x{tile.x:06d}",
            "scene": unit["scene"],
            "x": tile.x,
            "y": tile.y,
            "width": width,
            "height": height,
            **placed.of_tile(tile.x, tile.y, width, height),
            "sensor": recipe.sensor or None,
            "label": unit["label"],
            "valid_share": round(figures.valid_share, 6),
            "contrast": round(figures.contrast, 6),
            "clipped_share": round(tile.clipped_share, 6),
        }
        extension, image = encode_image(tile.pixels_HWC, encoding(recipe), recipe.jpeg_quality)
        metadata = canonical_json({**_plain(row), "path": unit["path"], "bands": list(recipe.bands)})
        row |= {"member": extension, "member_size": len(image)}
        row |= {"member_sha256": hashlib.sha256(image).digest(), "json_sha256": hashlib.sha256(metadata).digest()}
        scratch.add(row, image, metadata)
        scratch.add_figures(figures)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    time = row["time"]
    return {**row, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ") if time else None}


def _reject(unit: Mapping[str, Any], x: int | None, y: int | None, reason: str, detail: str) -> dict[str, Any]:
    return {"scene": unit["scene"], "path": unit["path"], "x": x, "y": y, "reason": reason, "detail": detail}


def _read_tiles(unit: Mapping[str, Any], path: str, recipe: Recipe, scratch: _Scratch) -> Iterator[Tile]:
    """Yield the unit's tiles row by row; tiles of a strip that cannot be decoded go to the rejects."""
    stride = recipe.stride_px or recipe.tile_px
    xs = tile_origins(unit["width"], recipe.tile_px, stride, recipe.edge).tolist()
    ys = tile_origins(unit["height"], recipe.tile_px, stride, recipe.edge)[unit["first_row"] : unit["end_row"]].tolist()
    # A strip of a very wide scene is read in parts, so that memory has a bound.
    tile_bytes = recipe.tile_px**2 * len(recipe.bands) * np.dtype(unit["dtype"]).itemsize
    in_part = max(1, _STRIP_BYTES // tile_bytes)
    strips = [(y, xs[start : start + in_part]) for y in ys for start in range(0, len(xs), in_part)]
    try:
        with raster.open_scene(path, unit["driver"]) as source:
            while strips:
                yield from _cut_strip(source, unit, *strips[0], recipe, scratch)
                del strips[0]
    except SceneRejectedError as rejection:
        for y, part in strips:
            scratch.rejects += [_reject(unit, x, y, rejection.code, rejection.detail) for x in part]


def _cut_strip(
    source: Any, unit: Mapping[str, Any], y: int, xs: list[int], recipe: Recipe, scratch: _Scratch
) -> Iterator[Tile]:
    left, right = xs[0], min(xs[-1] + recipe.tile_px, unit["width"])
    window = Window(left, y, right - left, min(recipe.tile_px, unit["height"] - y))
    try:
        values_CHW, valid_HW = raster.read_strip(
            source, tuple(unit["band_indexes"]), window, zero_is_nodata=recipe.zero_is_nodata
        )
    except SceneRejectedError as rejection:
        scratch.rejects += [_reject(unit, x, y, rejection.code, rejection.detail) for x in xs]
        return
    clipped_HW = None
    if policy(recipe, unit["dtype"]) in ("linear", "percentile"):
        offset = recipe.offset if policy(recipe, unit["dtype"]) == "linear" else 0.0
        scaling = Scaling(low=tuple(unit["low"]), high=tuple(unit["high"]), offset=offset)
        clipped_HW = outside(values_CHW, scaling) & valid_HW
        values_CHW = scale(values_CHW, scaling)
    if not valid_HW.all():
        values_CHW[:, ~valid_HW] = 0
    values_HWC = np.ascontiguousarray(values_CHW.transpose(1, 2, 0))
    for x in xs:
        here = np.s_[:, x - left : x - left + recipe.tile_px]
        valid = valid_HW[here]
        clipped = 0.0 if clipped_HW is None else float(clipped_HW[here].sum()) / max(int(valid.sum()), 1)
        yield Tile(x, y, _pad(values_HWC[here], recipe.tile_px), _pad(valid, recipe.tile_px), clipped)


def _pad(array: NDArray[Any], side: int) -> NDArray[Any]:
    """Fill an array [h, w, …] up to [side, side, …] with zeros at the bottom and right."""
    height, width = array.shape[:2]
    if (height, width) == (side, side):
        return array
    return np.pad(array, [(0, side - height), (0, side - width)] + [(0, 0)] * (array.ndim - 2))


@contextmanager
def _local_copy(url: str, scene: Mapping[str, Any]) -> Iterator[str]:
    """Yield a local path of a scene: itself, or one download that is removed afterwards.

    Raises:
        OSError: the scene is gone, or no longer the one that was probed.
    """
    found = storage.stat(url)
    if (found.size, found.etag) != (scene["size"], scene["etag"]):
        raise OSError(f"{url} changed while it was being ingested: run again")
    if storage.is_local(url):
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="ingest-") as folder:
        target = Path(folder, "scene")
        fs, path = storage.filesystem(url)
        fs.get_file(path, str(target))
        if target.stat().st_size != scene["size"]:
            raise OSError(f"{url} was fetched with {target.stat().st_size} bytes instead of {scene['size']}")
        yield str(target)


class _Placement:
    """Where the tiles of a scene lie on the ground."""

    def __init__(self, unit: Mapping[str, Any]) -> None:
        self._crs: str | None = unit["crs"]
        self._transform: list[float] | None = unit["transform"]
        self._scene = {"crs": unit["crs"], "gsd_m": unit["gsd_m"], "time": unit["time"]}

    def of_tile(self, x: int, y: int, width: int, height: int) -> dict[str, Any]:
        """Return crs, transform, bounds, lon, lat, gsd_m and time of a tile; null where there is no georeference."""
        nowhere = {"transform": None, "bounds": None, "lon": None, "lat": None}
        if self._transform is None:
            return self._scene | nowhere
        a, b, c, d, e, f = self._transform
        left_top = [a, b, a * x + b * y + c, d, e, d * x + e * y + f]
        corners = np.array([[x, x + width, x, x + width], [y, y, y + height, y + height]], np.float64)
        east, north = a * corners[0] + b * corners[1] + c, d * corners[0] + e * corners[1] + f
        bounds = [float(east.min()), float(north.min()), float(east.max()), float(north.max())]
        lon, lat = (None, None) if self._crs is None else self._centre(bounds)
        return self._scene | {"transform": left_top, "bounds": bounds, "lon": lon, "lat": lat}

    def _centre(self, bounds: list[float]) -> tuple[float | None, float | None]:
        assert self._crs is not None
        middle = np.array([(bounds[0] + bounds[2]) / 2]), np.array([(bounds[1] + bounds[3]) / 2])
        lon, lat = raster.lonlat(self._crs, *middle)[:, 0].tolist()
        # Seven decimals are a centimetre: enough, and safe from the last bits of another PROJ build.
        return (None, None) if np.isnan(lon) else (round(lon, 7), round(lat, 7))


def _write_shards(
    scratch: _Scratch, out: str, recipe: Recipe, folder: Path
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Sort the tiles by keyed hash and cut them by equal bytes; return rows of the shards and samples tables."""
    scratch.rows.sort(key=lambda row: (hash64("mix", recipe.seed, row["key"]), row["key"]))
    sizes = np.array([row["_at"][1] + row["_at"][2] for row in scratch.rows], np.float64)
    if not len(sizes):
        return [], []
    count = max(1, round(sizes.sum() / (recipe.shard_mb * 1e6)))
    places = np.minimum((np.cumsum(sizes) - sizes) * count // sizes.sum(), count - 1)
    shards, samples = [], []
    for place in range(count):
        rows = [row for row, mine in zip(scratch.rows, places == place, strict=True) if mine]
        if rows:
            shards.append(_write_shard(scratch, rows, out, folder / f"{place}.tar"))
            samples += [
                {name: row.get(name) for name in SAMPLES.names} | {"shard": shards[-1]["shard"]} for row in rows
            ]
    return shards, samples


def _write_shard(scratch: _Scratch, rows: list[dict[str, Any]], out: str, path: Path) -> dict[str, Any]:
    with path.open("wb") as file:
        writer = ShardWriter(file)
        for row in rows:
            image, metadata = scratch.read(row)
            extent = writer.write(row["key"], {row["member"]: image, "json": metadata})
            row |= {"offset": extent.offset, "size": extent.size, "crc32c": extent.crc32c}
            row["member_offset"] = extent.offset + 512
        writer.close()
    name = writer.sha256()
    url = f"shards/{name}.tar"
    if not storage.exists(storage.join(out, url)):
        storage.put_file(path, storage.join(out, url))
    return {"shard": name, "url": url, "size": writer.size, "num_samples": writer.num_samples}


def _put_table(out: str, plan: str, group: int, name: str, table: pa.Table) -> dict[str, Any]:
    data = encode_table(table)
    storage.write_bytes(group_url(out, plan, group, f"-{name}.parquet"), data)
    return {"sha256": sha256_hex(data), "num_rows": table.num_rows}


def _put_marker(url: str, marker: dict[str, Any]) -> dict[str, Any]:
    data = canonical_json(marker)
    if not storage.create_bytes(url, data) and storage.read_bytes(url) != data:
        raise RuntimeError(f"{url} exists and says something else: the same plan gave other bytes")
    return _read_marker(url)


def _read_marker(url: str) -> dict[str, Any]:
    marker: dict[str, Any] = json.loads(storage.read_bytes(url))
    return marker
