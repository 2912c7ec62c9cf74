"""Read what a run exported: `model.safetensors`, described and sealed by `model.json`.

The rim to a run's files, on disk or in a bucket. An export counts only if `model.json` is there (it is written
last) and the weights have the checksum that it states. Weights are safetensors, never a pickle.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shards import storage
from shards.errors import UserError

_FORMAT, _FORMAT_VERSION = "pera-export", 1
_LISTS = ("bands", "mean", "std")


@dataclass(frozen=True, kw_only=True)
class Export:
    """A backbone as a run exported it; the fields are those of `model.json`."""

    url: str
    """The export folder."""
    architecture: str
    """Name of a timm model function; `model_args` override its arguments."""
    model_args: Mapping[str, Any]
    image_px: int
    """Side of the square input, pixels."""
    bands: tuple[str, ...]
    dtype: str
    mean: tuple[float, ...]
    """Per band, in units of the type's value range 0…1 (uint8: value / 255); `std` alike."""
    std: tuple[float, ...]
    step: int
    samples_seen: int
    dataset_digest: str
    weights_sha256: str
    weights: bytes
    """The content of model.safetensors."""

    def __post_init__(self) -> None:
        if not len(self.bands) == len(self.mean) == len(self.std):
            raise ValueError(f"{len(self.bands)} bands but {len(self.mean)} means and {len(self.std)} stds")

    @property
    def label(self) -> str:
        """Return "RUN step N" for RUN/exports/step_N, else the folder's own name and the step."""
        parts = [part for part in self.url.split("/") if part]
        run = parts[-3] if parts[-2:-1] == ["exports"] and len(parts) > 2 else parts[-1]
        return f"{run} step {self.step}"


def find_export(url: str) -> tuple[Export, list[str]]:
    """Return the export at a URL (an export folder or a run) and a line per newer export that was passed over.

    Raises:
        UserError: there is no such folder, or nothing valid in it.
    """
    if storage.exists(storage.join(url, "model.json")):
        return read_export(url), []
    if not storage.exists(url):
        raise UserError(f"model {url} does not exist: give an export folder, a run, timm:NAME or floor:NAME")
    faults: list[str] = []
    for folder in _export_folders(url):
        try:
            return read_export(folder), faults
        except UserError as error:
            faults.append(str(error))
    detail = f" ({'; '.join(faults)})" if faults else ""
    raise UserError(f"{url} has no valid export, neither model.json nor exports/*/model.json{detail}: train it further")


def _export_folders(run: str) -> list[str]:
    """List RUN/exports/* that have a model.json, the highest step first."""
    exports = storage.join(run, "exports")
    if not storage.exists(exports):
        return []
    paths = [info.path for info in storage.list_files(exports)]
    names = [path.split("/")[0] for path in paths if re.fullmatch(r"[^/]+/model\.json", path)]
    names.sort(key=lambda name: int("".join(re.findall(r"\d+", name)[-1:]) or -1), reverse=True)
    return [storage.join(exports, name) for name in names]


def read_export(url: str) -> Export:
    """Read an export folder and check its weights against their sha256.

    Raises:
        UserError: a file is missing, damaged, of another format version, or does not match its checksum.
    """
    fields = _read_fields(storage.join(url, "model.json"))
    weights_url = storage.join(url, "model.safetensors")
    try:
        weights = storage.read_bytes(weights_url)
    except FileNotFoundError as error:
        raise UserError(f"{weights_url} is missing: export it again") from error
    if hashlib.sha256(weights).hexdigest() != fields.get("weights_sha256"):
        raise UserError(f"{weights_url} is corrupt: its sha256 is not the one in model.json; export it again")
    names = [name for name in Export.__dataclass_fields__ if name not in ("url", "weights")]
    try:
        values: dict[str, Any] = {name: tuple(fields[name]) if name in _LISTS else fields[name] for name in names}
        return Export(url=url.rstrip("/"), weights=weights, **values)
    except KeyError as error:
        raise UserError(f"{url}/model.json lacks {error}: export it again") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{url}/model.json is inconsistent: {error}; export it again") from error


def _read_fields(url: str) -> dict[str, Any]:
    try:
        fields = json.loads(storage.read_bytes(url))
    except FileNotFoundError as error:
        raise UserError(f"{url} is missing: the export is incomplete") from error
    except ValueError as error:
        raise UserError(f"{url} is corrupt: not JSON ({error})") from error
    found = (fields.get("format"), fields.get("format_version")) if isinstance(fields, dict) else None
    if found != (_FORMAT, _FORMAT_VERSION):
        raise UserError(f"{url} is not a {_FORMAT} of version {_FORMAT_VERSION}: found {found}")
    return dict(fields)
