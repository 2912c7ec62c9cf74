"""What there is: one row per file below the scenes' root, sorted by path."""

import hashlib
from pathlib import PurePosixPath

import pyarrow as pa

from ingest.config import IngestConfig
from shards import storage
from shards.errors import UserError

SCHEMA = pa.schema(
    [
        ("scene", pa.string()),
        ("path", pa.string()),
        ("size", pa.int64()),
        ("etag", pa.string()),
        ("label", pa.string()),
    ]
)


def scene_id(path: str) -> str:
    """Return a scene's id: 16 hex digits of its path below the root, so that a move changes nothing."""
    return hashlib.sha256(path.encode()).hexdigest()[:16]


def list_scenes(config: IngestConfig) -> pa.Table:
    """List all files below the scenes' root as a table.

    Raises:
        UserError: the root does not exist, cannot be read, or holds no file.
    """
    files = storage.list_files(config.scenes)
    if not files:
        raise UserError(f"no scenes found: {config.scenes} holds no files")
    # A name that is not UTF-8 is written with escapes; under that name nothing is found, so that it is rejected.
    paths = [file.path.encode("utf-8", "backslashreplace").decode() for file in files]
    return pa.table(
        {
            "scene": [scene_id(path) for path in paths],
            "path": paths,
            "size": [file.size for file in files],
            "etag": [file.etag for file in files],
            "label": [_label(path, config) for path in paths],
        },
        schema=SCHEMA,
    )


def _label(path: str, config: IngestConfig) -> str | None:
    folder = PurePosixPath(path).parent.name
    return folder if config.label_from == "folder" and folder else None
