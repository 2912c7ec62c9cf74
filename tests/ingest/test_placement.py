"""Tiles lie where their pixels lie, whatever the grid; their split is a matter of place."""

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import raster
from ingest.config import Recipe
from ingest.placement import Ground, place_tiles

UTM = Ground(crs="EPSG:32633", transform=(10, 0, 5e5, 0, -10, 5e6), gsd_m=10.0)
SCENE = {"scene": "00000000000000ab"}


def place(ground, xs, y, side=16, recipe=None):
    """Return the places of a row of tiles, by x."""
    found = place_tiles(ground, [(x, y) for x in xs], side, SCENE, recipe or Recipe())
    return {x: tile for (x, _), tile in found.items()}


def test_a_tile_north_up():
    found = place(UTM, [32, 48], 64)[48]
    assert found["crs"] == "EPSG:32633"
    assert found["gsd_m"] == 10
    assert found["transform"] == [10, 0, 5e5 + 480, 0, -10, 5e6 - 640]
    assert found["bounds"] == [5e5 + 480, 5e6 - 800, 5e5 + 640, 5e6 - 640]
    lon, lat = raster.lonlat("EPSG:32633", np.array([5e5 + 560]), np.array([5e6 - 720]))[:, 0]
    assert (found["lon"], found["lat"]) == (round(lon, 7), round(lat, 7))


@settings(max_examples=50, deadline=None)
@given(st.floats(-180, 180), st.floats(0.1, 50), st.booleans(), st.integers(0, 99), st.integers(0, 99))
def test_bounds_hold_the_tiles_corners_whatever_the_rotation(degrees, size, south_up, x, y):
    turned = rasterio.Affine.rotation(degrees) @ rasterio.Affine.scale(size, size if south_up else -size)
    found = place(Ground(crs=None, transform=tuple(turned)[:6], gsd_m=None), [x], y)[x]
    left, bottom, right, top = found["bounds"]
    own = rasterio.Affine(*found["transform"])
    corners = np.array([own @ corner for corner in [(0, 0), (16, 0), (0, 16), (16, 16)]])
    assert own @ (0, 0) == pytest.approx(turned @ (x, y), abs=1e-6)
    assert (left, bottom) == pytest.approx(tuple(corners.min(axis=0)), abs=1e-6)
    assert (right, top) == pytest.approx(tuple(corners.max(axis=0)), abs=1e-6)


def test_without_a_place_there_is_none():
    found = place(Ground(crs=None, transform=None, gsd_m=None), [0], 0)[0]
    for name in ("crs", "transform", "bounds", "lon", "lat", "gsd_m", "cell"):
        assert found[name] is None, name
    assert found["split"] == "train"


def test_a_crs_without_a_way_to_degrees_has_bounds_alone():
    local = Ground(crs='LOCAL_CS["drone",UNIT["metre",1]]', transform=(1, 0, 0, 0, -1, 0), gsd_m=1.0)
    found = place(local, [0], 0)[0]
    assert found["bounds"] == [0, -16, 16, 0]
    assert (found["lon"], found["lat"], found["cell"]) == (None, None, None)


def test_a_tile_beyond_the_edge_of_the_earth_takes_no_other_tiles_place():
    crs = rasterio.crs.CRS.from_user_input("+proj=geos +h=35785831 +lon_0=0 +sweep=y +ellps=WGS84").to_wkt()
    disk = Ground(crs=crs, transform=(21750, 0, -5568000, 0, -21750, 5568000), gsd_m=21750.0)
    alone = place(disk, [240], 240, side=32)[240]
    assert alone["lon"] == pytest.approx(0, abs=0.1)
    # GDAL complains about the first 20 bad points, then about none.
    for _ in range(4):
        both = place_tiles(disk, [(240, 240), (0, 0)], 32, SCENE, Recipe())
        assert both[240, 240] == alone
        assert both[0, 0]["lon"] is None


@pytest.mark.parametrize("ground", [UTM, Ground(crs=None, transform=None, gsd_m=None)])
def test_a_tile_alone_lies_where_it_lies_among_others(ground):
    corners = [(x, y) for y in (32, 0) for x in range(0, 640, 16)]
    together = place_tiles(ground, corners, 16, SCENE, Recipe())
    assert list(together) == corners
    for x, y in [(0, 32), (48, 0), (624, 32)]:
        assert place(ground, [x], y)[x] == together[x, y]


def test_no_tiles_have_no_places():
    assert place(UTM, [], 0) == {}


def test_neighbours_share_a_cell_and_a_split():
    recipe = Recipe(val_share=0.3, test_share=0.3, split_cell_km=20)
    found = place(UTM, list(range(0, 40960, 160)), 0, side=16, recipe=recipe)
    by_cell = {}
    for tile in found.values():
        if tile["split"] != "border":
            by_cell.setdefault(tile["cell"], set()).add(tile["split"])
    assert len(by_cell) > 10
    assert all(len(splits) == 1 for splits in by_cell.values())
    assert {"train", "val", "test", "border"} >= {tile["split"] for tile in found.values()}
    assert len({split for splits in by_cell.values() for split in splits}) > 1
