"""The digest names content: any change of content changes it, no change of form does."""

import hashlib

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from shards.digest import content_digest
from shards.schema import SAMPLES, SCENES

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


@given(st.lists(SAMPLE, max_size=8), st.lists(SCENE, max_size=4), st.randoms(), st.integers(1, 4))
def test_order_and_chunks_do_not_matter(samples, scenes, random, cut):
    before = digest(samples, scenes)
    random.shuffle(samples)
    random.shuffle(scenes)
    assert digest(samples, scenes, cut=cut) == before


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
