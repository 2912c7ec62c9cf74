"""Say in what two dataset versions differ: scenes, their tiles, and how the versions were made.

Equal digests mean equal content; then no table is read. Otherwise memory: the paths, sizes, ETags and states of all
scenes of both (about 200 bytes each), and 20 bytes per tile of both: keys and contents are compared by 64-bit hashes
(among 50 million tiles one mistake in 10⁴ runs). About 1 µs per tile.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shards.schema import SCENES, Version
from shards.settle import hash_prefixes, scene_numbers
from shards.tables import iter_table, read_version

_SCENE_COLUMNS = ["path", "size", "etag", "state", "reason", "num_tiles"]
_Numbers = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """In what version b differs from version a; tables are sorted by path."""

    digest_a: str
    digest_b: str
    added: pa.Table
    """Scenes of b that a lacks: path, size, etag, state, reason, num_tiles."""
    removed: pa.Table
    """Scenes of a that b lacks."""
    changed: pa.Table
    """Scenes of both: the columns above with _a and _b, and tiles_added, tiles_removed, tiles_changed."""
    num_tiles_added: int
    """In all scenes."""
    num_tiles_removed: int
    num_tiles_changed: int
    """Same key, other bytes (image or metadata)."""
    record: tuple[str, ...]
    """A line for each option, tool or operation that is not the same."""

    @property
    def equal(self) -> bool:
        """Whether the content is the same; the record may still differ."""
        return self.digest_a == self.digest_b

    def lines(self, limit: int = 20) -> Iterator[str]:
        """Yield the report: at most `limit` lines of each kind, then the record's differences and a summary."""
        for kind, table, told in [
            ("added", self.added, _told_scene),
            ("removed", self.removed, _told_scene),
            ("changed", self.changed, _told_change),
        ]:
            for row in table.slice(0, limit).to_pylist():
                yield f"{kind} scene {told(row)}"
            if table.num_rows > limit:
                yield f"… and {table.num_rows - limit} more {kind} scenes"
        yield from self.record[:limit]
        if len(self.record) > limit:
            yield f"… and {len(self.record) - limit} more differences of the record"
        yield self.summary()

    def summary(self) -> str:
        """Return one line that says it all."""
        record = f"{len(self.record)} differences of the record" if self.record else "same record"
        if self.equal:
            return f"equal: digest {self.digest_a}; {record}"
        return (
            f"different: scenes {self.added.num_rows} added, {self.removed.num_rows} removed, "
            f"{self.changed.num_rows} changed; tiles {self.num_tiles_added} added, {self.num_tiles_removed} removed, "
            f"{self.num_tiles_changed} with other bytes; {record}"
        )


def diff(url_a: str, url_b: str, number_a: int | None = None, number_b: int | None = None) -> Difference:
    """Compare two versions (the newest by default), of one dataset or of two.

    Raises:
        UserError: there is no such dataset or version, or a table is damaged.
    """
    a, b = read_version(url_a, number_a), read_version(url_b, number_b)
    record = tuple(_record_lines(a, b))
    if a.digest == b.digest:
        none = SCENES.empty_table().select(_SCENE_COLUMNS)
        return Difference(
            digest_a=a.digest,
            digest_b=b.digest,
            added=none,
            removed=none,
            changed=_compare(none, none, np.zeros((3, 0), np.int64)),
            num_tiles_added=0,
            num_tiles_removed=0,
            num_tiles_changed=0,
            record=record,
        )
    numbers_a, scenes_a = _scenes(url_a, a)
    numbers_b, scenes_b = _scenes(url_b, b)
    everything = np.union1d(numbers_a, numbers_b)
    counts_3S = _tile_changes(_tiles(url_a, a, everything), _tiles(url_b, b, everything), len(everything))
    in_a, in_b = np.isin(numbers_a, numbers_b), np.isin(numbers_b, numbers_a)
    both = np.searchsorted(everything, numbers_a[in_a])
    return Difference(
        digest_a=a.digest,
        digest_b=b.digest,
        added=scenes_b.filter(pa.array(~in_b)).sort_by("path"),
        removed=scenes_a.filter(pa.array(~in_a)).sort_by("path"),
        changed=_compare(scenes_a.filter(pa.array(in_a)), scenes_b.filter(pa.array(in_b)), counts_3S[:, both]),
        num_tiles_added=int(counts_3S[0].sum()),
        num_tiles_removed=int(counts_3S[1].sum()),
        num_tiles_changed=int(counts_3S[2].sum()),
        record=record,
    )


def _scenes(url: str, version: Version) -> tuple[_Numbers, pa.Table]:
    """Return the scenes' numbers, ascending, and their rows in that order."""
    table = pa.concat_tables(iter_table(url, version, "scenes", ["scene", *_SCENE_COLUMNS]))
    numbers = scene_numbers(table["scene"])
    order = np.argsort(numbers)
    return numbers[order], table.select(_SCENE_COLUMNS).take(pa.array(order))


@dataclass(frozen=True)
class _Tiles:
    """All tiles of a version, by ascending hash of the key."""

    keys: _Numbers
    contents: _Numbers
    scenes: NDArray[np.int32]
    """Place among the scenes of both versions; -1: no scene."""


