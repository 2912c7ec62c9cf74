"""Cut one unit of a scene into encoded tiles; runs inside the decoder process.

A unit is a rectangle of the scene's tile grid. Source rows are read in steps that follow the file's own blocks and
are kept until the last tile that needs them is cut, so that each block is decoded once; only a unit too wide for
memory is cut in parts. Images of tiles go to a scratch file one by one, and the worker is told of each: it makes their
hashes, JSON and rows while the next ones are cut.

Memory: source rows come in steps of at most 128 MB of values, without averaging at least a row of tiles; masks and the
scaled copy take up to twice that again, two rows of tiles the rest. A unit too wide for this, down to one tile, is cut
in parts. Where n × n pixels are averaged a step is at least one row of the file's blocks (or n rows) across a tile:
26 MB for n = 32, tiles of 512² × 3 bytes and blocks of 512 rows, 80 MB for n = 100.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from ingest import warp
from ingest.config import Recipe
from ingest.figures import TileFigures, measure, refusal
from ingest.grid import tile_origins
from ingest.pixels import encoding
from ingest.placement import Ground, place_tiles
from ingest.reasons import SceneRejectedError
from ingest.scene import Scene, SceneFile, Strip, open_scene
from ingest.strips import Rows, Tile, averaged, finished, joined, rows_of, stacked
from shards.images import encode_image, is_picture, to_picture

Tell = Callable[[dict[str, Any]], None]

_STEP_BYTES = 128 * 2**20  # of source values read at a time
_MAX_BLOCK_ROWS = 2048  # a file stored in taller blocks (whole compressed strips) is read by rows of tiles


def cut_units(
    files: Sequence[SceneFile], units: Sequence[Mapping[str, Any]], recipe: Recipe, scratch: BinaryIO, tell: Tell
) -> dict[str, Any]:
    """Write the images of the tiles of units of one scene to the scratch file from where it stands.

    Args:
        files: the scene's, in the order of its row; opened once for all units.
        units: columns of the plan and of the scenes table, as JSON holds them.
        recipe: the plan's.
        scratch: takes the encoded tiles.
        tell: called for each of them once it is there with what JSON can hold: {"tile": what its own JSON says of it,
            "figures": further columns of the samples table, "at": where its image begins}.

    Returns:
        {"rejects": rows of the rejects table}.
    """
    cutters = [_Cutter(unit, recipe, scratch, tell) for unit in units]
    try:
        with open_scene(files, recipe) as scene:
            corners = [corner for cutter in cutters for corner in cutter.corners]
            places = place_tiles(_ground(units[0], recipe), corners, recipe.tile_px, units[0], recipe)
            for cutter in cutters:
                cutter.cut(scene, places)
    except SceneRejectedError as rejection:
        for cutter in cutters:
            cutter.reject_rest(rejection)
    return {"rejects": [row for cutter in cutters for row in cutter.rejects]}


class _Cutter:
    """The state of cutting one unit: what is finished, and which tiles are still to come."""

    def __init__(self, unit: Mapping[str, Any], recipe: Recipe, scratch: BinaryIO, tell: Tell) -> None:
        self._unit, self._recipe, self._scratch, self._tell = unit, recipe, scratch, tell
        stride = recipe.stride_px or recipe.tile_px
        xs = tile_origins(unit["grid_width"], recipe.tile_px, stride, recipe.edge)
        ys = tile_origins(unit["grid_height"], recipe.tile_px, stride, recipe.edge)
        self._xs: list[int] = xs[unit["first_column"] : unit["end_column"]].tolist()
        self._ys: list[int] = ys[unit["first_row"] : unit["end_row"]].tolist()
        self.corners = [(x, y) for y in self._ys for x in self._xs]
        self._places: Mapping[tuple[int, int], Mapping[str, Any]] = {}
        self._tile_CHW: NDArray[Any] | None = None
        self._done: set[tuple[int, int]] = set()
        self.rejects: list[dict[str, Any]] = []

    def cut(self, scene: Scene, places: Mapping[tuple[int, int], Mapping[str, Any]]) -> None:
        """Cut, judge and encode all tiles; a strip that cannot be decoded costs the tiles that need it."""
        self._places = places
        if self._recipe.warp_crs:
            for corner in self.corners:
                self._cut_alone(scene, *corner)
            return
        for xs in self._parts():
            self._cut_part(scene, xs)

    def reject_rest(self, rejection: SceneRejectedError) -> None:
        """Reject all tiles that were not finished."""
        for corner in self.corners:
            if corner not in self._done:
                self._reject(*corner, rejection.code, rejection.detail)

    def _parts(self) -> Iterator[list[int]]:
        """Yield the columns in parts of which one step of rows fits into memory: mostly all at once."""
        factor, block = self._unit["factor"], self._block_rows()
        height = self._recipe.tile_px + block // factor
        if factor > 1:  # of a step the narrowest, and the rows that it leaves for the next one
            height += (block + factor) * factor
        width = max(1, _STEP_BYTES // (height * self._pixel_bytes()))
        start = 0
        for place, x in enumerate(self._xs):
            if x + self._recipe.tile_px - self._xs[start] > width and place > start:
                yield self._xs[start:place]
                start = place
        yield self._xs[start:]

    def _pixel_bytes(self) -> int:
        return len(self._recipe.bands) * int(np.dtype(self._unit["dtype"]).itemsize)

    def _block_rows(self) -> int:
        block = int(self._unit["block_height"])
        return block if block <= _MAX_BLOCK_ROWS else 1

    def _cut_part(self, scene: Scene, xs: list[int]) -> None:
        kept: Rows | None = None
        for y in self._ys:
            try:
                kept = self._grown(scene, kept.from_row(y) if kept else None, xs, y)
            except SceneRejectedError:
                kept = None
                for x in xs:
                    self._cut_alone(scene, x, y)
                continue
            for x in xs:
                self._add(kept.tile(x, y, self._recipe.tile_px))

    def _grown(self, scene: Scene, kept: Rows | None, xs: list[int], y: int) -> Rows:
        """Return the kept rows and as many more as the tiles at y and the blocks that they lie in have."""
        top = kept.bottom if kept else y
        needed = min(y + self._recipe.tile_px, self._unit["grid_height"])
        if kept and top >= needed:
            return kept
        block, factor = self._block_rows(), self._unit["factor"]
        end_of_block = -(-needed * factor // block) * block // factor
        last = min(self._ys[-1] + self._recipe.tile_px, self._unit["grid_height"])
        bottom = max(needed, min(end_of_block, last))
        return joined(kept, self._read(scene, xs[0], top, self._right(xs[-1]), bottom))

    def _right(self, x: int) -> int:
        return min(x + self._recipe.tile_px, int(self._unit["grid_width"]))

    def _read(self, scene: Scene, left: int, top: int, right: int, bottom: int) -> Rows:
        """Read a rectangle of grid pixels."""
        factor = self._unit["factor"]
        window = Window(left * factor, top * factor, (right - left) * factor, (bottom - top) * factor)
        strip = scene.read(window, self._recipe) if factor == 1 else self._read_averaged(scene, window)
        return finished(strip, left, top, self._unit, self._recipe)

    def _read_averaged(self, scene: Scene, window: Window) -> Strip:
        """Read source pixels in steps of whole blocks and average each; rows left over wait for the next step."""
        factor, block = self._unit["factor"], self._block_rows()
        step = max(block, _STEP_BYTES // (window.width * self._pixel_bytes()) // block * block)
        top, bottom = window.row_off, window.row_off + window.height
        ends = [*range((top // block) * block + step, bottom, step), bottom]
        parts: list[Strip] = []
        left: Strip | None = None
        for end in ends:
            strip = scene.read(Window(window.col_off, top, window.width, end - top), self._recipe)
            strip = strip if left is None else stacked([left, strip])
            whole = strip.values_CHW.shape[1] // factor * factor
            if whole:
                parts.append(averaged(rows_of(strip, slice(whole)), factor))
            rest = rows_of(strip, slice(whole, None))
            left, top = (stacked([rest]) if rest.values_CHW.shape[1] else None), end  # a copy, so that the step may go
        return stacked(parts)

    def _cut_alone(self, scene: Scene, x: int, y: int) -> None:
        """Cut one tile from a window of its own, or reject it."""
        try:
            if self._recipe.warp_crs:
                rows = self._read_warped(scene, x, y)
            else:
                bottom = min(y + self._recipe.tile_px, self._unit["grid_height"])
                rows = self._read(scene, x, y, self._right(x), bottom)
        except SceneRejectedError as rejection:
            self._reject(x, y, rejection.code, rejection.detail)
        else:
            self._add(rows.tile(x, y, self._recipe.tile_px))

    def _read_warped(self, scene: Scene, x: int, y: int) -> Rows:
        strip = _warped(scene, self._unit, x, y, self._recipe)
        return finished(strip, x, y, self._unit, self._recipe)

    def _add(self, tile: Tile) -> None:
        # Planes that lie together cost less to measure and to encode than interleaved pixels.
        pixels_HWC = self._together(tile.pixels_CHW).transpose(1, 2, 0)
        picture = to_picture(pixels_HWC) if is_picture(pixels_HWC) else None
        figures = measure(pixels_HWC, tile.valid_HW, picture)
        refused = refusal(figures, self._recipe, tile.cloud_share)
        if refused:
            self._reject(tile.x, tile.y, *refused)
            return
        self._done.add((tile.x, tile.y))
        extension, image = encode_image(pixels_HWC, encoding(self._recipe), self._recipe.jpeg_quality, picture)
        at = self._scratch.tell()
        self._scratch.write(image)
        self._scratch.flush()
        self._tell(
            {
                "tile": self._described(tile, figures),
                "figures": {
                    "num_valid": figures.num_valid,
                    "band_sums": figures.band_sums,
                    "band_squares": figures.band_squares,
                    "member": extension,
                    "member_size": len(image),
                },
                "at": at,
            }
        )

    def _together(self, pixels_CHW: NDArray[Any]) -> NDArray[Any]:
        """Return a copy whose planes lie together, which the next tile overwrites: in new memory it costs twice."""
        if self._tile_CHW is None:
            self._tile_CHW = np.empty_like(pixels_CHW, order="C")
        np.copyto(self._tile_CHW, pixels_CHW, casting="no")
        return self._tile_CHW

    def _described(self, tile: Tile, figures: TileFigures) -> dict[str, Any]:
        """Return what the tile's own JSON says of it, which are columns of the samples table but for the last two."""
        unit, side = self._unit, self._recipe.tile_px
        factor = unit["factor"] or 1
        return {
            "key": f"{unit['scene']}-y{tile.y:06d}-x{tile.x:06d}",
            "scene": unit["scene"],
            "x": tile.x * factor,
            "y": tile.y * factor,
            "width": side,
            "height": side,
            **self._places[tile.x, tile.y],
            "time": unit["time"],
            "sensor": unit["sensor"] or self._recipe.sensor or None,
            "label": unit["label"],
            "valid_share": round(figures.valid_share, 6),
            "contrast": round(figures.contrast, 6),
            "entropy": round(figures.entropy, 6),
            "black_share": round(figures.black_share, 6),
            "saturated_share": round(figures.saturated_share, 6),
            "clipped_share": round(tile.clipped_share, 6),
            "cloud_share": None if tile.cloud_share is None else round(tile.cloud_share, 6),
            "dhash": figures.dhash,
            "path": unit["path"],
            "bands": list(self._recipe.bands),
        }

    def _reject(self, x: int, y: int, reason: str, detail: str) -> None:
        self._done.add((x, y))
        factor = self._unit["factor"] or 1
        place = {"scene": self._unit["scene"], "path": self._unit["path"], "x": x * factor, "y": y * factor}
        self.rejects.append({**place, "reason": reason, "detail": detail})


