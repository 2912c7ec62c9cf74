"""Counting without objects per row gives what counting one by one gives."""

import math
import random
from collections import Counter
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.keyed import hash64
from shards.schema import REJECTS, SAMPLES, SCENES
from shards.settle import BandSums, SceneTally, band_figures, exact_duplicates, scene_numbers

IDS = [f"{hash64('scene', number):016x}" for number in range(5)] + ["by-hand", "ABCDEFABCDEFABCD"]
REJECT = st.tuples(st.sampled_from(IDS), st.sampled_from(["low_contrast", "corrupt", "black"]))


def rejects_table(pairs):
    rows = [{"scene": scene, "path": "p", "x": 0, "y": 0, "reason": reason} for scene, reason in pairs]
    return pa.Table.from_pylist(rows, REJECTS)


def samples_table(scenes):
    return pa.Table.from_pylist([{"scene": scene} for scene in scenes], SAMPLES)


def test_scene_numbers_are_the_hex_digits_whatever_the_chunks():
    column = pa.chunked_array([pa.array(IDS[:2]), pa.array(IDS).slice(1, 3), pa.array(IDS).slice(5)])
    expected = [int(name, 16) for name in [*IDS[:2], *IDS[1:4]]] + [hash64("scene", name) for name in IDS[5:]]
    assert scene_numbers(column).tolist() == expected
    assert scene_numbers(column.dictionary_encode()).tolist() == expected
    assert scene_numbers(pa.array([], pa.string())).tolist() == []


@given(st.lists(st.sampled_from(IDS)), st.lists(REJECT), st.sets(st.sampled_from(IDS)), st.randoms())
def test_settle_gives_what_counting_one_by_one_gives(tiles, dropped, given_reason, rng):
    tally = SceneTally(pa.array(IDS))
    cut = len(tiles) // 2
    for part in (tiles[:cut], tiles[cut:]):
        tally.add_samples(samples_table(part))
    tally.add_rejects(rejects_table(dropped))
    order = rng.sample(IDS, len(IDS))
    rows = [
        {"scene": name, "path": f"{name}.tif", "reason": "corrupt" if name in given_reason else None} for name in order
    ]
    final, rejects = tally.settle(pa.Table.from_pylist(rows, SCENES))
    assert (final.schema, rejects.schema) == (SCENES, REJECTS)
    for name, row in zip(order, final.to_pylist(), strict=True):
        reasons = Counter(code for scene, code in dropped if scene == name)
        assert (row["num_tiles"], row["num_dropped"]) == (tiles.count(name), reasons.total())
        if name in given_reason:
            expected = ("rejected", "corrupt", None)
        elif tiles.count(name):
            expected = ("used", None, None)
        else:
            told = ", ".join(f"{count} {code}" for code, count in sorted(reasons.items()))
            expected = ("rejected", "no_tiles_left", told)
        assert (row["state"], row["reason"], row["detail"]) == expected
    kept = [(row["scene"], row["reason"], row["detail"]) for row in final.to_pylist() if row["state"] == "rejected"]
    assert [(row["scene"], row["reason"], row["detail"]) for row in rejects.to_pylist()] == kept
    assert all(row["x"] is None and row["y"] is None for row in rejects.to_pylist())


def test_settle_takes_a_table_without_the_columns_that_it_fills():
    tally = SceneTally([pa.array(IDS[:3]), pa.array(IDS[3:])])
    tally.add_samples(samples_table(IDS[:1]))
    bare = pa.table({"scene": IDS[:2], "path": ["a", "b"], "reason": pa.nulls(2), "detail": pa.nulls(2)})
    final, rejects = tally.settle(bare.cast(pa.schema([(name, pa.string()) for name in bare.column_names])))
    assert final["state"].to_pylist() == ["used", "rejected"]
    assert final["driver"].null_count == 2
    assert rejects["path"].to_pylist() == ["b"]


