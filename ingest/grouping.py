"""Several files, one scene: files whose paths say that they are bands of the same acquisition become one row.

Pure functions of tables, whatever the order of their rows. Cost: one sort of the files by their texts, then numpy;
memory: the files' table twice.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ingest.config import Recipe
from ingest.sources import BATCH_ROWS, FOUND

Ints = NDArray[np.int64]


def group_files(files: pa.Table, recipe: Recipe) -> pa.Table:
    """Return one row per scene (FOUND) of files that `describe_files` has described.

    Files with equal scene text, in one archive or in none, are one scene, its files sorted by band; its path is the
    smallest that ends with this text, its etag changes with any of theirs. Where a band is there twice in different
    folders (a copy of the whole scene), the files of each folder are a scene; where it is there twice in one, the first
    by path counts and the other is a row with the reason listed_twice. Bands that the recipe does not name are left
    out like those of a file with many bands; a scene that lacks one that it names has the reason bands_missing.
    """
    is_part = pc.and_(files["scene_text"].is_valid(), files["reason"].is_null())
    if not pc.any(is_part).as_py():
        return files.select(FOUND.names)
    single = files.filter(pc.invert(is_part)).select(FOUND.names)
    parts = files.filter(is_part)
    order = ("scene_text", "archive", "scene_path", "path", "etag")
    parts = parts.sort_by([(name, "ascending") for name in order]).combine_chunks()
    names = needed_bands(recipe)
    scene, keep = _scenes_of(parts, names)
    parts, scene = parts.filter(pa.array(keep)), scene[keep]
    is_again = _is_again(scene, _codes(parts["band"]))
    again = parts.filter(pa.array(is_again))
    scenes = _rows(parts.filter(pa.array(~is_again)), scene[~is_again], names)
    return pa.concat_tables([single, scenes, _listed_twice(again, scenes["path"], scene[is_again])])


def needed_bands(recipe: Recipe) -> tuple[str, ...]:
    """Return the names of the files that the recipe reads; none where it tells bands by number, or not at all."""
    names = (*recipe.source_bands, *([recipe.cloud_band] if recipe.cloud_band else []))
    if not recipe.source_bands or any(isinstance(name, int) for name in names):
        return ()
    return tuple(dict.fromkeys(map(str, names)))


def _scenes_of(parts: pa.Table, names: Sequence[str]) -> tuple[Ints, NDArray[np.bool_]]:
    """Return the scene's number of each sorted file, and which files to keep."""
    text = np.cumsum(_changes(parts["scene_text"]) | _changes(parts["archive"])) - 1
    is_needed = pc.is_in(parts["band"], pa.array(names, pa.string())).to_numpy() if names else np.ones(len(text), bool)
    is_doubled = np.zeros(text[-1] + 1, bool)
    is_doubled[text[is_needed][_is_again(text[is_needed], _codes(parts["band"])[is_needed])]] = True
    scene = np.cumsum(np.diff(text, prepend=-1).astype(bool) | (_changes(parts["scene_path"]) & is_doubled[text])) - 1
    has_needed = np.zeros(scene[-1] + 1, bool)
    has_needed[scene[is_needed]] = True
    # A scene with nothing that is needed stays, to be rejected by name.
    return scene, is_needed | ~has_needed[scene]


def _changes(column: Any) -> NDArray[np.bool_]:
    """Say of each row of a sorted column whether it differs from the row before; the first one does."""
    values = pc.coalesce(column, pa.scalar("", column.type)).combine_chunks()
    different = pc.not_equal(values.slice(1), values.slice(0, len(values) - 1))
    return np.concatenate([[True], different.to_numpy(zero_copy_only=False)]).astype(bool)


def _codes(bands: Any) -> Ints:
    return np.asarray(pc.dictionary_encode(bands).combine_chunks().indices.to_numpy(), np.int64)


def _is_again(scene: Ints, band: Ints) -> NDArray[np.bool_]:
    """Say of each file whether an earlier one has the same scene and band."""
    again = np.ones(len(scene), bool)
    again[np.unique(scene * (band.max(initial=0) + 1) + band, return_index=True)[1]] = False
    return again


