"""Rows of the scenes table as the worker and the decoder exchange them: plain JSON values."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

_TIME = "%Y-%m-%dT%H:%M:%S"


def scene_files(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the files of a scene as {path, size, etag, band}: of a one-file scene its own path."""
    own = {"path": row["path"], "size": row["size"], "etag": row["etag"], "band": ""}
    return [dict(file) for file in row["files"]] if row["files"] else [own]


def member_of(row: Mapping[str, Any], file: Mapping[str, Any]) -> str:
    """Return the name that a file of a scene has in the scene's archive."""
    return str(file["path"]).removeprefix(f"{row['archive']}/")


def joined_etag(files: Sequence[Mapping[str, Any]]) -> str:
    """Return the ETag of a scene of several files, 64 hex digits: changes with any of theirs.

    The same as `ingest.grouping` gives to a whole table.
    """
    return hashlib.sha256("\n".join(f"{file['band']}={file['etag']}" for file in files).encode()).hexdigest()


def to_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with its time as text; all else is JSON already."""
    return {name: value.strftime(f"{_TIME}Z") if isinstance(value, datetime) else value for name, value in row.items()}


def from_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with its time as a moment, as tables take it."""
    time = row.get("time")
    return {**row, "time": datetime.strptime(time, f"{_TIME}Z").replace(tzinfo=UTC) if time else None}