def test_strangers_and_repeats_are_noticed():
    tally = SceneTally([pa.array(IDS), pa.array(IDS[:2])])
    assert tally.num_repeated == 2
    tally.add_samples(samples_table(["stranger"]))
    tally.add_rejects(rejects_table([("other", "black")]))
    assert tally.unknown == {"stranger", "other"}
    with pytest.raises(AssertionError, match="unknown scenes"):
        tally.settle(pa.Table.from_pylist([], SCENES))
    empty = SceneTally([])
    empty.add_samples(samples_table(IDS[:1]))
    assert empty.unknown == {IDS[0]}


def tile(num_valid, sums, squares):
    return {"num_valid": num_valid, "band_sums": sums, "band_squares": squares}


@given(
    st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=30), st.integers(1, 10**6), st.integers(1, 30), st.randoms()
)
def test_band_figures_are_exact_for_any_order(values, num_valid, cut, rng):
    rows = [tile(num_valid, [value], [abs(value) * 3]) for value in values]
    rng.shuffle(rows)
    tables = [pa.Table.from_pylist(rows[at : at + cut], SAMPLES) for at in range(0, len(rows), cut)]
    (band,) = band_figures(["red"], tables)
    count = num_valid * len(values)
    mean = sum(map(Fraction, values)) / count
    variance = max(sum(Fraction(abs(value) * 3) for value in values) / count - mean**2, Fraction(0))
    assert band.mean == round(float(mean), 6)
    assert band.std == round(math.sqrt(variance), 6)


def test_band_figures_of_real_pixels():
    rng = np.random.default_rng(0)
    pixels_PBN = rng.integers(0, 65536, (6, 2, 500)).astype(np.float64)
    rows = [tile(500, each.sum(1).tolist(), (each**2).sum(1).tolist()) for each in pixels_PBN]
    bands = band_figures(["a", "b"], [pa.Table.from_pylist(rows, SAMPLES)])
    assert [band.mean for band in bands] == pytest.approx(pixels_PBN.mean((0, 2)), abs=1e-6)
    assert [band.std for band in bands] == pytest.approx(pixels_PBN.std((0, 2)), abs=1e-6)


def test_band_sums_tell_missing_and_impossible_figures():
    sums = BandSums(["red"])
    assert sums.figures() is None
    sums.add(pa.Table.from_pylist([tile(1, [2.0], [4.0]), tile(1, None, None)], SAMPLES))
    assert sums.figures() is None
    for bad in (tile(1, [1.0, 2.0], [1.0]), tile(1, [math.inf], [1.0]), tile(1, [None], [1.0])):
        with pytest.raises(ValueError, match="a tile's band figures"):
            BandSums(["red"]).add(pa.Table.from_pylist([bad], SAMPLES))


# Hashes that share 64 bits but differ later, besides equal ones.
HASH = st.tuples(st.sampled_from([b"a" * 8, b"b" * 8]), st.sampled_from([b"x" * 24, b"y" * 24])).map(b"".join)


@given(st.lists(HASH, max_size=20), st.integers(1, 8), st.randoms())
def test_exact_duplicates_keep_the_smallest_key(hashes, cut, rng):
    rows = [{"key": f"{number:03d}", "member_sha256": value} for number, value in enumerate(hashes)]
    smallest = {row["member_sha256"]: row["key"] for row in reversed(rows)}
    expected = [
        {"key": row["key"], "kept": smallest[row["member_sha256"]]}
        for row in rows
        if row["key"] != smallest[row["member_sha256"]]
    ]
    rng.shuffle(rows)
    tables = [pa.Table.from_pylist(rows[at : at + cut], SAMPLES) for at in range(0, len(rows), cut)]
    assert exact_duplicates(tables).to_pylist() == expected


def test_exact_duplicates_reads_slices():
    rows = [{"key": str(number), "member_sha256": random.Random(number % 3).randbytes(32)} for number in range(9)]
    table = pa.Table.from_pylist(rows, SAMPLES).slice(2, 5)
    assert exact_duplicates([table]).to_pylist() == [{"key": "5", "kept": "2"}, {"key": "6", "kept": "3"}]
