"""Export the teacher's backbone so that timm loads it in one line, without this package.

    timm.create_model("local-dir:RUN/exports/step_00000100", pretrained=True)

`model.safetensors` and timm's own `config.json` are written first, `model.json`, which says all that a user must
know about inputs and origin, last: its presence makes an export valid.

All of it is made from plain values: a state on the CPU and what `describe` says of it, so that `write_export` may run
beside the next steps. While it writes, the file's bytes are in memory beside the state.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from torch import Tensor

from pretrain.config import ModelConfig
from pretrain.model.backbone import vit_arguments
from pretrain.runs.checkpoint import Position
from pretrain.runs.exports import FORMAT, FORMAT_VERSION, list_exports
from shards import storage
from shards.streaming.state import StreamState

_ARCHITECTURE = "vit_tiny_patch16_224"
"""Any plain timm ViT: the arguments replace all that differs."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What the weights were made from."""

    bands: tuple[str, ...]
    dtype: str
    dataset_digest: str
    config_sha256: str
    versions: dict[str, str]


def describe(
    model: ModelConfig, origin: Origin, position: Position, *, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """Return the content of model.json but for the weights' checksum, plain values alone.

    Args:
        model: the backbone.
        origin: what it was made from.
        position: where the run stands.
        mean: per band, as a share of the value range.
        std: likewise.
    """
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture": _ARCHITECTURE,
        "model_args": vit_arguments(model, len(origin.bands)),
        "image_px": model.image_px,
        "patch_px": model.patch_px,
        "bands": list(origin.bands),
        "dtype": origin.dtype,
        "mean": list(mean),
        "std": list(std),
        "dataset_digest": origin.dataset_digest,
        "step": position.step,
        "samples_seen": position.samples,
        "config_sha256": origin.config_sha256,
        "versions": dict(origin.versions),
    }


def describe_mixture(stream: StreamState) -> dict[str, Any]:
    """Return what model.json says of several datasets; of one alone nothing.

    Args:
        stream: where it stands at the export.
    """
    mixture = stream.mixture
    if len(mixture.weights) == 1:
        return {}
    counts = list(mixture.counts(stream.consumed))
    # They may be others from start to start: the last ones do not tell what was seen.
    return {"mixture": {"samples": counts, "weights": list(mixture.weights), "weights_since_sample": mixture.start}}


def write_export(folder: str, state: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write an export, each file atomically and model.json last.

    Args:
        folder: URL; an export that is already there is replaced.
        state: weights on the CPU by timm's names, contiguous.
        description: as `describe` returns it.
    """
    weights = safetensors.torch.save(dict(state), metadata={"format": "pt"})
    # What is there describes other weights, and must not seal these.
    for name in ("model.json", "model.json.old"):
        storage.remove(storage.join(folder, name))
    storage.write_bytes(storage.join(folder, "model.safetensors"), weights)
    _write_json(storage.join(folder, "config.json"), timm_config(description))
    sealed = {**description, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    _write_json(storage.join(folder, "model.json"), sealed)


def set_aside_later(run: str, step: int) -> list[int]:
    """Set the exports of a run after a step aside: nobody takes them for the run's, whose steps are made again.

    All of their files stay, model.json as model.json.old, until there is an export of that step again.

    Returns:
        their steps, ascending.
    """
    later = {each: url for each, url in list_exports(run).items() if each > step}
    for url in later.values():
        sealed = storage.join(url, "model.json")
        storage.write_bytes(f"{sealed}.old", storage.read_bytes(sealed))
        storage.remove(sealed)
    return list(later)


def timm_config(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's hub configuration (`config.json`) of a described backbone."""
    arguments, side_px = description["model_args"], description["image_px"]
    return {
        "architecture": description["architecture"],
        "num_classes": 0,
        "num_features": arguments["embed_dim"],
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [arguments["in_chans"], side_px, side_px],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": description["mean"],
            "std": description["std"],
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def _write_json(url: str, value: Mapping[str, Any]) -> None:
    storage.write_bytes(url, json.dumps(value, indent=2).encode() + b"\n")
