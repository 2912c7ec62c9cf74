"""Make a version with fewer samples that points to the shards of another: nothing is rewritten but tables.

The samples table is read three times, file by file. Memory: one byte per sample, the paths of all scenes, what a
`SceneTally` holds, one table file (2 million rows), and the rows of rejected scenes. Time is that of decoding and
encoding the tables, and of the digest (3 µs per row).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shards import storage
from shards.commit import commit_version, write_table
from shards.digest import content_digest
from shards.errors import UserError
from shards.schema import REJECTS, SAMPLES, SCENES, SHARDS, Version
from shards.settle import BandSums, SceneTally, scene_numbers
from shards.tables import iter_table, list_versions, read_table, read_version


class Decision(Protocol):
    """Says which samples stay, and why the others go; a pure function of the rows."""

    @property
    def columns(self) -> list[str]:
        """Columns of the samples table that `keep` reads."""

    def keep(self, samples: pa.Table) -> NDArray[np.bool_]:
        """Return bool [N]: the samples that stay."""

    def reasons(self, left_out: pa.Table) -> tuple[pa.Array, pa.Array]:
        """Return reason code and detail (strings [N]) of samples that go: columns key, scene, x, y."""


@dataclass
class _Pass:
    """What one pass over the kept samples finds out."""

    tally: SceneTally
    bands: BandSums
    shards: set[str] = field(default_factory=set)
    num_samples: int = 0

    def watch(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            # Samples of an indexed dataset have no scene.
            self.tally.add_samples(table.filter(pc.is_valid(table["scene"])))
            self.bands.add(table)
            self.shards.update(pc.unique(table["shard"]).to_pylist())
            others = pc.struct_field(pc.list_flatten(table["parts"]), "shard")
            self.shards.update(pc.unique(others).to_pylist())
            self.num_samples += table.num_rows
            yield table


class _LeftOut:
    """The rejects of samples that a decision leaves out, table by table, as often as asked."""

    def __init__(self, url: str, parent: Version, decide: Decision, masks: list[NDArray[np.bool_]]) -> None:
        self._url, self._parent, self._decide, self._masks = url, parent, decide, masks
        scenes = list(iter_table(url, parent, "scenes", ["scene", "path"]))
        numbers = np.concatenate([np.empty(0, np.uint64), *(scene_numbers(table["scene"]) for table in scenes)])
        self._order = np.argsort(numbers)
        self._numbers = numbers[self._order]
        self._paths = pa.chunked_array([table["path"].cast(pa.large_string()) for table in scenes]).combine_chunks()

    def __iter__(self) -> Iterator[pa.Table]:
        tables = iter_table(self._url, self._parent, "samples", ["key", "scene", "x", "y"])
        for table, mask in zip(tables, self._masks, strict=True):
            yield self._rejects(table.filter(pa.array(~mask)))

    def _rejects(self, samples: pa.Table) -> pa.Table:
        reason, detail = self._decide.reasons(samples)
        columns = [samples["scene"], self._path(samples), *self._corner(samples), reason, detail]
        return pa.table(columns, names=REJECTS.names).cast(REJECTS)

    def _path(self, samples: pa.Table) -> pa.Array:
        """Return the path of each sample's scene; of one without a scene its key."""
        has_scene = pc.is_valid(samples["scene"])
        places = np.searchsorted(self._numbers, scene_numbers(samples["scene"].filter(has_scene)))
        paths = self._paths.take(pa.array(self._order[places])).cast(pa.string())
        return pc.replace_with_mask(samples["key"].combine_chunks(), has_scene.combine_chunks(), paths)

    def _corner(self, samples: pa.Table) -> tuple[pa.Array, pa.Array]:
        """Return x and y; 0 without a scene, as null would mean the whole of one."""
        no_scene = pc.is_null(samples["scene"])
        x, y = (pc.if_else(no_scene, pc.fill_null(samples[name], 0), samples[name]) for name in ("x", "y"))
        return x, y


