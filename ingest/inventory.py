"""What there is: one row per scene, from a folder, a list or a STAC document, sorted by the scene's id.

A function of what the source names, not of the order in which it does. Every file is accounted for: it is a scene,
belongs to one, or has a row with the reason why it is left out. Cost: one listing, then some 10 µs per
file; 200 bytes of memory per row and up to 650 per file while they are sorted (measured with 2 million), no Python
object per scene.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ingest.config import IngestConfig, Recipe
from ingest.grouping import group_files
from ingest.listing import read_folder
from ingest.lists import on_disk, read_list
from ingest.patterns import describe_files, folder_labels, offsets
from ingest.places import places_of
from ingest.sources import BATCH_ROWS, Kind, kind_of
from ingest.stac import is_geoparquet, read_geoparquet, read_stac
from shards.errors import UserError
from shards.schema import INVENTORY

_SLICE_ROWS = 100_000
_DIGITS = 20  # of the numbers in versions


def scene_id(path: str) -> str:
    """Return a scene's id: 16 hex digits of its path below the root, so that a move changes nothing."""
    return hashlib.sha256(path.encode()).hexdigest()[:16]


def build_inventory(config: IngestConfig) -> pa.Table:
    """Return all scenes that `config.scenes` names (INVENTORY), sorted by id; `reason` says why one is left out.

    Raises:
        UserError: the source is not there, cannot be read, is malformed, or names nothing; a pattern is none of RE2's.
    """
    kind = kind_of(config.scenes)
    if kind == "parquet" and _holds_items(config.scenes):
        kind = "stac"
    pattern = "" if kind == "stac" else config.file_pattern  # items say themselves what a path would have to tell
    described = [describe_files(rows, pattern) for rows in _read(kind, config)]
    if not described:
        raise UserError(f"no scenes found: {config.scenes} holds no {'files' if kind == 'folder' else 'scenes'}")
    return settle_inventory(described, config, labels=kind != "stac")


def _read(kind: Kind, config: IngestConfig) -> Iterator[pa.Table]:
    if kind in ("folder", "zip"):
        return read_folder(config.scenes)
    places = places_of(config.scenes, config.allow)
    if kind == "stac":
        read = read_stac if kind_of(config.scenes) == "stac" else read_geoparquet
        return read(config.scenes, places, config)
    return read_list(config.scenes, places)


def _holds_items(scenes: str) -> bool:
    with on_disk(scenes) as path:
        try:
            return is_geoparquet(pq.read_schema(path).names)
        except pa.ArrowInvalid as error:
            raise UserError(f"{scenes} is no Parquet file: {error}") from error


def settle_inventory(files: list[pa.Table], recipe: Recipe, *, labels: bool = True) -> pa.Table:
    """Return the inventory (INVENTORY) of described files, whatever their order.

    Args:
        files: tables of DESCRIBED, of any size; the list is emptied, so that their memory is free before the result's
            is taken.
        recipe: its patterns and bands.
        labels: whether folders may give labels, if the recipe wants it.
    """
    scenes = pa.concat_tables(files)
    files.clear()
    scenes = group_files(scenes, recipe)
    if labels and recipe.label_from == "folder":
        scenes = folder_labels(scenes)
    scenes, ids = identify(offsets(scenes, recipe))
    scenes = supersede(scenes.combine_chunks())
    order = np.argsort(ids)
    starts = range(0, len(order), _SLICE_ROWS)
    return pa.concat_tables([_slice(scenes, ids, order[start : start + _SLICE_ROWS]) for start in starts])


def _slice(scenes: pa.Table, ids: NDArray[np.uint64], rows: NDArray[np.int64]) -> pa.Table:
    taken = scenes.take(pa.array(rows))
    hexes = pa.array([f"{number:016x}" for number in ids[rows].tolist()], pa.string())
    columns = [hexes if field.name == "scene" else taken[field.name].cast(field.type) for field in INVENTORY]
    return pa.table(columns, INVENTORY)


def identify(scenes: pa.Table) -> tuple[pa.Table, NDArray[np.uint64]]:
    """Return the scenes (FOUND) and their ids, unique: the first 64 bits of the sha256 of `id`, or else of the path.

    Of several with one id the first row of the list keeps it (of those without a reason, if any); the others become
    path#row with the reason listed_twice (path#2, path#3 … by their ETags where the source has no rows).
    """
    ids = _ids(scenes)
    while len(rows := np.flatnonzero(_is_repeated(ids))):
        again, suffixes = _repeats(scenes, ids, rows)
        renamed = _renamed(scenes.take(pa.array(again)), suffixes)
        keep = np.ones(len(ids), bool)
        keep[again] = False
        scenes = pa.concat_tables([scenes.filter(pa.array(keep)), renamed])
        ids = np.concatenate([ids[keep], _ids(renamed)])
    return scenes, ids


