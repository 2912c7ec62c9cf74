"""What is worked on again when a dataset grows: tables in, tables out."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.increment import Lacked, same_tiles, scenes_to_pack, scenes_to_probe, without_gone
from shards.schema import INVENTORY


def scenes(*names, etags=(), **reasons):
    """Return rows of an inventory: equal sizes and ETags but for those given; named ones have a reason."""
    rows = [
        {"scene": name, "path": name, "size": 1, "etag": dict(etags).get(name, "e"), "reason": reasons.get(name)}
        for name in names
    ]
    return pa.Table.from_pylist(rows, INVENTORY)


def listed(*names):
    """Return rows of an inventory as a list gives them: sizes and ETags come with the probe."""
    return pa.Table.from_pylist([{"scene": name, "path": name} for name in names], INVENTORY)


def left_out(*, torn=(), gone=(), **kept):
    names = pa.array(list(kept), pa.string()), pa.array(list(kept.values()), pa.string())
    others = (pa.chunked_array([pa.array(scenes, pa.string())]) for scenes in (torn, gone))
    return Lacked(pa.table(names, ["scene", "kept"]), *others)


def probed_and_packed(inventory, known, missing=None, found=None):
    """Return the ids to probe and those to pack, if the probe finds what it is given or what was known."""
    missing = missing or left_out()
    wanted = scenes_to_probe(inventory, known, missing)["scene"].to_pylist()
    rows = {row["scene"]: row for row in [*inventory.to_pylist(), *(found or known).to_pylist()]}
    probed = pa.Table.from_pylist([rows[name] for name in wanted], INVENTORY)
    return wanted, scenes_to_pack(probed, known, missing)[0]["scene"].to_pylist()


def test_what_is_known_is_left_alone():
    assert probed_and_packed(scenes("a", "b"), scenes("a", "b")) == ([], [])
    assert probed_and_packed(scenes("a", "b", "c"), scenes("a", "b")) == (["c"], ["c"])


@pytest.mark.parametrize("reason", ["missing", "unreadable", "decoder_memory"])
def test_a_scene_left_out_for_what_may_pass_is_probed_again(reason):
    known = scenes("a", "b", a=reason)
    assert scenes_to_probe(scenes("a", "b"), known, left_out())["scene"].to_pylist() == ["a"]
    # It is packed only if the probe finds something else this time.
    same, is_news = scenes_to_pack(scenes("a", a=reason), known, left_out())
    assert (same.num_rows, is_news) == (0, False)
    other, is_news = scenes_to_pack(scenes("a"), known, left_out())
    assert (other.num_rows, is_news) == (1, True)


def test_a_scene_with_tiles_left_out_for_what_may_pass_is_packed_again():
    known = scenes("a", "b", "c", "gone")
    torn = left_out(torn=["b", "b", "gone"])
    assert probed_and_packed(scenes("a", "b", "c"), known, torn) == (["b"], ["b"])
    assert probed_and_packed(listed("a", "b", "c"), known, torn) == (["a", "b", "c"], ["b"])
    assert not scenes_to_pack(scenes("b"), known, torn)[1]


def test_so_are_the_scenes_whose_tiles_were_left_out_for_its_tiles():
    known = scenes("a", "b", "c", "d")
    missing = left_out(c="b", d="c", a="x", torn=["b"])
    assert probed_and_packed(known, known, missing) == (["b", "c", "d"], ["b", "c", "d"])


@pytest.mark.parametrize("inventory", [scenes("a", "b", "c", "d", etags={"b": "new"}), listed("a", "b", "c", "d")])
def test_so_are_those_whose_tiles_were_left_out_for_a_changed_ones(inventory):
    known, missing = scenes("a", "b", "c", "d"), left_out(c="b", d="a")
    found = scenes("a", "b", "c", "d", etags={"b": "new"})
    assert probed_and_packed(inventory, known, missing, found)[1] == ["b", "c"]


def test_so_are_those_whose_tiles_were_left_out_for_one_that_is_gone():
    known, missing = scenes("a", "b", "c", "gone"), left_out(c="gone", b="c", gone=["gone"])
    assert probed_and_packed(scenes("a", "b", "c"), known, missing) == (["b", "c"], ["b", "c"])
    assert scenes_to_pack(scenes("b", "c"), known, missing)[1]


@given(
    st.lists(st.tuples(st.sampled_from("0123"), st.sampled_from("xyz")), unique=True), st.sets(st.sampled_from("0123"))
)
def test_of_equal_tiles_one_of_a_scene_that_is_there_stays(tiles, gone):
    """Against the definition: of each content the smallest key, of those that are there if there are any."""
    groups = {}
    for scene, content in sorted(tiles):
        groups.setdefault(content, []).append(f"{scene * 16}-{content}")
    kind = pa.schema([("key", pa.string()), ("kept", pa.string())])
    pairs = [{"key": key, "kept": keys[0]} for keys in groups.values() for key in keys[1:]]
    doubles = pa.Table.from_pylist(pairs, kind).sort_by("key")
    found = without_gone(doubles, pa.array([name * 16 for name in sorted(gone)], pa.string()))
    expected = set()
    for keys in groups.values():
        kept = min(keys, key=lambda key: (key[0] in gone, key))
        expected |= {(key, kept) for key in keys if key != kept}
    assert {(row["key"], row["kept"]) for row in found.to_pylist()} == expected
    assert found["key"].to_pylist() == sorted(found["key"].to_pylist())


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
