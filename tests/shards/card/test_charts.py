"""Histograms show every bin at its place."""

import re

from hypothesis import given
from hypothesis import strategies as st

from shards.card.charts import Axis, histogram

NUMBERS = Axis(name=str, merges=(1, 4, 32))


@given(bins=st.dictionaries(st.integers(-1000, 1000), st.integers(1, 10**9), min_size=1, max_size=50))
def test_no_count_is_lost(bins):
    picture = histogram("title", bins, NUMBERS)
    counts = [int(count.replace(",", "")) for count in re.findall(r": ([\d,]+)</title>", picture)]
    assert sum(counts) == sum(bins.values())
    assert len(counts) <= 80
    for x, y, width, height in re.findall(r'x="([\d.-]+)" y="([\d.-]+)" width="([\d.]+)" height="([\d.]+)"', picture):
        assert 0 <= float(x) <= float(x) + float(width) <= 320
        assert 14 <= float(y) < float(y) + float(height) <= 114.1


def test_a_placeholder_far_away_leaves_few_bars():
    for far in (10**5, 10**9):
        picture = histogram("title", {0: 3, far: 1}, NUMBERS)
        assert picture.count("<title>") == 2
        assert 2 <= picture.count('class="tick"') <= 8


def test_bars_stand_in_proportion_and_a_single_tile_shows():
    picture = histogram("title", {0: 100, 1: 50, 2: 1}, Axis(name=str, first=0, last=3))
    assert re.findall(r'height="([\d.]+)"><title>([^<]*)', picture) == [
        ("100.0", "0 … 1: 100"),
        ("50.0", "1 … 2: 50"),
        ("1.0", "2 … 3: 1"),
    ]


def test_nothing_stands_below_the_least():
    picture = histogram("title", {1: 1}, Axis(name=str, least=0, discrete=True))
    assert re.findall(r'class="tick"[^>]*>(-?\d+)<', picture) == ["1", "0", "3", "6", "9"]