def _ids(scenes: pa.Table) -> NDArray[np.uint64]:
    """Return `scene_id` of each id or else path as a number."""
    parts = [np.empty(0, np.uint64)]
    for start in range(0, scenes.num_rows, BATCH_ROWS):
        rows = scenes.slice(start, BATCH_ROWS)
        batch = pc.coalesce(rows["id"], rows["path"]).to_pylist()
        parts.append(np.array([int(scene_id(name), 16) for name in batch], np.uint64))
    return np.concatenate(parts)


def _is_repeated(ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
    _, place, counts = np.unique(ids, return_inverse=True, return_counts=True)
    return np.asarray(counts[place] > 1)


def _repeats(scenes: pa.Table, ids: NDArray[np.uint64], rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[str]]:
    """Return which of the rows with equal ids do not count, and what is put behind their paths."""
    rivals = scenes.select(["row", "path", "etag", "size"]).take(pa.array(rows))
    left_out = scenes["reason"].is_valid().take(pa.array(rows)).cast(pa.int8())
    rivals = rivals.append_column("id", pa.array(ids[rows])).append_column("at", pa.array(rows))
    rivals = rivals.append_column("left_out", left_out)
    rivals = rivals.sort_by([(name, "ascending") for name in ("id", "left_out", "row", "path", "etag", "size")])
    key = rivals["id"].to_numpy()
    rank = np.arange(len(key)) - np.searchsorted(key, key)
    again = rivals.filter(pa.array(rank > 0))
    numbers = zip(again["row"].to_pylist(), (rank[rank > 0] + 1).tolist(), strict=True)
    return again["at"].to_numpy(), [f"#{number if row is None else row}" for row, number in numbers]


def _renamed(scenes: pa.Table, suffixes: list[str]) -> pa.Table:
    wide = pa.large_string()
    paths = pc.binary_join_element_wise(scenes["path"], pa.array(suffixes, wide), pa.scalar("", wide))
    scenes = _with(scenes, "path", paths)
    scenes = _with(scenes, "id", pa.nulls(scenes.num_rows, wide))
    detail = pa.scalar("an earlier row names the same scene", wide)
    scenes = _with(scenes, "detail", pc.if_else(scenes["reason"].is_null(), detail, scenes["detail"]))
    return _with(scenes, "reason", pc.coalesce(scenes["reason"], "listed_twice"))


def _with(table: pa.Table, name: str, column: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


def supersede(scenes: pa.Table) -> pa.Table:
    """Return the scenes (FOUND), of each acquisition but one with the reason superseded and the detail "by PATH".

    The highest version stays (`version_keys`; none is the lowest), of equal ones the smallest path. A scene that is
    left out for another reason supersedes nothing.
    """
    open_rows = np.flatnonzero(pc.and_(scenes["acquisition"].is_valid(), scenes["reason"].is_null()).to_numpy())
    if not len(open_rows):
        return scenes
    rivals = scenes.select(["acquisition", "version", "path"]).take(pa.array(open_rows))
    rivals = _with(rivals, "version", version_keys(rivals["version"])).append_column("at", pa.array(open_rows))
    rivals = rivals.sort_by([("acquisition", "ascending"), ("version", "descending"), ("path", "ascending")])
    acquisitions = rivals["acquisition"].combine_chunks()
    is_first = np.ones(len(acquisitions), bool)
    is_first[1:] = pc.not_equal(acquisitions[1:], acquisitions[:-1]).to_numpy(zero_copy_only=False)
    at = rivals["at"].to_numpy()
    winner = np.full(scenes.num_rows, -1)
    winner[at] = at[is_first][np.cumsum(is_first) - 1]
    is_old = pa.array((winner >= 0) & (winner != np.arange(scenes.num_rows)))
    wide = pa.large_string()
    by = scenes["path"].take(pa.array(winner, mask=~is_old.to_numpy(zero_copy_only=False)))
    detail = pc.binary_join_element_wise(pa.scalar("by ", wide), by, pa.scalar("", wide))
    scenes = _with(scenes, "detail", pc.if_else(is_old, detail, scenes["detail"]))
    return _with(scenes, "reason", pc.if_else(is_old, "superseded", scenes["reason"]))


def version_keys(versions: Any) -> pa.ChunkedArray:
    """Return texts that sort as the versions do: numbers in them by value, so that 9 < 10 and N0301 < N0400."""
    chunks = [pa.array([], pa.large_string())]
    for start in range(0, len(versions), BATCH_ROWS):
        batch = versions.slice(start, BATCH_ROWS).to_pylist()
        padded = [re.sub(r"[0-9]+", lambda digits: digits[0].zfill(_DIGITS), version or "") for version in batch]
        chunks.append(pa.array(padded, pa.large_string()))
    return pa.chunked_array(chunks)
