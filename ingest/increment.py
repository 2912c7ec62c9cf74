"""What is new in an archive since a version was made: pure functions of tables."""

import pyarrow as pa
import pyarrow.compute as pc

from ingest.reasons import INVENTORY_CODES

COMPARED = ("path", "size", "etag", "archive", "label", "time", "sensor", "acquisition", "version", "offset")
"""Columns of a scene that are known before it is opened; another value makes it a changed one."""


def count_missing(known: pa.ChunkedArray, listed: pa.ChunkedArray) -> int:
    """Return how many known scene ids are not listed any more."""
    return int(len(known) - pc.sum(pc.is_in(known, value_set=listed.combine_chunks())).as_py())


def changed_scenes(scenes: pa.Table, known: pa.Table) -> pa.Table:
    """Return the rows that are not among the known ones, or differ from them in what is known without opening them."""
    places = pc.index_in(scenes["scene"], value_set=known["scene"].combine_chunks())
    there = known.take(places)
    same = pc.is_valid(places)
    for name in COMPARED:
        mine, theirs = scenes[name], there[name].cast(scenes[name].type)
        equal = pc.fill_null(pc.equal(mine, theirs), False)
        # A time that the inventory does not know may have come from the file.
        both_null = pc.is_null(mine) if name == "time" else pc.and_(pc.is_null(mine), pc.is_null(theirs))
        same = pc.and_(same, pc.or_(equal, both_null))
    same = pc.and_(same, _equal_codes(scenes["reason"], there["reason"]))
    return scenes.filter(pc.invert(same))


def _equal_codes(mine: pa.ChunkedArray, theirs: pa.ChunkedArray) -> pa.ChunkedArray:
    """Compare reasons as far as the inventory gives them: later ones are not known yet."""
    codes = pa.array(sorted(INVENTORY_CODES), pa.string())
    first, second = (
        pc.fill_null(pc.if_else(pc.is_in(column, value_set=codes), column, ""), "") for column in (mine, theirs)
    )
    return pc.equal(first, second)
