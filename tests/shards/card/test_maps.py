"""Maps show the right part of the Earth, with every tile in the picture."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.card.maps import close_ups, degrees, extent_map, is_scattered, world_map
from shards.card.survey import Places

POINTS = st.lists(st.tuples(st.floats(-180, 180), st.floats(-90, 90)), min_size=1, max_size=40)


def places_of(points):
    places = Places()
    places.add(*np.array(points, np.float64).reshape(-1, 2).T)
    return places


@given(points=POINTS)
@settings(max_examples=60)
def test_every_cell_lies_in_the_picture(points):
    picture = extent_map(places_of(points))
    width, height = map(float, re.search(r'viewBox="0 0 (\d+) (\d+)"', picture).groups())
    squares = re.findall(r"M(-?[\d.]+) (-?[\d.]+)h([\d.]+)v([\d.]+)h", picture)
    assert squares
    for x, y, wide, high in (map(float, square) for square in squares):
        assert -wide - 1 <= x <= width + 1
        assert -high - 1 <= y <= height + 1


def test_data_on_both_sides_of_the_antimeridian_stay_together():
    places = places_of([(179.5, -17), (-179.5, -18)])
    assert not is_scattered(places)
    assert "180.0°" in extent_map(places)
    assert not re.search(r">0.0°<", extent_map(places))


def test_the_scale_bar_and_the_grid_fit_the_extent():
    picture = extent_map(places_of([(13.0, 0.0), (13.1, 0.05)]))
    assert "13.04°E" in picture
    assert "2 km" in picture
    assert "#world" not in picture


def test_many_cells_are_few_elements():
    rng = np.random.default_rng(0)
    places = places_of(np.stack([rng.uniform(5, 15, 30000), rng.uniform(45, 55, 30000)], 1))
    picture = extent_map(places)
    assert 100 < len(re.findall(r"M[\d.-]+ [\d.-]+h[\d.]+v", picture)) <= 2000
    assert len(re.findall("<path|<rect|<use|<text", picture)) < 40
    assert len(re.findall("<path|<rect|<use|<text", world_map(places))) < 20


def test_close_ups_are_of_the_fullest_places_first():
    places = places_of([(13.0, 52.0)] * 5 + [(-121.0, 38.0)] * 9 + [(150.0, -35.0)])
    assert is_scattered(places)
    captions = [caption for caption, _ in close_ups(places, num_maps=2)]
    assert captions == ["38.0°N 121.0°W, 9 tiles", "52.0°N 13.0°E, 5 tiles"]


def test_a_dot_lies_where_the_tile_is():
    assert "M13 -53h0" in world_map(places_of([(12.5, 52.5)]))


@pytest.mark.parametrize(
    ("value", "letters", "step", "text"),
    [(-10, "EW", 5, "10°W"), (0.25, "NS", 0.05, "0.25°N"), (0, "NS", 1, "0°"), (-180, "EW", 30, "180°")],
)
def test_degrees_read_as_on_a_map(value, letters, step, text):
    assert degrees(value, letters, step) == text
