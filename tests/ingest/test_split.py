"""The cells of the ground and what they are dealt."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ingest.config import Recipe
from ingest.split import cell_name, split_of

LONS, LATS = st.floats(-180, 180, exclude_max=True), st.floats(-90, 90)
KM_PER_DEGREE = math.pi * 6371.0088 / 180
RECIPE = Recipe(val_share=0.3, test_share=0.3, split_cell_km=50)


def box(west, south, width, height):
    """Corners and middles of the edges, counter-clockwise."""
    xs, ys = [0, 0.5, 1, 1, 1, 0.5, 0, 0], [0, 0, 0, 0.5, 1, 1, 1, 0.5]
    return np.array([[west + x * width, south + y * height] for x, y in zip(xs, ys, strict=True)])


@given(LONS, st.floats(-85, 85), st.sampled_from([5.0, 20.0, 300.0]))
def test_cells_are_about_square_and_of_the_asked_size(lon, lat, cell_km):
    """Walk east and north until the name changes twice: the second stretch is the cell's side."""
    assume(abs(lat) + 3 * cell_km / KM_PER_DEGREE < 85)

    def side_km(at, degree_km):
        step, edges, last = cell_km / degree_km / 100, [], at(0.0)
        for number in range(1, 400):
            name = at(number * step)
            if name != last:
                edges.append(number * step)
                last = name
        return (edges[1] - edges[0]) * degree_km

    width = side_km(lambda d: cell_name(lon + d, lat, cell_km), KM_PER_DEGREE * math.cos(math.radians(lat)))
    height = side_km(lambda d: cell_name(lon, lat + d, cell_km).split("c")[0], KM_PER_DEGREE)
    assert width == pytest.approx(cell_km, rel=0.45)  # rows near the poles taper
    assert height == pytest.approx(cell_km, rel=0.04)


@given(LONS, LATS, st.sampled_from([1.0, 20.0, 5000.0]), st.integers(-3, 3))
def test_a_full_turn_leads_to_the_same_cell(lon, lat, cell_km, turns):
    lon = round(lon * 1024) / 1024  # so that adding turns is exact
    assert cell_name(lon + 360 * turns, lat, cell_km) == cell_name(lon, lat, cell_km)


@pytest.mark.parametrize("cell_km", [0.1, 20.0, 5000.0])
def test_edges_of_the_world_are_in_a_cell(cell_km):
    assert cell_name(-180.0, -90.0, cell_km) == "r00000c00000"
    assert cell_name(180.0, 0.0, cell_km) == cell_name(-180.0, 0.0, cell_km)
    assert cell_name(-1e-17, 90.0, cell_km) == cell_name(-1e-17, 89.9999999, cell_km)
    assert cell_name(-180 - 1e-14, 0.0, cell_km).startswith("r")


@given(LONS, st.floats(-89, 89), st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0, 1), st.floats(0, 1))
def test_a_tile_in_train_touches_no_cell_of_another_split(lon, lat, width, height, along, up):
    _, split = split_of(box(lon, lat, width, height), "s", RECIPE)
    point_cell, point_split = split_of(np.full((4, 2), [lon + along * width, lat + up * height]), "s", RECIPE)
    assert point_cell is not None
    # The tile's far edges belong to the next cell: they hold no ground of the tile.
    if along < 1 and up < 1 and width > 1e-6 and height > 1e-6:
        assert split in (point_split, "border")


def test_tiles_across_cells_of_different_splits_are_border():
    cells = {}
    for lon in np.arange(0, 10, 0.1):
        cells.setdefault(*split_of(np.full((4, 2), [lon, 50.01]), "s", RECIPE))
    assert set(cells.values()) == {"train", "val", "test"}
    _, split = split_of(box(0, 50.0, 10, 0.02), "s", RECIPE)
    assert split == "border"


def test_shares_of_the_ground_are_as_asked():
    rng = np.random.default_rng(0)
    recipe = Recipe(val_share=0.1, test_share=0.25, seed=3)
    points = zip(rng.uniform(-180, 180, 4000), rng.uniform(-60, 60, 4000), strict=True)
    found = [split_of(np.full((4, 2), point), "s", recipe)[1] for point in points]
    assert found.count("val") / 4000 == pytest.approx(0.1, abs=0.02)
    assert found.count("test") / 4000 == pytest.approx(0.25, abs=0.03)


def test_seed_deals_anew_and_nothing_else_does():
    points = [np.full((4, 2), [lon, 10.0]) for lon in range(-170, 170, 3)]
    first, second = ([split_of(point, "s", Recipe(val_share=0.5, seed=seed)) for point in points] for seed in (0, 1))
    assert [cell for cell, _ in first] == [cell for cell, _ in second]
    assert [split for _, split in first] != [split for _, split in second]
    assert first == [split_of(point, "another", Recipe(val_share=0.5, tile_px=64)) for point in points]


def test_a_tile_across_the_antimeridian_is_small():
    across = box(179.999, 10.0, 0.002, 0.002)
    across[:, 0] = (across[:, 0] + 180) % 360 - 180
    cells = {split_of(np.full((4, 2), point), "s", RECIPE) for point in across}
    cell, split = split_of(across, "s", RECIPE)
    assert cell in {cell for cell, _ in cells}
    splits = {split for _, split in cells}
    assert split == (splits.pop() if len(splits) == 1 else "border")


@pytest.mark.parametrize("sign", [1, -1])
def test_a_tile_around_a_pole_touches_all_its_cells(sign):
    around = np.array([[lon, sign * 89.0] for lon in (-135, -90, -45, 0, 45, 90, 135, 180)])
    recipe = Recipe(val_share=0.5, split_cell_km=20)
    cell, split = split_of(around, "s", recipe)
    assert cell.startswith("r")
    assert split == "border"
    assert split_of(around, "s", Recipe(val_share=1.0))[1] == "val"


@pytest.mark.parametrize("corners", [None, np.array([[0.0, 1.0], [np.nan, 1.0], [1.0, 1.0], [1.0, 0.0]])])
def test_without_a_place_the_scene_decides(corners):
    found = {split_of(corners, f"scene{number}", RECIPE) for number in range(60)}
    assert found == {(None, "train"), (None, "val"), (None, "test")}
    assert split_of(corners, "scene1", RECIPE) == split_of(None, "scene1", RECIPE)
    assert split_of(corners, "scene1", Recipe()) == (None, "train")


def test_without_shares_all_is_train():
    assert split_of(box(0, 50.0, 10, 0.02), "s", Recipe())[1] == "train"
