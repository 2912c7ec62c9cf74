"""What is new in an archive since a version was made: pure functions of tables.

A grown dataset must equal one that is made at once. So besides new and changed scenes those are worked on again whose
tiles were left out in favour of tiles that now may go, and those with tiles that were left out for what may pass; and a
newer version of an acquisition takes the place of an older one even if the older file is gone. Tiles of scenes that are
gone stay, but for those that a scene has, too, that is there: a chip that was moved to another class has its new label.
"""

from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ingest.inventory import supersede
from ingest.reasons import INVENTORY_CODES, PASSING_CODES
from shards.schema import INVENTORY

_COMPARED = ("path", "size", "etag", "archive", "label", "time", "sensor", "acquisition", "version", "offset")


def missing_scenes(known: pa.Table, inventory: pa.Table) -> pa.ChunkedArray:
    """Return the ids of the known scenes that are not in the inventory any more."""
    return known["scene"].filter(pc.invert(_is_in(known["scene"], inventory["scene"])))


def without_gone(doubles: pa.Table, gone: pa.Array) -> pa.Table:
    """Return equal tiles (columns key, kept) such that none of a scene that is gone stands for one of one that is not.

    Of the others the smallest key takes its place. A key begins with its scene's id.
    """
    if not len(gone):
        return doubles
    is_gone = {name: _is_in(pc.utf8_slice_codeunits(doubles[name], 0, 16), gone) for name in ("key", "kept")}
    there = doubles.filter(pc.and_(is_gone["kept"], pc.invert(is_gone["key"])))
    firsts = there.group_by("kept").aggregate([("key", "min")])
    kept = pc.coalesce(firsts["key_min"].take(pc.index_in(doubles["kept"], firsts["kept"])), doubles["kept"])
    # The pair of the one that stays from now on becomes that of the one that stayed.
    key = pc.if_else(pc.equal(doubles["key"], kept), doubles["kept"], doubles["key"])
    return pa.table({"key": key, "kept": kept}).sort_by("key")


class Lacked(NamedTuple):
    """Tiles that the version lacks and a newer one may have, by their scenes."""

    doubles: pa.Table
    """Left out as duplicates: columns scene, and kept: the scene of the tile that was kept."""
    torn: pa.ChunkedArray
    """Left out for what may pass (PASSING_CODES): scenes in any order, also repeated."""
    gone: pa.ChunkedArray
    """Scenes that are not there any more: tiles that were left out for theirs."""

    def freed(self, listed: pa.ChunkedArray) -> pa.Array:
        """Return the listed scenes of tiles that were left out for those of scenes that are gone."""
        mine = self.doubles["scene"].filter(_is_in(self.doubles["kept"], self.gone))
        return pc.unique(mine.filter(_is_in(mine, listed)))


def scenes_to_probe(inventory: pa.Table, known: pa.Table, lacked: Lacked) -> pa.Table:
    """Return the rows to probe (INVENTORY): all that may differ, as far as one can tell before.

    Args:
        inventory: what there is now.
        known: the columns INVENTORY of the version's scenes.
        lacked: of the version.
    """
    listed = _with_superseded(inventory, known)
    return _with_again(listed, _changed(listed, known, probed=False)["scene"], known, lacked)


def scenes_to_pack(probed: pa.Table, known: pa.Table, lacked: Lacked) -> tuple[pa.Table, bool]:
    """Return the probed scenes that differ from the known ones or are to be packed again; and whether any differs.

    Only now is it known of all: a list tells no sizes and ETags, the probe does. One whose tiles were left out for
    those of a scene that is gone differs.
    """
    changed = _changed(probed, known, probed=True)["scene"]
    return _with_again(probed, changed, known, lacked), len(changed) + len(lacked.freed(probed["scene"])) > 0


def _with_again(scenes: pa.Table, changed: pa.ChunkedArray, known: pa.Table, lacked: Lacked) -> pa.Table:
    """Return the changed scenes, and those of tiles left out for theirs, for what may pass, or for scenes gone."""
    torn = lacked.torn.filter(_is_in(lacked.torn, scenes["scene"]))
    torn = pc.unique(pa.chunked_array([*torn.chunks, lacked.freed(scenes["scene"])], pa.string()))
    torn = torn.filter(pc.invert(_is_in(torn, changed)))
    again = _again(changed.filter(_is_in(changed, known["scene"])), torn, lacked.doubles, scenes["scene"])
    return scenes.filter(pc.or_(_is_in(scenes["scene"], changed), _is_in(scenes["scene"], again)))


