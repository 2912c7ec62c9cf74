"""The grid covers what it promises, for any sizes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ingest.grid import count_origins, tile_origins

EDGES = st.sampled_from(["shift", "drop", "pad"])
SIZES = st.integers(1, 300)


@given(SIZES, st.integers(1, 64), st.integers(1, 64), EDGES)
def test_count_equals_length(length, tile, stride, edge):
    counted = count_origins(np.array([length]), tile, stride, edge)
    assert counted.tolist() == [len(tile_origins(length, tile, stride, edge))]


@given(SIZES, st.integers(1, 64), st.integers(1, 64), EDGES)
def test_origins_ascend_without_repeats_and_stay_inside(length, tile, stride, edge):
    origins = tile_origins(length, tile, stride, edge)
    assert (np.diff(origins) > 0).all()
    if edge != "pad":
        assert (origins + tile <= length).all()
    assert (origins < length).all()


@given(SIZES, st.integers(1, 64), st.data(), st.sampled_from(["shift", "pad"]))
def test_shift_and_pad_cover_every_pixel(length, tile, data, edge):
    stride = data.draw(st.integers(1, tile))
    if edge == "shift" and length < tile:
        assert tile_origins(length, tile, stride, edge).size == 0
        return
    covered = np.zeros(length, bool)
    for origin in tile_origins(length, tile, stride, edge):
        covered[origin : origin + tile] = True
    assert covered.all()


def test_examples():
    assert tile_origins(1000, 256, 256, "drop").tolist() == [0, 256, 512]
    assert tile_origins(1000, 256, 256, "shift").tolist() == [0, 256, 512, 744]
    assert tile_origins(1000, 256, 256, "pad").tolist() == [0, 256, 512, 768]
    assert tile_origins(1024, 256, 256, "shift").tolist() == [0, 256, 512, 768]
    assert tile_origins(100, 256, 256, "pad").tolist() == [0]
