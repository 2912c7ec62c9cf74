"""What an ingest made and left out: figures for its progress line, its log and its last words.

Memory: one table file of rejects, and the places of what may pass (32 bytes each).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ingest.reasons import PASSING_CODES
from shards.schema import REJECTS, Version
from shards.tables import iter_table

_NAMED_SCENES = 3
_COUNTED = ["scene", "x", "reason"]


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Scenes and tiles of a version that are left out, by reason."""

    scenes: Counter[str]
    tiles: Counter[str]
    passing_scenes: Counter[str]
    """Of the scenes that are still there those with a reason that may pass."""
    passing_tiles: Counter[str]

    @property
    def passing_line(self) -> str:
        """What the same command looks at again, in one line; empty if there is nothing."""
        kinds = (self.passing_scenes, "scenes"), (self.passing_tiles, "tiles")
        told = [f"{counts.total()} {noun} ({told_counts(counts)})" for counts, noun in kinds if counts]
        return f"{' and '.join(told)} were left out for what may pass: run the same command again" if told else ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an ingest made."""

    url: str
    version: Version
    created: bool
    """False: the same inputs had been made into this version before."""
    gone: int
    """Scenes of the version that are no longer where they were; their tiles stay, but for those that others have."""
    left_out: LeftOut
    selection: Version | None
    """The newest version before, if `shards select` or `dedup` made it: this one does not repeat that."""

    @property
    def rejected(self) -> Counter[str]:
        """Scenes left out, by reason."""
        return self.left_out.scenes

    @property
    def dropped(self) -> Counter[str]:
        """Tiles left out, by reason."""
        return self.left_out.tiles


def count_left_out(url: str, version: Version, listed: pa.ChunkedArray) -> LeftOut:
    """Count a version's rejects.

    Args:
        url: the dataset.
        version: of it.
        listed: ids of the scenes that are still where they were: what is gone is not looked at again.

    Raises:
        UserError: the table is missing or damaged.
    """
    scenes: Counter[str] = Counter()
    tiles: Counter[str] = Counter()
    passing = [REJECTS.empty_table().select(_COUNTED)]
    for table in iter_table(url, version, "rejects", _COUNTED):
        whole = pc.is_null(table["x"])
        scenes.update(value_counts(table["reason"].filter(whole)))
        tiles.update(value_counts(table["reason"].filter(pc.invert(whole))))
        passing.append(may_pass(table))
    there = pa.concat_tables(passing)
    if there.num_rows:
        there = there.filter(pc.is_in(there["scene"], value_set=listed.combine_chunks().cast(pa.string())))
    whole = pc.is_null(there["x"])
    return LeftOut(
        scenes=scenes,
        tiles=tiles,
        passing_scenes=Counter(value_counts(there["reason"].filter(whole))),
        passing_tiles=Counter(value_counts(there["reason"].filter(pc.invert(whole)))),
    )


def may_pass(rejects: pa.Table) -> pa.Table:
    """Return the rejects whose reason may be another one tomorrow, though the scene is the same."""
    return rejects.filter(pc.is_in(rejects["reason"], value_set=pa.array(PASSING_CODES)))


def value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    """Return how often each value occurs."""
    found = pc.value_counts(column)
    return dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True))


def told_counts(counts: Counter[str], most: int | None = None) -> str:
    """Return counts as text, the most frequent first: "3 corrupt, 1 black"."""
    return ", ".join(f"{count} {code}" for code, count in counts.most_common(most))


def named(paths: Sequence[str]) -> str:
    """Return the first of some scenes, and how many more there are."""
    more = len(paths) - _NAMED_SCENES
    return ", ".join(paths[:_NAMED_SCENES]) + (f" and {more} more" if more > 0 else "")


@dataclass
class PackedSoFar:
    """What the finished groups add up to."""

    scenes: int = 0
    """Counted where their first unit is."""
    tiles: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    shard_bytes: int = 0
    source_bytes: int = 0
    """Read by this run; groups that an earlier one finished do not count."""

    def add(self, marker: dict[str, Any], num_scenes: int, *, resumed: bool) -> None:
        """Add a finished group: its marker, and the scenes whose first unit it has."""
        self.scenes += num_scenes
        self.tiles += marker["samples"]["num_rows"]
        self.left_out.update(marker["left_out"])
        self.shard_bytes += sum(shard["size"] for shard in marker["shards"])
        self.source_bytes += 0 if resumed else marker["source_bytes"]

    def line(self, elapsed_s: float) -> str:
        """Return the figures as the progress line shows them."""
        reasons = f" ({told_counts(self.left_out, 2)})" if self.left_out else ""
        left_out = f"{self.left_out.total()} left out{reasons}"
        done = f"{self.scenes} scenes, {self.tiles} tiles, {left_out}"
        rate = f"read {self.source_bytes / 1e6 / elapsed_s:.1f} MB/s"
        return f"{done} · {self.shard_bytes / 1e6:.1f} MB in shards · {rate}"
