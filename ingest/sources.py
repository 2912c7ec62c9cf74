"""Where scenes come from: what `scenes` names, below which folder its paths lie, and the rows that all sources give.

A source is an iterator of Arrow tables with the columns FOUND, at most some thousand rows each, so that no Python
object per scene outlives its batch. Cost: about 250 bytes of memory per row, most of them its path.
"""

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal, TypeVar

import pyarrow as pa

from ingest.reasons import SceneRejectedError
from shards import storage
from shards.errors import UserError
from shards.schema import INVENTORY

BATCH_ROWS = 10_000
Kind = Literal["folder", "zip", "csv", "parquet", "stac"]
Value = TypeVar("Value")

_SUFFIXES: tuple[tuple[str, Kind], ...] = (
    (".zip", "zip"),
    (".csv", "csv"),
    (".parquet", "parquet"),
    (".geoparquet", "parquet"),
    (".json", "stac"),
    (".geojson", "stac"),
)
# Paths and what quotes them: of five million rows together they may pass the 2 GB that 32-bit offsets reach.
_LONG = pa.large_string()
_FILES = pa.list_(
    pa.field("element", pa.struct([("path", _LONG), ("size", pa.int64()), ("etag", _LONG), ("band", pa.string())]))
)
_WIDE = {"path": _LONG, "etag": _LONG, "archive": _LONG, "detail": _LONG, "files": _FILES}

FOUND = pa.schema(
    [
        *(pa.field(field.name, _WIDE.get(field.name, field.type)) for field in INVENTORY if field.name != "scene"),
        ("id", _LONG),  # what names the scene instead of its path
        ("row", pa.int64()),  # place in the list, from 1; null: the source has no order
    ]
)
"""Columns of a source's rows: INVENTORY before scenes have their ids."""


def kind_of(scenes: str) -> Kind:
    """Say what `scenes` names: a local folder is a folder whatever its name; else the ending decides."""
    if storage.is_local(scenes) and storage.local_path(scenes).is_dir():
        return "folder"
    return next((kind for suffix, kind in _SUFFIXES if scenes.lower().endswith(suffix)), "folder")


def scenes_root(scenes: str) -> str:
    """Return the folder or prefix that the paths of the inventory are relative to: of a list, the list's folder."""
    if kind_of(scenes) == "folder":
        return scenes
    folder, slash, _ = scenes.rpartition("/")
    return folder or (slash or ".")


def batched(values: Iterable[Value], size: int = BATCH_ROWS) -> Iterator[list[Value]]:
    """Yield lists of `size` values, the last one shorter."""
    remaining = iter(values)
    while batch := list(islice(remaining, size)):
        yield batch


def found(**columns: Any) -> pa.Table:
    """Return a table of FOUND from some of its columns (sequences, arrays, or None); the others are null.

    Texts that are not Unicode (names on a disk, escapes in JSON) must have gone through `text` before.
    """
    arrays = {name: column for name, column in columns.items() if column is not None}
    num_rows = len(next(iter(arrays.values())))
    filled = [
        _column(arrays[field.name], field.type) if field.name in arrays else pa.nulls(num_rows, field.type)
        for field in FOUND
    ]
    return pa.Table.from_arrays(filled, schema=FOUND)


def _column(values: Any, kind: pa.DataType) -> Any:
    return values.cast(kind) if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, kind)


@contextmanager
def rejecting(url: str) -> Iterator[None]:
    """Turn what rules out one file or archive into a rejection: bad_archive (a ValueError), missing, unreadable.

    A store's refusal rejects nothing: it also says so of a token that expired, and of a clock that is wrong.

    Raises:
        SceneRejectedError: the file's own fault.
        PermissionError: a store refuses.
        OSError: the fault of a disk, a network or a store.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise SceneRejectedError("bad_archive", str(error)) from error
    except FileNotFoundError as error:
        raise SceneRejectedError("missing", "cannot be opened") from error
    except PermissionError as error:
        if storage.is_local(url):
            raise SceneRejectedError("unreadable", "permission denied") from error
        raise PermissionError(f"{url}: {error}: check credentials and clock") from error
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENAMETOOLONG):
            raise
        raise SceneRejectedError("missing", "a link that leads in a circle, or too long a name") from error


def text(value: str) -> str:
    """Write what UTF-8 cannot hold as escapes; under that name nothing is found, so that it is rejected later."""
    return value.encode("utf-8", "backslashreplace").decode()
