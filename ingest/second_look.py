"""Decoder calls whose word "corrupt" can be trusted: GDAL does not tell a failing disk or mount from bad content.

Where a file on this machine is called corrupt, its bytes are read once in this process, whose reads say what failed;
if they all come, the call is made once more, as the fault may have passed meanwhile. Costs nothing for good scenes, of
a corrupt one a read of its files and a second decoding. What is read from a store by ranges fails by itself.
"""

from collections.abc import Mapping
from typing import Any

from ingest.access import Access
from ingest.reasons import SceneRejectedError
from ingest.sandbox import Decoder, Finish

_CHUNK_BYTES = 2**20


def call_surely(
    decode: Decoder, name: str, request: dict[str, Any], access: Access, finish: Finish | None = None
) -> dict[str, Any]:
    """Call the decoder on a scene; make sure of it if the answer is that local bytes are corrupt.

    Raises:
        SceneRejectedError: as the decoder says, or "unreadable" if a file cannot be read to its end.
        OSError: what the decoder's call raises.
    """
    try:
        found = decode.call(name, request, access.read, finish)
    except SceneRejectedError as rejection:
        if rejection.code != "corrupt" or not _local_paths(access):
            raise
    else:
        if not _local_paths(access) or not any(map(_is_corrupt, found.get("rejects", ()))):
            return found
    for path in _local_paths(access):
        _read_through(path)
    return decode.call(name, request, access.read, finish)


def _local_paths(access: Access) -> list[str]:
    return [file["local"] for file in access.files if file["local"]]


def _is_corrupt(reject: Mapping[str, Any]) -> bool:
    return bool(reject["reason"] == "corrupt")


def _read_through(path: str) -> None:
    """Read a file to its end.

    Raises:
        SceneRejectedError: the system says that it cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            while file.read(_CHUNK_BYTES):
                pass
    except OSError as error:
        raise SceneRejectedError("unreadable", error.strerror or type(error).__name__) from error