def derive(url: str, parent: Version, out: str | None, decide: Decision, operation: Mapping[str, Any]) -> Version:
    """Write a version of the samples that a decision keeps; rows keep their order, shards stay where they are.

    Samples that go are added to the rejects, scenes are settled again, band figures measured again. In the same
    dataset it becomes the next version; elsewhere a new dataset (or the next version there) with absolute URLs of
    the shards. The same derivation again returns the version that is there.

    Args:
        url: the dataset.
        parent: the version of it to derive from.
        out: the dataset to write to; None: the same.
        decide: says which samples stay.
        operation: what was done, for the record: {"op": "select", "where": …}.

    Returns:
        The new version; the parent itself if every sample stays in the same dataset: then nothing is written.

    Raises:
        UserError: no sample is left (nothing is written), or a table is damaged.
    """
    tables = iter_table(url, parent, "samples", decide.columns)
    masks = [decide.keep(table) for table in tables]
    num_kept = sum(int(mask.sum()) for mask in masks)
    target = out or url
    # Elsewhere all of them are news, too: who reads there would find an older selection, or nothing.
    if num_kept == parent.num_samples and _place(url) == _place(target):
        return parent
    if not num_kept:
        told = ", ".join(f"{name} {value}" for name, value in operation.items() if name != "op")
        raise UserError(f"no sample of {url} version {parent.version} is left by {operation['op']} ({told}): loosen it")
    storage.require_writable(target)
    version = _write(url, parent, target, _LeftOut(url, parent, decide, masks), masks)
    return _commit(target, replace(version, record=_record(url, parent, target, operation)))


def _write(url: str, parent: Version, target: str, left_out: _LeftOut, masks: list[NDArray[np.bool_]]) -> Version:
    seen = _Pass(
        tally=SceneTally(table["scene"] for table in iter_table(url, parent, "scenes", ["scene"])),
        bands=BandSums([band.name for band in parent.bands]),
    )
    rows = zip(iter_table(url, parent, "samples", SAMPLES.names), masks, strict=True)
    kept = (table.filter(pa.array(mask)).cast(SAMPLES) for table, mask in rows)
    tables = {"samples": write_table(target, "samples", seen.watch(kept))}
    for rejects in (*_tile_rejects(url, parent), *left_out):
        seen.tally.add_rejects(rejects.filter(pc.is_valid(rejects["scene"])))
    whole: list[pa.Table] = []
    tables["scenes"] = write_table(target, "scenes", _settled(url, parent, seen.tally, whole))
    shards = _shards(url, parent, target, seen.shards)
    tables["shards"] = write_table(target, "shards", [shards])
    tables["rejects"] = write_table(target, "rejects", _chain(whole, _tile_rejects(url, parent), left_out))
    version = replace(
        parent,
        bands=seen.bands.figures() or parent.bands,
        num_samples=seen.num_samples,
        num_shards=shards.num_rows,
        num_rejected=sum(table.num_rows for table in whole),
        num_bytes=pc.sum(shards["size"]).as_py(),
        tables=tables,
    )
    return replace(version, digest=tables_digest(target, version))


def _chain(*parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    for part in parts:
        yield from part


def _tile_rejects(url: str, parent: Version) -> Iterator[pa.Table]:
    for table in iter_table(url, parent, "rejects", REJECTS.names):
        yield table.filter(pc.is_valid(table["x"])).cast(REJECTS)


def _settled(url: str, parent: Version, tally: SceneTally, whole: list[pa.Table]) -> Iterator[pa.Table]:
    for table in iter_table(url, parent, "scenes", SCENES.names):
        final, rejects = tally.settle(table)
        whole.append(rejects)
        yield final


def _shards(url: str, parent: Version, target: str, used: set[str]) -> pa.Table:
    shards = read_table(url, parent, "shards").cast(SHARDS)
    shards = shards.filter(pc.is_in(shards["shard"], pa.array(sorted(used), pa.string())))
    if _place(url) == _place(target):
        return shards
    urls = pa.array([storage.join(_place(url), each) for each in shards["url"].to_pylist()], pa.string())
    return shards.set_column(SHARDS.get_field_index("url"), "url", urls)


def tables_digest(target: str, version: Version) -> str:
    """Return the content digest of a version whose tables are written."""
    samples = iter_table(target, version, "samples", ["key", "member", "member_sha256", "json_sha256"])
    scenes = iter_table(target, version, "scenes", ["scene", "path", "state", "reason", "num_tiles"])
    return content_digest([band.name for band in version.bands], version.dtype, samples, scenes)


def _record(url: str, parent: Version, target: str, operation: Mapping[str, Any]) -> dict[str, Any]:
    same = _place(url) == _place(target)
    return {
        **parent.record,
        "operations": [*parent.record.get("operations", []), dict(operation)],
        "parent": parent.version if same else None,
        "base": {"url": "." if same else _place(url), "version": parent.version, "digest": parent.digest},
    }


def _place(url: str) -> str:
    """Return a URL that means the same from everywhere."""
    if storage.is_local(url):
        return str(storage.local_path(url).resolve())
    return url.rstrip("/")


def _commit(target: str, version: Version) -> Version:
    numbers = list_versions(target)
    for number in reversed(numbers):
        there = read_version(target, number)
        if replace(version, version=number).to_json() == there.to_json():
            return there
    version = replace(version, version=max(numbers, default=0) + 1)
    commit_version(target, version)
    return version