def _tiles(url: str, version: Version, everything: _Numbers) -> _Tiles:
    keys, contents, scenes = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)], [np.empty(0, np.int32)]
    columns = ["key", "scene", "member_sha256", "json_sha256"]
    with duckdb.connect(":memory:", config={"threads": "1"}) as database:
        for table in iter_table(url, version, "samples", columns):
            database.register("tile", table.select(["key"]))
            keys.append(database.execute("SELECT hash(key) AS number FROM tile").fetchnumpy()["number"])
            # Samples of an indexed dataset may have neither a scene nor another member than the image.
            others = pc.fill_null(table["json_sha256"].cast(pa.binary()), bytes(32)).cast(pa.binary(32))
            contents.append(hash_prefixes(table["member_sha256"]) ^ hash_prefixes(others))
            places = np.full(table.num_rows, -1, np.int32)
            has_scene = pc.is_valid(table["scene"])
            places[has_scene.to_numpy()] = np.searchsorted(everything, scene_numbers(table["scene"].filter(has_scene)))
            scenes.append(places)
    numbers = np.concatenate(keys)
    order = np.argsort(numbers)
    return _Tiles(numbers[order], np.concatenate(contents)[order], np.concatenate(scenes)[order])


def _tile_changes(a: _Tiles, b: _Tiles, num_scenes: int) -> NDArray[np.int64]:
    """Return int64 [3, S + 1]: tiles added, removed, and with other bytes, per scene and, last, of no scene."""
    in_b = np.isin(a.keys, b.keys)
    in_a = np.isin(b.keys, a.keys)
    other = np.zeros(len(a.keys), bool)
    other[in_b] = a.contents[in_b] != b.contents[np.searchsorted(b.keys, a.keys[in_b])]
    rows = [b.scenes[~in_a], a.scenes[~in_b], a.scenes[other]]
    return np.stack([np.bincount(each % (num_scenes + 1), minlength=num_scenes + 1) for each in rows])


def _compare(a: pa.Table, b: pa.Table, tiles_3S: NDArray[np.int64]) -> pa.Table:
    """Return the rows that differ of two tables whose rows are the same scenes in the same order."""
    differs = tiles_3S.any(axis=0)
    for name in ("size", "etag", "state", "reason"):
        unequal = pc.fill_null(pc.not_equal(a[name], b[name]), False)
        one_null = pc.xor(pc.is_null(a[name]), pc.is_null(b[name]))
        differs = differs | pc.or_(unequal, one_null).to_numpy().astype(bool)
    columns = {"path": a["path"]}
    for name in _SCENE_COLUMNS[1:]:
        columns |= {f"{name}_a": a[name], f"{name}_b": b[name]}
    for name, counts in zip(("tiles_added", "tiles_removed", "tiles_changed"), tiles_3S, strict=True):
        columns[name] = pa.array(counts)
    return pa.table(columns).filter(pa.array(differs)).sort_by("path")


def _told_scene(row: Mapping[str, Any]) -> str:
    state = f"rejected: {row['reason']}" if row["state"] == "rejected" else f"{row['num_tiles']} tiles"
    return f"{row['path']} ({state})"


def _told_change(row: Mapping[str, Any]) -> str:
    told = [
        f"source changed ({name} {row[f'{name}_a']} → {row[f'{name}_b']})"
        for name in ("size", "etag")
        if row[f"{name}_a"] != row[f"{name}_b"]
    ]
    before, after = (
        f"{row[f'state_{side}']}" + (f" for {row[f'reason_{side}']}" if row[f"reason_{side}"] else "") for side in "ab"
    )
    if before != after:
        told.append(f"{before} → {after}")
    words = {"tiles_added": "added", "tiles_removed": "removed", "tiles_changed": "with other bytes"}
    tiles = [f"{row[name]} {word}" for name, word in words.items() if row[name]]
    if tiles:
        told.append(f"tiles {', '.join(tiles)}")
    return f"{row['path']}: {'; '.join(told)}"


def _record_lines(a: Version, b: Version) -> Iterator[str]:
    for kind, of_a, of_b in [
        ("tiles:", _tile_kind(a), _tile_kind(b)),
        ("scenes' root", {"": a.record.get("scenes")}, {"": b.record.get("scenes")}),
        ("recipe:", _flat(a.record.get("recipe", {})), _flat(b.record.get("recipe", {}))),
        ("toolchain:", _tools(a.record), _tools(b.record)),
        ("operations", {"": a.record.get("operations", [])}, {"": b.record.get("operations", [])}),
    ]:
        for name in sorted(of_a.keys() | of_b.keys()):
            before, after = of_a.get(name), of_b.get(name)
            if before != after:
                yield f"{' '.join([kind, *filter(None, [name])])} is {before} in the first, {after} in the second"


def _tile_kind(version: Version) -> dict[str, Any]:
    bands = ", ".join(band.name for band in version.bands)
    return {"bands": bands, "dtype": version.dtype, "tile_px": version.tile_px}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _tools(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the versions of each tool over all plans; one alone as it is."""
    # Datasets of before there were increments have one toolchain and no list of plans.
    chains = [plan.get("toolchain", {}) for plan in record.get("plans", [])] or [record.get("toolchain", {})]
    found: dict[str, list[Any]] = {}
    for name, value in ((name, value) for chain in chains for name, value in _flat(chain).items()):
        if value not in found.setdefault(name, []):
            found[name].append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}
