"""Rows of the scenes table as the worker and the decoder exchange them: plain JSON values."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any


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
    return {name: time_text(value) if isinstance(value, datetime) else value for name, value in row.items()}


def time_text(moment: datetime) -> str:
    """Return a moment (UTC) as text of whole seconds: also of years below 1000, of which strftime makes one digit."""
    return f"{moment.replace(tzinfo=None).isoformat(timespec='seconds')}Z"


def from_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with its time as a moment, as tables take it."""
    time = row.get("time")
    return {**row, "time": datetime.fromisoformat(time) if time else None}
