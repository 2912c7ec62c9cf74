"""What a dataset's tables say, in figures: one pass over each of them, file by file.

Costs the memory of one table file and its chosen columns (some hundred MB at 2 million rows), of the different
labels and sensors, and of up to a million cells of the map; no Python object per tile or scene.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shards.schema import Band, Version
from shards.tables import iter_table

CELLS_PER_DEGREE = 4096
"""Of the finest level of `Places`: about 27 m of latitude."""
_MAX_CELLS = 2**20
_KINDS = ("label", "sensor", "split", "member")
_TALLY = pa.schema([("value", pa.string()), ("count", pa.int64())])
_REJECT = ["reason", "whole", "count", "path", "detail"]

BINS: Mapping[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "gsd_m": lambda values: np.floor(4 * np.log2(values[values > 0])),
    "valid_share": lambda values: np.minimum(values * 25, 24),
    "contrast": lambda values: np.minimum(values * 50, 24),
    "entropy": lambda values: np.minimum(values * 4, 31),
    "cloud_share": lambda values: np.minimum(values * 25, 24),
    "time": lambda values: values.astype("datetime64[M]"),
    "num_tiles": lambda values: np.ceil(np.log2(values[values > 0])),
}
"""Value to whole-number bin: quarters of an octave, 1/25, 1/50, 1/4 bit, 1/25, months from 1970, octaves."""
_FARTHEST_STD = 3  # what lies further from a band's mean is counted in its outermost bins


def band_step(band: Band) -> float:
    """Return the width of a bin of tile means: 1, 2 or 5 times a power of ten, up to a quarter of the deviation."""
    if not band.std:
        return 1.0
    power = 10.0 ** math.floor(math.log10(band.std / 4))
    return power * max(factor for factor in (1, 2, 5) if factor * power <= band.std / 4 or factor == 1)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """How often the values of a text column occur."""

    top: tuple[tuple[str, int], ...]
    """The most frequent (value, count), by falling count, then by value."""
    num_values: int
    """Different values, nulls left out."""
    num_rows: int
    """Rows that have a value."""


@dataclass(frozen=True, kw_only=True)
class RejectGroup:
    """What was left out for one reason."""

    reason: str
    whole: bool
    """Whole scenes; else tiles."""
    count: int
    path: str
    """An example: the first of the table."""
    detail: str


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The figures of a version."""

    histograms: Mapping[str, Mapping[int, int]]
    """Bin to count by name, see BINS; empty where a column is all null. Tiles, num_tiles: used scenes."""
    band_means: tuple[Mapping[int, int], ...]
    """For each band the bins of the tiles' means, in units of `band_step`; empty where the tiles have no figures."""
    rankings: Mapping[str, Ranking]
    """By column: label, sensor, split, member."""
    places: "Places"
    num_unplaced_scenes: int
    """Used scenes without a CRS."""
    first_time: datetime | None
    last_time: datetime | None
    rejects: tuple[RejectGroup, ...]
    """By falling count, scenes first."""
    num_shard_samples: int
    """Samples that lie in the shards: more than the version's where it leaves some out."""


