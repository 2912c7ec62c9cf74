"""What is worked on again when a dataset grows: tables in, tables out."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.increment import same_tiles, scenes_to_pack, scenes_to_probe
from shards.schema import INVENTORY

NONE = pa.array([], pa.string())


def scenes(*names, **reasons):
    """Return rows of an inventory: equal sizes and ETags; named ones have a reason."""
    rows = [{"scene": name, "path": name, "size": 1, "etag": "e", "reason": reasons.get(name)} for name in names]
    return pa.Table.from_pylist(rows, INVENTORY)


def doubles(**kept):
    return pa.table({"scene": pa.array(list(kept), pa.string()), "kept": pa.array(list(kept.values()), pa.string())})


def probed_and_packed(inventory, known, *, twins=None, torn=()):
    """Return the ids to probe and, if no probe finds anything new, those to pack."""
    wanted, again = scenes_to_probe(
        inventory, known, twins or doubles(), pa.chunked_array([pa.array(torn, pa.string())])
    )
    return wanted["scene"].to_pylist(), scenes_to_pack(wanted, known, again)["scene"].to_pylist()


def test_what_is_known_is_left_alone():
    assert probed_and_packed(scenes("a", "b"), scenes("a", "b")) == ([], [])
    assert probed_and_packed(scenes("a", "b", "c"), scenes("a", "b")) == (["c"], ["c"])


@pytest.mark.parametrize("reason", ["missing", "unreadable", "decoder_memory"])
def test_a_scene_left_out_for_what_may_pass_is_probed_again(reason):
    known = scenes("a", "b", a=reason)
    wanted, again = scenes_to_probe(scenes("a", "b"), known, doubles(), pa.chunked_array([NONE]))
    assert wanted["scene"].to_pylist() == ["a"]
    # It is packed only if the probe finds something else this time.
    assert scenes_to_pack(scenes("a", a=reason), known, again).num_rows == 0
    assert scenes_to_pack(scenes("a"), known, again).num_rows == 1


def test_a_scene_with_tiles_left_out_for_what_may_pass_is_packed_again():
    known = scenes("a", "b", "c", "gone")
    assert probed_and_packed(scenes("a", "b", "c"), known, torn=["b", "b", "gone"]) == (["b"], ["b"])


def test_so_are_the_scenes_whose_tiles_were_left_out_for_its_tiles():
    known = scenes("a", "b", "c", "d")
    twins = doubles(c="b", d="c", a="x")
    assert probed_and_packed(known, known, twins=twins, torn=["b"]) == (["b", "c", "d"], ["b", "c", "d"])


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.integers(0, 3)), unique=True), st.randoms())
def test_same_tiles_whatever_their_order(tiles, random):
    def table(rows):
        columns = [
            pa.array([row[place] for row in rows], kind)
            for place, kind in enumerate((pa.string(), pa.int32(), pa.int32()))
        ]
        return pa.table(columns, names=["scene", "x", "y"])

    other = random.sample(tiles, len(tiles))
    assert same_tiles(table(tiles), table(other))
    assert same_tiles(table(tiles), table(other[1:])) == (not tiles)
