"""What paths tell: the groups of `file_pattern`, labels from folders, and which scenes have the recipe's offset.

Pure functions of tables; the expressions are RE2's (through Arrow), so that none can take exponential time.
Cost: 2 µs per path and pattern (measured on one core of an AMD EPYC).
"""

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest.config import Recipe
from ingest.sources import FOUND
from shards.errors import UserError

DESCRIBED = pa.schema(
    [
        *FOUND,
        ("scene_text", pa.large_string()),  # files with equal text are one scene; null: the file is a scene
        ("scene_path", pa.large_string()),  # the file's path up to the end of that text
        ("band", pa.string()),
    ]
)
"""Columns of files that the pattern has described."""

_META = ("acquisition", "version", "sensor", "label")


def describe_files(files: pa.Table, pattern: str) -> pa.Table:
    """Return the files with what a `file_pattern` finds in their paths (DESCRIBED); an empty one finds nothing.

    What a list said already stands. Files without a match get the reason pattern_mismatch; those that have a reason
    are left alone. A file for which the group `band` finds nothing is a scene of its own, whatever the group `scene`;
    so is every file where there is no such group.

    Raises:
        UserError: RE2 does not understand the pattern, or it has a band but no scene.
    """
    files = files.combine_chunks()
    columns: dict[str, Any] = {name: pa.nulls(files.num_rows, DESCRIBED.field(name).type) for name in DESCRIBED.names}
    columns |= {name: files[name].combine_chunks() for name in files.column_names}
    if pattern:
        columns |= _read_pattern(columns, pattern)
    return pa.table([columns[field.name].cast(field.type) for field in DESCRIBED], DESCRIBED)


def _read_pattern(columns: dict[str, Any], pattern: str) -> dict[str, Any]:
    groups = _groups(pattern)
    paths, is_open = columns["path"], columns["reason"].is_null()
    matched = pc.and_(_matches(paths, pattern), is_open)
    found = {name: pc.if_else(matched, column, None) for name, column in _extract(paths, pattern, groups).items()}
    told = {name: _null_if_empty(column).cast(pa.string()) for name, column in found.items() if name != "scene"}
    changed = {name: pc.coalesce(columns[name], told[name]) for name in _META if name in told}
    if "time" in told:
        changed["time"] = pc.coalesce(columns["time"], read_times(told["time"]))
    if "band" in groups:
        changed |= {
            "scene_text": pc.if_else(told["band"].is_valid(), _null_if_empty(found["scene"]), None),
            "scene_path": pc.if_else(matched, _cut(paths, _ends(paths, pattern, matched)), None),
            "band": told["band"],
        }
    missed = pc.and_(pc.invert(matched), is_open)
    return {**changed, "reason": pc.if_else(missed, "pattern_mismatch", columns["reason"])}


def _groups(pattern: str) -> tuple[str, ...]:
    groups = tuple(re.compile(pattern).groupindex)
    if "band" in groups and "scene" not in groups:
        raise UserError("file_pattern has a group band but none called scene: name what the files of one scene share")
    return groups


def _matches(texts: Any, pattern: str) -> Any:
    try:
        return pc.match_substring_regex(texts, pattern)
    except pa.ArrowInvalid as error:
        raise UserError(f"the pattern {pattern!r} is none that RE2 understands: {error}") from error


def _extract(paths: Any, pattern: str, groups: tuple[str, ...]) -> dict[str, Any]:
    """Return each group's text: "" where it took no part; undefined where the path does not match."""
    if not groups:
        return {}
    try:
        texts = pc.extract_regex(paths, pattern)
    except pa.ArrowInvalid as error:
        raise UserError(
            f"file_pattern {pattern!r} has a group without a name: write (?:…) or (?P<scene>…) ({error})"
        ) from error
    return {name: pc.struct_field(texts, name) for name in groups}


def _null_if_empty(texts: Any) -> Any:
    return pc.if_else(pc.equal(texts, ""), None, texts)


def _ends(paths: Any, pattern: str, matched: Any) -> Any:
    """Return where the group `scene` ends, int64 bytes from the start of the path; 0 where nothing matched."""
    span = pc.struct_field(pc.extract_regex_span(paths, pattern), "scene")
    edges = pc.list_flatten(pc.if_else(span.is_valid(), span, pa.scalar([0, 0], span.type)))
    start_length = edges.to_numpy(zero_copy_only=False).astype(np.int64).reshape(-1, 2)
    return np.where(matched.to_numpy(zero_copy_only=False), start_length.sum(axis=1), 0)


def _cut(paths: Any, ends: Any) -> Any:
    """Return the first `ends` bytes of each path."""
    cut = [path[:end] for path, end in zip(paths.cast(pa.large_binary()).to_pylist(), ends.tolist(), strict=True)]
    return pa.array(cut, pa.large_binary()).cast(pa.large_string())


def read_times(texts: Any) -> Any:
    """Read YYYYMMDD, with or without HHMMSS (any signs between), as UTC milliseconds; null: not such a time."""
    digits = pc.replace_substring_regex(texts, r"\D", "")
    whole = pc.if_else(pc.equal(pc.utf8_length(digits), 8), pc.binary_join_element_wise(digits, "000000", ""), digits)
    whole = pc.if_else(pc.equal(pc.utf8_length(whole), 14), whole, None)
    times = pc.strptime(whole, format="%Y%m%d%H%M%S", unit="ms", error_is_null=True)
    # strptime makes 2 March of 30 February, and a minute of 60 seconds.
    day, second = (pc.utf8_slice_codeunits(whole, at, at + 2).cast(pa.int64()) for at in (6, 12))
    is_same = pc.and_(pc.equal(pc.day(times), day), pc.equal(pc.second(times), second))
    return pc.assume_timezone(pc.if_else(is_same, times, None), "UTC")


def folder_labels(scenes: pa.Table) -> pa.Table:
    """Return the scenes with the name of their folder as label, where nothing else gave one; of a zip without .zip."""
    folders = pc.struct_field(pc.extract_regex(scenes["path"], r"(?:^|/)(?P<folder>[^/]+)/[^/]+$"), "folder")
    labels = pc.coalesce(scenes["label"], pc.replace_substring_regex(folders, r"(?i)\.zip$", "").cast(pa.string()))
    return scenes.set_column(scenes.schema.get_field_index("label"), "label", labels)


def offsets(scenes: pa.Table, recipe: Recipe) -> pa.Table:
    """Return the scenes with offset 0 where `offset_pattern` is not found in the path (of several files: the first).

    An offset that a list or item gave stands; null goes on to mean the recipe's.

    Raises:
        UserError: RE2 does not understand the pattern.
    """
    if not recipe.offset_pattern:
        return scenes
    first = pc.struct_field(pc.list_element(scenes["files"], 0), "path")
    without = pc.invert(_matches(pc.coalesce(first, scenes["path"]), recipe.offset_pattern))
    given = scenes["offset"]
    return scenes.set_column(
        scenes.schema.get_field_index("offset"), "offset", pc.if_else(pc.and_(given.is_null(), without), 0.0, given)
    )
