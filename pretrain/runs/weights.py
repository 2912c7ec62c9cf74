"""Read weights that others made, as plain tensors: an export, a timm folder, a safetensors or torch file, timm's cache.

Nothing is downloaded from a hub, and no pickle is read that would run code. Costs the file in memory, twice while
its tensors are made.
"""

import argparse
import hashlib
import io
import json
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor

from pretrain.runs.exports import read_export
from shards import storage
from shards.errors import UserError

_TIMM = "timm:"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Tensors by dotted names, and what is known of their network."""

    origin: str
    """Where they are from, as the user named it."""
    sha256: str
    """Of the file, 64 hex digits."""
    tensors: Mapping[str, Tensor]
    num_heads: int | None = None
    """Attention heads, which no tensor's shape tells; None: not said."""
    bands: tuple[str, ...] | None = None
    """Of the input, in order; None: not said."""


def read_weights(url: str) -> Weights:
    """Read weights.

    Args:
        url: an export of a run, a folder with timm's config.json and model.safetensors, a .safetensors file, a file
            of `torch.save`, or timm:NAME for what lies in the Hugging Face cache.

    Raises:
        UserError: there is nothing, it is damaged, would run code, or is not in the cache.
    """
    if url.startswith(_TIMM):
        return _read_cached(url)
    with storage.user_errors(url):
        if storage.exists(storage.join(url, "model.json")):
            return _read_export(url)
        if storage.exists(storage.join(url, "model.safetensors")):
            return _read_timm_folder(url)
        return _read_file(url)


def flatten(content: Any, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors of nested dictionaries by dotted names; whatever else they hold is left out."""
    if isinstance(content, Tensor):
        return {prefix.removesuffix("."): content.detach()}
    if not isinstance(content, Mapping):
        return {}
    items = [(key, value) for key, value in content.items() if isinstance(key, str)]
    return {name: tensor for key, value in items for name, tensor in flatten(value, f"{prefix}{key}.").items()}


def _read_export(url: str) -> Weights:
    export = read_export(url)
    return Weights(
        origin=url,
        sha256=export.description["weights_sha256"],
        tensors=_load_safetensors(url, export.weights),
        num_heads=export.description["model_args"]["num_heads"],
        bands=tuple(export.description["bands"]),
    )


def _read_timm_folder(url: str) -> Weights:
    data = storage.read_bytes(storage.join(url, "model.safetensors"))
    config_url = storage.join(url, "config.json")
    num_heads = None
    if storage.exists(config_url):
        try:
            config = json.loads(storage.read_bytes(config_url))
            num_heads = count_heads(config["architecture"], config.get("model_args") or {})
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{config_url} describes no model of timm {timm.__version__}: {error}") from error
    return Weights(origin=url, sha256=_sha256(data), tensors=_load_safetensors(url, data), num_heads=num_heads)


def _read_file(url: str) -> Weights:
    try:
        data = storage.read_bytes(url)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(
            f"{url} holds no weights: give an export (RUN/exports/step_…), a timm folder, a .safetensors or torch "
            "file, or timm:NAME"
        ) from error
    load = _load_safetensors if url.endswith(".safetensors") else _load_torch
    return Weights(origin=url, sha256=_sha256(data), tensors=load(url, data))


def _read_cached(url: str) -> Weights:
    name = url.removeprefix(_TIMM)
    if not timm.is_model(name):
        raise UserError(f"timm {timm.__version__} has no model {name!r}: see timm.list_models(pretrained=True)")
    config = timm.get_pretrained_cfg(name)
    source = config.hf_hub_id if config and config.hf_hub_id else None
    path = huggingface_hub.try_to_load_from_cache(source, "model.safetensors") if source and "/" in source else None
    if not isinstance(path, str):
        raise UserError(
            f"{url}: its weights are not on disk, and nothing is downloaded here; fetch them first with "
            f"`hf download {source or 'REPOSITORY'} model.safetensors`, or give a file"
        )
    data = Path(path).read_bytes()
    tensors = _load_safetensors(url, data)
    return Weights(origin=url, sha256=_sha256(data), tensors=tensors, num_heads=count_heads(name, {}))


def count_heads(architecture: str, arguments: Mapping[str, Any]) -> int | None:
    """Return the attention heads of a timm architecture (built without memory); None where its blocks have none."""
    with torch.device("meta"):
        network = timm.create_model(architecture, pretrained=False, **arguments)
    block = next(iter(getattr(network, "blocks", ())), None)
    heads: int | None = getattr(getattr(block, "attn", None), "num_heads", None)
    return heads


def _load_safetensors(url: str, data: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise UserError(f"{url} is damaged, or no safetensors file: {error}") from error


def _load_torch(url: str, data: bytes) -> dict[str, Tensor]:
    try:
        # Many training scripts save their arguments beside the weights: a plain bag of values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return flatten(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    # The last two: a text may read as a pickle that asks for what was never put there, or is cut off in a number.
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, LookupError, struct.error) as error:
        raise UserError(
            f"{url} is damaged, no torch file, or holds more than tensors and plain values, which is not read as it "
            "could run code: save its state dict as .safetensors"
        ) from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
