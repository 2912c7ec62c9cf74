"""What is new in an archive since a version was made: pure functions of tables.

A grown dataset must equal one that is made at once. So besides new and changed scenes those are worked on again whose
tiles were left out in favour of tiles that now may go, and those with tiles that were left out for what may pass; and a
newer version of an acquisition takes the place of an older one even if the older file is gone.
"""

from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ingest.inventory import supersede
from ingest.reasons import INVENTORY_CODES, PASSING_CODES
from shards.schema import INVENTORY

_COMPARED = ("path", "size", "etag", "archive", "label", "time", "sensor", "acquisition", "version", "offset")


def count_missing(known: pa.Table, inventory: pa.Table) -> int:
    """Return how many known scenes are not in the inventory any more."""
    return int(known.num_rows - pc.sum(_is_in(known["scene"], inventory["scene"])).as_py())


class Lacked(NamedTuple):
    """Tiles that the version lacks and a newer one may have, by their scenes."""

    doubles: pa.Table
    """Left out as duplicates: columns scene, and kept: the scene of the tile that was kept."""
    torn: pa.ChunkedArray
    """Left out for what may pass (PASSING_CODES): scenes in any order, also repeated."""


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

    Only now is it known of all: a list tells no sizes and ETags, the probe does.
    """
    changed = _changed(probed, known, probed=True)["scene"]
    return _with_again(probed, changed, known, lacked), len(changed) > 0


def _with_again(scenes: pa.Table, changed: pa.ChunkedArray, known: pa.Table, lacked: Lacked) -> pa.Table:
    """Return the changed scenes, and those of tiles that were left out for theirs, or for what may pass."""
    torn = pc.unique(lacked.torn.filter(_is_in(lacked.torn, scenes["scene"])))
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