def _with_superseded(inventory: pa.Table, known: pa.Table) -> pa.Table:
    """Return the inventory after its acquisitions met those of scenes that are gone; such scenes join if they lose."""
    is_gone = pc.and_(pc.invert(_is_in(known["scene"], inventory["scene"])), pc.is_valid(known["acquisition"]))
    gone = known.filter(is_gone).select(INVENTORY.names)
    open_ = pc.invert(_is_in(gone["reason"], pa.array(INVENTORY_CODES)))
    gone = _set(gone, "reason", pc.if_else(open_, pa.scalar(None, pa.string()), gone["reason"]))
    both = pa.concat_tables([inventory.cast(INVENTORY), gone.cast(INVENTORY)])
    for name in ("path", "detail"):
        both = _set(both, name, both[name].cast(pa.large_string()))
    settled = supersede(both.combine_chunks())
    mine = settled.slice(0, inventory.num_rows)
    lost = settled.slice(inventory.num_rows).filter(
        pc.and_(open_, pc.equal(settled["reason"].slice(inventory.num_rows), "superseded"))
    )
    return pa.concat_tables([mine, lost]).cast(INVENTORY).sort_by("scene")


def _changed(scenes: pa.Table, known: pa.Table, *, probed: bool) -> pa.Table:
    """Return the rows that are not among the known ones, or differ from them.

    Before the probe a scene that was rejected for what may pass (a missing file, say) counts as changed; after it only
    if that is so.
    """
    places = pc.index_in(scenes["scene"], value_set=known["scene"].combine_chunks())
    there = known.take(places)
    same = pc.is_valid(places)
    for name in _COMPARED:
        mine, theirs = scenes[name], there[name].cast(scenes[name].type)
        equal = pc.fill_null(pc.equal(mine, theirs), False)
        # A time that the inventory does not know may have come from the file.
        both_null = pc.is_null(mine) if name == "time" else pc.and_(pc.is_null(mine), pc.is_null(theirs))
        same = pc.and_(same, pc.or_(equal, both_null))
    same = pc.and_(same, pc.equal(_codes(scenes["reason"], INVENTORY_CODES), _codes(there["reason"], INVENTORY_CODES)))
    passing = _codes(there["reason"], PASSING_CODES)
    now = _codes(scenes["reason"], PASSING_CODES) if probed else ""
    return scenes.filter(pc.invert(pc.and_(same, pc.equal(passing, now))))


def _again(changed: pa.ChunkedArray, torn: pa.Array, doubles: pa.Table, listed: pa.ChunkedArray) -> pa.Array:
    """Return the torn scenes, those of tiles left out in favour of a changed or torn one's, and so on; all listed."""
    found = pa.chunked_array([*changed.chunks, torn], pa.string())
    while True:
        more = pc.unique(doubles["scene"].filter(_is_in(doubles["kept"], found)))
        more = more.filter(pc.and_(pc.invert(_is_in(more, found)), _is_in(more, listed)))
        if not len(more):
            break
        found = pa.chunked_array([*found.chunks, more])
    return found.filter(pc.invert(_is_in(found, changed))).combine_chunks() if len(found) else pa.array([], pa.string())


def same_tiles(these: pa.Table, those: pa.Table) -> bool:
    """Say whether two tables have the same tiles: columns scene, x, y, in any order."""
    order = [(name, "ascending") for name in ("scene", "x", "y")]
    return bool(these.sort_by(order).equals(those.sort_by(order)))


def _codes(reasons: pa.ChunkedArray, codes: tuple[str, ...]) -> pa.ChunkedArray:
    """Return the reasons that are among the codes, as texts; empty for all others and none."""
    return pc.if_else(pc.fill_null(_is_in(reasons, pa.array(codes)), False), pc.fill_null(reasons, ""), "")


def _is_in(values: pa.ChunkedArray | pa.Array, among: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    return pc.is_in(values, value_set=among.combine_chunks() if isinstance(among, pa.ChunkedArray) else among)


def _set(table: pa.Table, name: str, values: pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)
