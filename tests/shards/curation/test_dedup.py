"""Near-duplicates are those of the definition, whatever the order of rows and the size of batches."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.commit import write_table
from shards.curation import dedup as dedup_module
from shards.curation.dedup import dedup, find_duplicates, greedy_cover, near_duplicates
from shards.errors import UserError
from shards.schema import SAMPLES
from shards.tables import read_table, read_version, version_url
from shards.verify import verify

# Few bits set: many pairs lie near.
HASH = st.lists(st.integers(0, 63), max_size=5).map(lambda bits: sum({1 << bit for bit in bits}))


def by_definition(pairs, distance):
    """The O(n²) definition: {key: kept} of those that go."""
    kept, gone = [], {}
    for key, value in sorted(pairs):
        near = [name for name, other in kept if (value ^ other).bit_count() <= distance]
        if near:
            gone[key] = near[0]
        else:
            kept.append((key, value))
    return gone


@given(st.lists(HASH, max_size=40), st.integers(0, 10), st.randoms(), st.sampled_from([1, 4, 1024]))
def test_near_duplicates_are_those_of_the_definition(values, distance, rng, first_batch):
    pairs = [(f"{number:03d}", value) for number, value in enumerate(values)]
    rng.shuffle(pairs)
    keys = pa.chunked_array([[key for key, _ in pairs]], pa.string())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup_module, "_FIRST_BATCH", first_batch)
        patch.setattr(dedup_module, "_PAIRS_AT_ONCE", 7)
        found = near_duplicates(keys, np.array([value for _, value in pairs], np.uint64), distance)
    assert {row["key"]: row["kept"] for row in found.to_pylist()} == by_definition(pairs, distance)


@pytest.mark.parametrize("distance", [0, 1, 3, 6, 10])
def test_nothing_is_missed_at_any_distance(distance):
    """Hashes at exactly the distance and one beyond, all over the 64 bits."""
    rng = np.random.default_rng(distance)
    base = rng.integers(0, 2**64, 300, np.uint64)
    flips = [sum(1 << int(bit) for bit in rng.permutation(64)[: distance + number % 2]) for number in range(300)]
    hashes = np.unique(np.concatenate([base, base ^ np.array(flips, np.uint64)]))
    hashes = rng.permutation(hashes)
    gone = by_definition([(f"{place:04d}", int(value)) for place, value in enumerate(hashes)], distance)
    expected = [int(gone.get(f"{place:04d}", place)) for place in range(len(hashes))]
    assert greedy_cover(hashes, distance).tolist() == expected
    assert distance == 0 or gone


def row(key, content, dhash):
    return {"key": key, "member_sha256": content * 32, "dhash": dhash}


def test_equal_bytes_come_first_and_name_the_tile_that_stays():
    rows = [row("a", b"1", 0b0), row("b", b"2", 0b1), row("c", b"2", 0b1), row("d", b"3", None), row("e", b"3", None)]
    rows += [row("f", b"4", None), row("g", b"5", 0b111111)]
    tables = [pa.Table.from_pylist(part, SAMPLES) for part in (rows[3:], rows[:3])]
    found = find_duplicates(tables, 2)
    assert [tuple(pair.values()) for pair in found.pairs.to_pylist()] == [
        ("b", "a", "near_duplicate"),
        ("c", "a", "duplicate"),
        ("e", "d", "duplicate"),
    ]
    assert found.num_unhashed == 2


def with_hashes(url, values):
    """Replace the hashes of a dataset's samples."""
    version = read_version(url)
    rows = read_table(url, version, "samples").to_pylist()
    for sample, value in zip(rows, values, strict=True):
        sample["dhash"] = value
    files = write_table(url, "samples", [pa.Table.from_pylist(rows, SAMPLES)])
    Path(version_url(url, 1)).write_bytes(replace(version, tables={**version.tables, "samples": files}).to_json())


def test_dedup_makes_a_version_that_verifies(tmp_path, write_dataset):
    url = write_dataset(str(tmp_path / "data"))
    with_hashes(url, [number << 20 if number >= 4 else 1 << number for number in range(24)])
    parent, version, found = dedup(url, 0)
    assert (parent.version, version.version, found.pairs.num_rows) == (1, 1, 0)
    parent, version, found = dedup(url, 2)
    assert (version.version, version.num_samples) == (2, 24 - found.pairs.num_rows)
    assert found.pairs.num_rows >= 3
    assert version.record["operations"] == [{"op": "dedup", "distance": 2}]
    rejects = read_table(url, version, "rejects").to_pylist()
    tiles = {row["detail"] for row in rejects if row["x"] is not None}
    assert {row["reason"] for row in rejects} == {"near_duplicate", "no_tiles_left"}
    assert tiles <= set(read_table(url, version, "samples")["key"].to_pylist())
    assert list(verify(url)) == []


@pytest.mark.parametrize("distance", [-1, 11])
def test_a_distance_out_of_range_is_refused(tmp_path, distance):
    with pytest.raises(UserError, match="choose a value from 0 to 8"):
        dedup(str(tmp_path), distance)
