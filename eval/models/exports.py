"""Read what a run exported: `model.safetensors`, described and sealed by `model.json`.

The rim to an export's files, on disk or in a bucket. An export counts only if `model.json` is there (it is written
last) and the weights have the checksum that it states. Weights are safetensors, never a pickle. A description costs
one small file, the weights their size in memory until the export is dropped.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shards import storage
from shards.errors import UserError

_FORMAT, _FORMAT_VERSION = "pera-export", 1
_LISTS = ("bands", "mean", "std")
_OWN = ("url", "read_weights")
_PICKLES = (b"PK", b"\x80")  # what torch.save and pickle.dump begin with; safetensors with its header's length


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
    step: int | None
    """Optimiser step of the export; None where nobody says so."""
    samples_seen: int | None
    dataset_digest: str
    weights_sha256: str
    read_weights: Callable[[], bytes] = field(repr=False, compare=False)
    """Fetch and check the weights; raises UserError if they are damaged."""

    def __post_init__(self) -> None:
        if not len(self.bands) == len(self.mean) == len(self.std):
            raise ValueError(f"{len(self.bands)} bands but {len(self.mean)} means and {len(self.std)} stds")

    @functools.cached_property
    def weights(self) -> bytes:
        """Return the content of model.safetensors, read once.

        Raises:
            UserError: it is missing, no safetensors, or does not match its checksum.
        """
        return self.read_weights()

    @property
    def run(self) -> str | None:
        """Return the URL of the run whose export this is; None for a folder that stands alone."""
        parent = self.url.rpartition("/")[0]
        return parent.removesuffix("/exports") if parent.endswith("/exports") else None

    @property
    def origin(self) -> str:
        """Return the URL of its run, or its own where it stands alone."""
        return self.run or self.url

    @property
    def label(self) -> str:
        """Return "RUN step N" for RUN/exports/step_N, else the folder's or file's own name and the step."""
        return self.label_in(self.origin.rstrip("/").rpartition("/")[2])

    def label_in(self, origin: str) -> str:
        """Return the same with another name for where it comes from."""
        return origin if self.step is None else f"{origin} step {self.step}"


def read_export(url: str) -> Export:
    """Read an export folder and check its weights against their sha256.

    Raises:
        UserError: a file is missing, damaged, of another format version, or does not match its checksum.
    """
    export = describe_export(url)
    assert export.weights
    return export


def describe_export(url: str) -> Export:
    """Read what an export folder says of itself; the weights are read and checked when they are wanted.

    Raises:
        UserError: model.json is missing, damaged or of another format version.
    """
    url = url.rstrip("/")
    fields = _read_fields(storage.join(url, "model.json"))
    names = [name for name in Export.__dataclass_fields__ if name not in _OWN]
    try:
        values: dict[str, Any] = {name: tuple(fields[name]) if name in _LISTS else fields[name] for name in names}
        read_weights = functools.partial(
            _read_weights, storage.join(url, "model.safetensors"), values["weights_sha256"]
        )
        return Export(url=url, read_weights=read_weights, **values)
    except KeyError as error:
        raise UserError(f"{url}/model.json lacks {error}: export it again") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{url}/model.json is inconsistent: {error}; export it again") from error


def _read_weights(url: str, sha256: str) -> bytes:
    try:
        weights = storage.read_bytes(url)
    except FileNotFoundError as error:
        raise UserError(f"{url} is missing: export it again") from error
    if weights.startswith(_PICKLES):
        raise UserError(f"{url} is a pickle, not safetensors, and is never loaded: it can run code; export it again")
    if hashlib.sha256(weights).hexdigest() != sha256:
        raise UserError(f"{url} is corrupt: its sha256 is not the one in model.json; export it again")
    return weights


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
