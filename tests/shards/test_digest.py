"""The digest names content: any change of content changes it, no change of form does."""

import hashlib
import random
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.digest import content_digest
from shards.schema import SAMPLES, SCENES

SAMPLE_COLUMNS = ["key", "member", "member_sha256", "json_sha256"]
SCENE_COLUMNS = ["scene", "path", "state", "reason", "num_tiles"]
SAMPLE = st.fixed_dictionaries(
    {
        "key": st.text("abc-012", min_size=1, max_size=8),
        "member": st.sampled_from(["jpg", "npy"]),
        "member_sha256": st.binary(min_size=32, max_size=32),
        "json_sha256": st.binary(min_size=32, max_size=32),
    }
)
SCENE = st.fixed_dictionaries(
    {
        "scene": st.text("abc012", min_size=1, max_size=8),
        "path": st.text(max_size=8),
        "state": st.sampled_from(["used", "rejected"]),
        "reason": st.sampled_from([None, "corrupt"]),
        "num_tiles": st.integers(0, 5),
    }
)


def digest(samples, scenes, bands=("red",), dtype="uint8", cut=1000):
    chunks = [samples[start : start + cut] for start in range(0, len(samples), cut)]
    return content_digest(
        bands, dtype, [pa.Table.from_pylist(c, SAMPLES) for c in chunks], [pa.Table.from_pylist(scenes, SCENES)]
    )


@settings(deadline=None)  # the first call loads what pyarrow loads late
@given(st.lists(SAMPLE, max_size=8), st.lists(SCENE, max_size=4), st.randoms(), st.integers(1, 4))
def test_order_and_chunks_do_not_matter(samples, scenes, random, cut):
    before = digest(samples, scenes)
    random.shuffle(samples)
    random.shuffle(scenes)
    assert digest(samples, scenes, cut=cut) == before


@settings(deadline=None)
@given(st.lists(SAMPLE, min_size=1, max_size=5), st.lists(SCENE, min_size=1, max_size=3), st.data())
def test_every_content_column_matters(samples, scenes, data):
    before = digest(samples, scenes)
    assert digest(samples, scenes, bands=("red", "green")) != before
    assert digest(samples, scenes, dtype="uint16") != before
    assert digest(samples[1:], scenes) != before
    assert digest(samples, [*scenes, scenes[0]]) != before
    rows, strategy = data.draw(st.sampled_from([(samples, SAMPLE), (scenes, SCENE)]))
    place = data.draw(st.integers(0, len(rows) - 1))
    changed = data.draw(strategy)
    if changed != rows[place]:
        rows[place] = changed
        assert digest(samples, scenes) != before


def test_definition():
    """Anyone can recompute it: sha256 over the header line and the sorted sha256 of the lines."""
    zeros = bytes(32)
    samples = [{"key": "k", "member": "jpg", "member_sha256": zeros, "json_sha256": zeros}]
    scenes = [{"scene": "s", "path": "p", "state": "used", "reason": None, "num_tiles": 1}]
    leaves = [
        hashlib.sha256(b"6:sample;1:k;3:jpg;32:" + zeros + b";32:" + zeros + b";").digest(),
        hashlib.sha256(b"5:scene;1:s;1:p;4:used;-1;1:1;").digest(),
    ]
    expected = hashlib.sha256(b"7:dataset;5:uint8;3:red;" + b"".join(sorted(leaves))).hexdigest()
    assert digest(samples, scenes) == expected


def row_by_row(bands, dtype, samples, scenes):
    """The definition, one row at a time, as it was first written."""

    def line(values):
        raw = [value if isinstance(value, bytes) else str(value).encode() for value in values]
        return b"".join(b"-1;" if v is None else b"%d:%s;" % (len(r), r) for v, r in zip(values, raw, strict=True))

    lines = [line(["sample", *(row[name] for name in SAMPLE_COLUMNS)]) for row in samples]
    lines += [line(["scene", *(row[name] for name in SCENE_COLUMNS)]) for row in scenes]
    total = hashlib.sha256(line(["dataset", dtype, *bands]))
    total.update(b"".join(sorted(hashlib.sha256(leaf).digest() for leaf in lines)))
    return total.hexdigest()


@settings(deadline=None)
@given(st.lists(SAMPLE, max_size=8), st.lists(SCENE, max_size=6), st.integers(1, 4), st.lists(st.text(max_size=3)))
def test_it_is_what_it_always_was(samples, scenes, cut, bands):
    doubled = [*samples, *samples[:2]]
    nulls = [dict.fromkeys(SAMPLE_COLUMNS), *doubled]
    assert digest(nulls, scenes, bands, cut=cut) == row_by_row(bands, "uint8", nulls, scenes)


def many(count, per_table):
    rng = random.Random(count)
    for start in range(0, count, per_table):
        num = min(per_table, count - start)
        sums = [
            pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), num, [None, pa.py_buffer(rng.randbytes(32 * num))])
            for _ in range(2)
        ]
        keys = pa.array(np.arange(start, start + num)).cast(pa.string())
        yield pa.table([keys, pa.array(["jpg"] * num), *sums], names=SAMPLE_COLUMNS)


@pytest.mark.parametrize("per_table", [100_000, 30_001])
def test_many_rows(per_table):
    """More than are worked on at one time."""
    tables = list(many(100_000, per_table))
    rows = [row for table in tables for row in table.to_pylist()]
    found = content_digest(["red"], "uint8", tables, [SCENES.empty_table()])
    assert found == row_by_row(["red"], "uint8", rows, [])


@pytest.mark.parametrize(("of_text", "of_sums"), [("dictionary", "binary"), ("large_string", "large_binary")])
def test_how_a_column_is_stored_does_not_matter(of_text, of_sums):
    (table,) = many(100, 100)
    text = {"dictionary": pa.dictionary(pa.int32(), pa.string()), "large_string": pa.large_string()}[of_text]
    sums = {"binary": pa.binary(), "large_binary": pa.large_binary()}[of_sums]
    other = table.cast(pa.schema(list(zip(SAMPLE_COLUMNS, [text, text, sums, sums], strict=True))))
    scenes = [SCENES.empty_table()]
    assert content_digest(["red"], "u", [other], scenes) == content_digest(["red"], "u", [table], scenes)


def test_it_holds_no_object_per_row():
    count = 300_000
    tables = list(many(count, 30_000))
    content_digest(["red"], "uint8", tables[:1], [SCENES.empty_table()])
    tracemalloc.start()
    try:
        content_digest(["red"], "uint8", tables, [SCENES.empty_table()])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 * count + 12e6
