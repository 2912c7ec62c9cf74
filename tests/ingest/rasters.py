"""What the tests of the decoding side share: small rasters, and cutting them in this process."""

import io
import shutil

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from ingest.config import Recipe
from ingest.cut import cut_units
from ingest.grid import tile_origins
from ingest.inventory import scene_id
from ingest.probe import probe_scene
from ingest.reasons import SceneRejectedError
from ingest.scene import SceneFile, open_scene, read_header
from shards import storage
from shards.images import decode_image
from shards.schema import INVENTORY

PLACED = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)}
"""A profile: 10 m pixels on the ground."""
MEASURED = {"min_valid_share": 0.0, "min_contrast": 0.0, "encoding": "png"}
"""Values of a recipe that keeps every tile that has data, without loss."""


def write(path, pixels, *, colours=None, names=None, tags=None, colormap=None, mask=None, **profile):
    """Write [C, H, W] as a raster and return its path."""
    count, height, width = pixels.shape
    profile = {"driver": "GTiff"} | profile
    with rasterio.open(path, "w", width=width, height=height, count=count, dtype=pixels.dtype, **profile) as target:
        if colours:
            target.colorinterp = [ColorInterp[name] for name in colours]
        if colormap:
            target.write_colormap(1, colormap)
        if mask is not None:
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
                target.write_mask(mask)
        target.write(pixels)
        if names:
            target.descriptions = names
        if tags:
            target.update_tags(**tags)
    return str(path)


def land(count, dtype="uint8", side=64, width=None):
    """Return noise [C, H, W] without zeros."""
    return np.random.default_rng(0).integers(1, 200, (count, side, width or side)).astype(dtype)


def smooth(count, side, dtype="uint8"):
    """Return gentle waves [C, H, W] without zeros, which lossy formats keep nearly as they are."""
    y, x = np.mgrid[0:side, 0:side] / side
    waves = [100 + 60 * np.sin(5 * x + band) + 30 * np.cos(7 * y * (1 + band / 9)) for band in range(count)]
    return np.stack(waves).astype(dtype)


def files_of(*paths, bands=()):
    """Return scene files in place; with bands one of each."""
    names = bands or [""] * len(paths)
    return [SceneFile(band=name, path=str(path)) for name, path in zip(names, paths, strict=True)]


def header(path, recipe=None):
    """Return a one-file scene's header."""
    recipe, files = recipe or Recipe(), files_of(path)
    with open_scene(files, recipe) as scene:
        return read_header(scene, files, recipe)


def read(files, window, recipe):
    """Return a window of a scene."""
    with open_scene(files, recipe) as scene:
        return scene.read(window, recipe)


def code(function, *arguments):
    """Return the code with which a call rejects a scene."""
    with pytest.raises(SceneRejectedError) as caught:
        function(*arguments)
    return caught.value.code


def inventory_row(root, path, **known):
    """Return a row of the inventory for a file below a folder or bucket as a listing finds it."""
    row = dict.fromkeys(INVENTORY.names) | {"scene": scene_id(path), "path": path}
    try:
        info = storage.stat(storage.child(str(root), path))
    except OSError:
        return row | {"size": 0, "etag": "none"} | known
    return row | {"size": info.size, "etag": info.etag} | known


def unit_of(row, recipe, **part):
    """Return a unit of a probed scene: all of it, or the part of its tile grid that is named."""
    stride = recipe.stride_px or recipe.tile_px
    rows = len(tile_origins(row["grid_height"], recipe.tile_px, stride, recipe.edge))
    columns = len(tile_origins(row["grid_width"], recipe.tile_px, stride, recipe.edge))
    return row | {"first_row": 0, "end_row": rows, "first_column": 0, "end_column": columns} | part


def probed(files, recipe, **known):
    """Return a row of the scenes table, probed in this process."""
    row = dict.fromkeys(INVENTORY.names) | {"scene": "00000000000000ab", "path": "scene.tif"} | known
    return row | probe_scene(files, row, recipe)


def tiles_of(told, scratch):
    """Return {(x, y): pixels [H, W, C]} of what was cut into a scratch file's bytes."""
    tiles, position = {}, 0
    for row in told:
        assert row["at"] == position
        position += row["figures"]["member_size"]
        image = scratch[row["at"] : position]
        tiles[row["tile"]["x"], row["tile"]["y"]] = decode_image(row["figures"]["member"], image)
    assert position == len(scratch)
    return tiles


def cut(files, unit, recipe):
    """Cut a unit in this process; return (tiles, {(x, y): reason}, rows)."""
    scratch, told = io.BytesIO(), []
    found = cut_units(files, [unit], recipe, scratch, told.append)
    rejects = {(reject["x"], reject["y"]): reject["reason"] for reject in found["rejects"]}
    return tiles_of(told, scratch.getvalue()), rejects, [{**row["tile"], **row["figures"]} for row in told]


def cut_scene(files, recipe, **known):
    """Probe and cut a whole scene in this process; return (tiles, {(x, y): reason}, rows)."""
    return cut(files, unit_of(probed(files, recipe, **known), recipe), recipe)


def copy_cut_short(path, target, share):
    """Copy a file's first bytes."""
    shutil.copy(path, target)
    data = target.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target