def _rows(parts: pa.Table, scene: Ints, names: Sequence[str]) -> pa.Table:
    """Return one row per scene: `parts` are sorted by scene and path, and no scene has a band twice."""
    starts = np.flatnonzero(np.diff(scene, prepend=-1))
    first = parts.take(starts)
    order = pc.sort_indices(
        pa.table({"scene": scene, "band": parts["band"]}), [("scene", "ascending"), ("band", "ascending")]
    )
    inner = parts.select(["path", "size", "etag", "band"]).take(order).combine_chunks()
    edges = pa.array(np.append(starts, len(scene)), pa.int32())
    files = pa.ListArray.from_arrays(edges, pa.StructArray.from_arrays(
        [inner[name].combine_chunks() for name in inner.column_names], inner.column_names
    ))  # fmt: skip
    texts = _joined(inner["band"], "=", inner["etag"]).combine_chunks()
    etags = _digests(pa.ListArray.from_arrays(edges, texts))
    sizes = pc.if_else(_any_null(inner["size"], starts), None, np.add.reduceat(_or_zero(inner["size"]), starts))
    missing = _missing(scene, inner["band"], names, len(starts))
    changed = {
        "path": first["scene_path"],
        "size": sizes,
        "etag": etags,
        "files": files.cast(FOUND.field("files").type),
        "reason": pc.if_else(missing.is_valid(), "bands_missing", None),
        "detail": missing,
    }
    return pa.table([changed.get(name, first[name]) for name in FOUND.names], FOUND.names).cast(FOUND)


def _digests(lists: Any) -> Any:
    """Return the sha256 of each list of texts as 64 hex digits; null where one of them is."""
    chunks = []
    for start in range(0, len(lists), BATCH_ROWS):
        batch = lists.slice(start, BATCH_ROWS).to_pylist()
        joined = [None if None in texts else hashlib.sha256("\n".join(texts).encode()).hexdigest() for texts in batch]
        chunks.append(pa.array(joined, pa.large_string()))
    return pa.chunked_array(chunks, pa.large_string())


def _joined(*texts: Any) -> Any:
    kind = pa.large_string()
    wide = [pa.scalar(text, kind) if isinstance(text, str) else text.cast(kind) for text in texts]
    return pc.binary_join_element_wise(*wide, pa.scalar("", kind))


def _or_zero(sizes: Any) -> Ints:
    return np.asarray(pc.fill_null(sizes, 0).to_numpy(), np.int64)


def _any_null(column: Any, starts: Ints) -> Any:
    return pa.array(np.logical_or.reduceat(column.is_null().to_numpy(), starts))


def _missing(scene: Ints, bands: Any, names: Sequence[str], num_scenes: int) -> Any:
    """Return what each scene lacks of the names, as text; null: nothing. `scene` is sorted as `bands`."""
    if not names:
        return pa.nulls(num_scenes, pa.large_string())
    index = pc.index_in(bands, pa.array(names, pa.string()))
    is_named = index.is_valid().to_numpy()
    is_there = np.zeros((num_scenes, len(names)), bool)
    is_there[scene[is_named], index.drop_null().to_numpy()] = True
    patterns, which = np.unique(is_there, axis=0, return_inverse=True)
    texts = [_lacks([name for name, there in zip(names, row, strict=True) if not there]) for row in patterns]
    return pa.array(texts, pa.large_string()).take(pa.array(which.reshape(-1)))


def _lacks(names: list[str]) -> str | None:
    return f"no file for {', '.join(names)}" if names else None


def _listed_twice(files: pa.Table, paths: Any, scene: Ints) -> pa.Table:
    """Return the files that a scene has no use for as rows of their own."""
    detail = _joined("band ", files["band"], " of ", paths.take(scene), " is there already")
    rows = files.select(FOUND.names)
    rows = rows.set_column(FOUND.get_field_index("detail"), "detail", detail)
    reason = pa.array(["listed_twice"] * files.num_rows, pa.string())
    return rows.set_column(FOUND.get_field_index("reason"), "reason", reason)
