"""Read what a run has exported: which exports there are, and one of them, checked.

An export is a folder RUN/exports/step_N with `model.safetensors`, timm's `config.json` and `model.json`, which is
written last and holds the weights' checksum: without it there is no export. Reading one holds its weights in memory.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from shards import storage
from shards.errors import UserError

FORMAT = "pera-export"
FORMAT_VERSION = 1
_MODEL_JSON = re.compile(r"(step_(\d{8}))/model\.json")


@dataclass(frozen=True, kw_only=True)
class Export:
    """An export as its files have it."""

    url: str
    """Of the folder."""
    description: dict[str, Any]
    """The content of model.json."""
    timm: bytes
    """The content of config.json, which timm reads."""
    weights: bytes
    """The content of model.safetensors."""


def export_url(run: str, step: int) -> str:
    """Return the folder of a run's export after so many steps."""
    return storage.join(run, "exports", f"step_{step:08d}")


def list_exports(run: str) -> dict[int, str]:
    """Return the folders of a run's complete exports by step, ascending."""
    folder = storage.join(run, "exports")
    if not storage.exists(folder):
        return {}
    names = [info.path for info in storage.list_files(folder)]
    matches = sorted((int(match[2]), match[1]) for match in map(_MODEL_JSON.fullmatch, names) if match)
    return {step: storage.join(folder, name) for step, name in matches}


def read_export(url: str) -> Export:
    """Read an export and compare its weights with their checksum.

    Raises:
        UserError: a file is missing, damaged, or of a format that this code does not know.
    """
    description = _read_description(storage.join(url, "model.json"))
    weights, timm = (_read(storage.join(url, name)) for name in ("model.safetensors", "config.json"))
    if hashlib.sha256(weights).hexdigest() != description["weights_sha256"]:
        raise UserError(
            f"{url}/model.safetensors is damaged: its sha256 is not that in model.json; take another export"
        )
    return Export(url=url, description=description, timm=timm, weights=weights)


def _read_description(url: str) -> dict[str, Any]:
    content = _read(url)
    try:
        description = json.loads(content)
    except ValueError as error:
        raise UserError(f"{url} is damaged: not JSON ({error}); take another export") from error
    found = (description.get("format"), description.get("format_version")) if isinstance(description, dict) else None
    if found != (FORMAT, FORMAT_VERSION):
        raise UserError(f"{url} is no {FORMAT} of version {FORMAT_VERSION}: found {found}")
    return dict(description)


def _read(url: str) -> bytes:
    with storage.user_errors(url):
        return storage.read_bytes(url)
