"""Which method a run is of, and of which seed, from its `run.json`.

The file is a contract: `identity` is the whole configuration that decides what is computed, `seed` among it, and
`digests` name the datasets. One small file a run.
"""

import json
from dataclasses import dataclass
from typing import Any

from shards import storage
from shards.errors import UserError
from shards.schema import canonical_json, sha256_hex

_FORMAT, _FORMAT_VERSION = "pera-run", 2


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a run was made from."""

    method: str
    """64 hex digits of its configuration without the seed and of its datasets: runs that have them in common differ in
    their seed alone."""
    seed: int


def read_record(run: str) -> Record | None:
    """Read what a run was made from; None where nothing says so, or in an older format.

    Raises:
        UserError: the file is damaged.
    """
    url = storage.join(run, "run.json")
    if not storage.exists(url):
        return None
    try:
        fields: dict[str, Any] = json.loads(storage.read_bytes(url))
        if (fields["format"], fields["format_version"]) != (_FORMAT, _FORMAT_VERSION):
            return None
        identity = dict(fields["identity"])
        seed = int(identity.pop("seed"))
        return Record(method=sha256_hex(canonical_json([identity, list(fields["digests"])])), seed=seed)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{url} is damaged ({type(error).__name__}: {error}): restore it, or move it away and do without a figure "
            "over its seeds"
        ) from error