class Places:
    """How many tiles lie where, in square cells of degrees that double in size as often as memory asks for.

    Coarsening halves whole numbers, so the outcome does not depend on the order in which tiles come.
    """

    def __init__(self) -> None:
        self.level = 0
        """Cells measure 2^level / CELLS_PER_DEGREE degrees."""
        self.codes = np.empty(0, np.int64)
        """Row (from the south pole) · 2³² + column (from 180° W), ascending."""
        self.counts = np.empty(0, np.int64)
        self.num_unplaced = 0
        """Tiles without a longitude and latitude on Earth."""

    @classmethod
    def of(cls, level: int, codes: NDArray[np.int64], counts: NDArray[np.int64]) -> "Places":
        """Return cells that were counted before; the codes ascend."""
        places = cls()
        places.level, places.codes, places.counts = level, codes, counts
        return places

    @property
    def num_placed(self) -> int:
        """Count of tiles on the map."""
        return int(self.counts.sum())

    def add(self, lon: NDArray[np.float64], lat: NDArray[np.float64]) -> None:
        """Count tiles by their centres, degrees; NaN and latitudes beyond the poles have no place."""
        there = np.isfinite(lon) & (np.abs(lat) <= 90)
        self.num_unplaced += int(len(lon) - there.sum())
        column = np.floor((lon[there] + 180) % 360 * CELLS_PER_DEGREE).astype(np.int64)
        row = np.floor((lat[there] + 90) * CELLS_PER_DEGREE).astype(np.int64)
        ones = np.ones(len(row), np.int64)
        self._merge((row >> self.level) << 32 | column >> self.level, ones)
        while len(self.codes) > _MAX_CELLS:
            self._coarsen()

    def coarser(self, level: int) -> "Places":
        """Return the same tiles in cells of that level or, if that is the coarser one, its own."""
        other = Places.of(self.level, self.codes, self.counts)
        while other.level < level:
            other._coarsen()
        return other

    def cells(self) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """Return the south-western corners' longitudes and latitudes, and the cells' side, all degrees."""
        side = 2.0**self.level / CELLS_PER_DEGREE
        column, row = self.codes & 0xFFFFFFFF, self.codes >> 32
        return np.asarray(column * side - 180, np.float64), np.asarray(row * side - 90, np.float64), side

    def _coarsen(self) -> None:
        codes, counts = self.codes, self.counts
        self.level += 1
        self.codes, self.counts = np.empty(0, np.int64), np.empty(0, np.int64)
        self._merge(codes >> 33 << 32 | (codes & 0xFFFFFFFF) >> 1, counts)

    def _merge(self, codes: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        self.codes, inverse = np.unique(np.concatenate([self.codes, codes]), return_inverse=True)
        merged = np.zeros(len(self.codes), np.int64)
        np.add.at(merged, inverse, np.concatenate([self.counts, counts]))
        self.counts = merged


def take_survey(url: str, version: Version) -> Survey:
    """Read all tables of a version and count.

    Raises:
        UserError: a table is missing or damaged.
    """
    histograms: dict[str, Counter[int]] = {name: Counter() for name in BINS}
    tallies = {name: _TALLY.empty_table() for name in _KINDS}
    band_means: list[Counter[int]] = [Counter() for _ in version.bands]
    places, times = Places(), []
    names = [name for name in BINS if name != "num_tiles"]
    columns = [*names, *_KINDS, "lon", "lat", "num_valid", "band_sums"]
    for table in iter_table(url, version, "samples", columns, dictionary=_KINDS):
        for name in names:
            _count_bins(histograms[name], name, table[name])
        _count_means(band_means, table, version.bands)
        for name in _KINDS:
            tallies[name] = _add_values(tallies[name], table[name])
        places.add(_floats(table["lon"]), _floats(table["lat"]))
        times += [value for value in pc.min_max(table["time"]).as_py().values() if value is not None]
    unplaced = 0
    for table in iter_table(url, version, "scenes", ["state", "crs", "num_tiles"], dictionary=["crs"]):
        used = table.filter(pc.equal(table["state"], "used"))
        _count_bins(histograms["num_tiles"], "num_tiles", used["num_tiles"])
        unplaced += used["crs"].null_count
    return Survey(
        histograms=histograms,
        band_means=tuple(band_means),
        rankings={name: _ranking(tally) for name, tally in tallies.items()},
        places=places,
        num_unplaced_scenes=unplaced,
        first_time=min(times, default=None),
        last_time=max(times, default=None),
        rejects=_rejects(url, version),
        num_shard_samples=sum(
            pc.sum(table["num_samples"]).as_py() or 0 for table in iter_table(url, version, "shards", ["num_samples"])
        ),
    )


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Null becomes NaN."""
    return np.asarray(column.to_numpy(), np.float64)


def _count_bins(counts: Counter[int], name: str, column: pa.ChunkedArray) -> None:
    values = column.drop_null().to_numpy()
    bins = BINS[name](values[np.isfinite(values)]).astype(np.int64)
    for place, count in zip(*np.unique(bins, return_counts=True), strict=True):
        counts[int(place)] += int(count)


def _count_means(counts: list[Counter[int]], table: pa.Table, bands: Sequence[Band]) -> None:
    """Count the means of tiles that have as many band sums as there are bands, and a valid pixel."""
    if not bands:
        return
    has_all = pc.equal(pc.list_value_length(table["band_sums"]), len(bands))
    mine = table.filter(pc.and_(has_all, pc.greater(table["num_valid"], 0)))
    sums_TB = pc.list_flatten(mine["band_sums"]).to_numpy().reshape(-1, len(bands))
    means_TB = sums_TB / mine["num_valid"].to_numpy()[:, None]
    for band, mine_T, found in zip(bands, means_TB.T, counts, strict=True):
        ends = band.mean - _FARTHEST_STD * band.std, band.mean + _FARTHEST_STD * band.std
        bins = np.floor(np.clip(mine_T[np.isfinite(mine_T)], *ends) / band_step(band)).astype(np.int64)
        for place, count in zip(*np.unique(bins, return_counts=True), strict=True):
            found[int(place)] += int(count)


def _add_values(tally: pa.Table, column: pa.ChunkedArray) -> pa.Table:
    found = pc.value_counts(column.unify_dictionaries().drop_null())
    columns = [found.field("values").cast(pa.string()), found.field("counts")]
    table = pa.concat_tables([tally, pa.table(columns, schema=_TALLY)])
    return table.group_by("value").aggregate([("count", "sum")]).rename_columns(_TALLY.names)


def _ranking(tally: pa.Table, num_top: int = 30) -> Ranking:
    ordered = tally.sort_by([("count", "descending"), ("value", "ascending")])
    top = ordered.slice(0, num_top)
    return Ranking(
        top=tuple(zip(top["value"].to_pylist(), top["count"].to_pylist(), strict=True)),
        num_values=tally.num_rows,
        num_rows=pc.sum(tally["count"]).as_py() or 0,
    )


def _rejects(url: str, version: Version) -> tuple[RejectGroup, ...]:
    parts: list[pa.Table] = []
    for table in iter_table(url, version, "rejects", ["reason", "x", "path", "detail"]):
        ones = pa.array(np.ones(table.num_rows, np.int64))
        columns = [table["reason"], pc.is_null(table["x"]), ones, table["path"], table["detail"]]
        parts = [_grouped(pa.concat_tables([*parts, pa.table(columns, names=_REJECT)]))]
    order = [("whole", "descending"), ("count", "descending"), ("reason", "ascending")]
    rows = parts[0].sort_by(order).to_pylist() if parts else []
    return tuple(
        RejectGroup(
            reason=row["reason"] or "",
            whole=row["whole"],
            count=row["count"],
            path=row["path"] or "",
            detail=row["detail"] or "",
        )
        for row in rows
    )


def _grouped(table: pa.Table) -> pa.Table:
    # One thread: "first" is the first of the table, not of whichever thread ends first.
    groups = table.group_by(["reason", "whole"], use_threads=False)
    first = pc.ScalarAggregateOptions(skip_nulls=False)
    sums = groups.aggregate([("count", "sum"), ("path", "first", first), ("detail", "first", first)])
    renamed = {"count_sum": "count", "path_first": "path", "detail_first": "detail"}
    return sums.rename_columns([renamed.get(name, name) for name in sums.column_names]).select(_REJECT)
