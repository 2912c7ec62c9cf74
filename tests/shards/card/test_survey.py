"""The figures of a dataset, counted file by file, equal those counted at once."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.card import survey
from shards.card.survey import CELLS_PER_DEGREE, Places, RejectGroup, band_step, take_survey
from shards.commit import write_table
from shards.schema import REJECTS, SAMPLES, Band
from shards.tables import read_version

POINTS = st.lists(st.tuples(st.floats(-180, 180), st.floats(-90, 90)), max_size=60)


def add(places, points):
    lon, lat = np.array(points, np.float64).reshape(-1, 2).T
    places.add(lon, lat)


@given(points=POINTS, cut=st.integers(0, 60), most=st.sampled_from([1, 3, 1000]))
def test_places_do_not_depend_on_order_or_batches(points, cut, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey, "_MAX_CELLS", most)
        once, twice = Places(), Places()
        add(once, points)
        add(twice, points[:cut][::-1])
        add(twice, points[cut:][::-1])
    assert once.level == twice.level
    assert once.codes.tolist() == twice.codes.tolist()
    assert once.counts.tolist() == twice.counts.tolist()
    assert once.num_placed == len(points)
    assert len(once.codes) <= most


@given(points=POINTS, level=st.integers(0, 16))
def test_every_tile_lies_in_its_cell(points, level):
    places = Places()
    add(places, points)
    lon, lat, side = places.coarser(level).cells()
    assert side == 2**level / CELLS_PER_DEGREE
    expected = Counter(
        (np.floor((x + 180) % 360 / side) * side - 180, np.floor((y + 90) / side) * side - 90) for x, y in points
    )
    assert dict(zip(zip(lon, lat, strict=True), places.coarser(level).counts, strict=True)) == expected


def test_what_is_nowhere_on_earth_is_counted_apart():
    places = Places()
    places.add(np.array([np.nan, 10.0, np.inf, 190.0]), np.array([1.0, 91.0, 0.0, 0.0]))
    assert (places.num_unplaced, places.num_placed) == (3, 1)
    assert places.cells()[0].tolist() == [-170.0]


@given(std=st.floats(1e-6, 1e6))
def test_bins_of_a_band_are_fine_and_have_round_edges(std):
    step = band_step(Band(name="a", mean=0.0, std=std))
    assert std / 10 * (1 - 1e-9) <= step <= std / 4 * (1 + 1e-9)
    assert f"{step:.3e}"[:5] in ("1.000", "2.000", "5.000")


def test_means_of_tiles_are_counted_in_their_bins(tmp_path, write_dataset):
    url = write_dataset(str(tmp_path / "data"), num_samples=4, num_shards=1)
    bands = (Band(name="a", mean=100.0, std=8.5), Band(name="b", mean=5.0, std=0.0))
    rows = [
        {"num_valid": 10, "band_sums": [1000.0, 50.0]},  # the bands' own means
        {"num_valid": 2, "band_sums": [2 * 99.0, 2 * 5.5]},
        {"num_valid": 1, "band_sums": [1e6, -1e6]},  # beyond the ends
        {"num_valid": 0, "band_sums": [0.0, 0.0]},
        {"num_valid": 5, "band_sums": None},
        {"num_valid": 5, "band_sums": [1.0]},
        {"num_valid": None, "band_sums": [1.0, 1.0]},
        {"num_valid": 1, "band_sums": [float("nan"), 5.0]},
    ]
    files = [write_table(url, "samples", [pa.Table.from_pylist(part, SAMPLES)])[0] for part in (rows[:3], rows[3:])]
    version = read_version(url)
    found = take_survey(url, replace(version, bands=bands, tables={**version.tables, "samples": files}))
    # Steps of 2 and 1; the ends lie 3 deviations from the mean.
    assert found.band_means == ({50: 1, 49: 1, 62: 1}, {5: 4})
    assert take_survey(url, replace(version, bands=())).band_means == ()


def test_files_add_up(tmp_path, write_dataset):
    url = write_dataset(str(tmp_path / "data"), num_samples=4, num_shards=1)
    version = read_version(url)
    rows = [{"label": label, "gsd_m": gsd, "contrast": 0.5} for label, gsd in [("b", 1.0), ("a", 1.1), ("b", 2.0)]]
    rows += [{"label": None, "gsd_m": 0.0, "contrast": float("nan")}]
    rejects = [
        {"scene": "s", "path": "one", "x": 0, "y": 0, "reason": "cloudy", "detail": None},
        {"scene": "s", "path": "two", "x": 1, "y": 0, "reason": "cloudy", "detail": "d"},
        {"scene": "t", "path": "all", "reason": "corrupt", "detail": "e"},
    ]
    files = {
        name: [write_table(url, name, [pa.Table.from_pylist([row], schema)])[0] for row in table]
        for name, table, schema in [("samples", rows, SAMPLES), ("rejects", rejects, REJECTS)]
    }
    found = take_survey(url, replace(version, tables={**version.tables, **files}))
    assert found.rankings["label"].top == (("b", 2), ("a", 1))
    assert (found.rankings["label"].num_values, found.rankings["label"].num_rows) == (2, 3)
    assert found.rankings["sensor"].num_values == 0
    assert found.histograms["gsd_m"] == {0: 2, 4: 1}
    assert found.histograms["contrast"] == {24: 3}
    assert found.histograms["num_tiles"] == {0: 4}
    assert found.num_shard_samples == 4
    assert found.places.num_unplaced == 4
    assert found.first_time is found.last_time is None
    assert found.rejects == (
        RejectGroup(reason="corrupt", whole=True, count=1, path="all", detail="e"),
        RejectGroup(reason="cloudy", whole=False, count=2, path="one", detail=""),
    )