def _ground(unit: Mapping[str, Any], recipe: Recipe) -> Ground:
    if recipe.warp_crs:
        grid = _grid(unit, recipe)
        return Ground(crs=grid.crs, transform=grid.transform, gsd_m=recipe.target_gsd_m)
    factor = unit["factor"]
    transform = unit["transform"]
    if transform:
        a, b, c, d, e, f = transform
        transform = (a * factor, b * factor, c, d * factor, e * factor, f)
    return Ground(crs=unit["crs"], transform=transform, gsd_m=unit["gsd_m"] and unit["gsd_m"] * factor)


def _grid(unit: Mapping[str, Any], recipe: Recipe) -> warp.Grid:
    return _target_grid(unit["crs"], tuple(unit["transform"]), unit["width"], unit["height"], recipe)


_target_grid = functools.lru_cache(maxsize=4)(warp.target_grid)  # the same for all tiles of a unit


def _warped(scene: Scene, unit: Mapping[str, Any], x: int, y: int, recipe: Recipe) -> Strip:
    """Return one tile of the target grid; without data where the scene has none."""
    grid, side = _grid(unit, recipe), recipe.tile_px
    a, b, c, d, e, f = unit["transform"]
    source = warp.Grid(crs=unit["crs"], transform=(a, b, c, d, e, f), width=unit["width"], height=unit["height"])
    window = warp.warp_window(grid, x, y, side, source)
    if window is None:
        nothing = np.zeros((len(recipe.bands), side, side), unit["dtype"])
        cloudless = np.zeros((side, side), np.bool_) if recipe.cloud_band else None
        return Strip(nothing, np.zeros((side, side), np.bool_), cloudless)
    strip = scene.read(window, recipe)
    left, top = window.col_off, window.row_off
    place = (a, b, a * left + b * top + c, d, e, d * left + e * top + f), source.crs, grid, x, y, side
    valid = np.ones(strip.values_CHW.shape[1:], np.bool_) if strip.valid_HW is None else strip.valid_HW
    values, warped_valid = warp.warp_tile(strip.values_CHW, valid, *place)
    cloudy = None
    if strip.cloudy_HW is not None:
        cloudy = warp.warp_tile(strip.cloudy_HW[None].astype(np.uint8), valid, *place)[0][0] > 0
    return Strip(values, warped_valid, cloudy)
