"""Export the teacher's backbone so that timm loads it in one line, without this package.

    timm.create_model("local-dir:RUN/exports/step_00000100", pretrained=True)

`model.safetensors` and timm's own `config.json` are written first, `model.json`, which says all that a user must
know about inputs and origin, last: its presence makes an export valid.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import safetensors.torch

from pretrain.backbone import vit_arguments
from pretrain.checkpoint import Position
from pretrain.colour import Colour
from pretrain.config import Config
from pretrain.pera import PerA
from shards import storage

FORMAT = "pera-export"
FORMAT_VERSION = 1
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


def export(run: str, model: PerA, colour: Colour, position: Position, origin: Origin) -> str:
    """Write an export of the teacher's backbone and return its folder's URL."""
    folder = storage.join(run, "exports", f"step_{position.step:08d}")
    state = {name: t.detach().cpu().contiguous() for name, t in model.teacher.backbone.state_dict().items()}
    weights = safetensors.torch.save(state, metadata={"format": "pt"})
    storage.write_bytes(storage.join(folder, "model.safetensors"), weights)
    arguments = vit_arguments(model.config.model, len(origin.bands))
    _write_json(storage.join(folder, "config.json"), timm_config(model.config, arguments, colour))
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture": _ARCHITECTURE,
        "model_args": arguments,
        "image_px": model.config.model.image_px,
        "patch_px": model.config.model.patch_px,
        "bands": origin.bands,
        "dtype": origin.dtype,
        "mean": colour.mean,
        "std": colour.std,
        "dataset_digest": origin.dataset_digest,
        "step": position.step,
        "samples_seen": position.samples,
        "config_sha256": origin.config_sha256,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "versions": origin.versions,
    }
    _write_json(storage.join(folder, "model.json"), description)
    return folder


def timm_config(config: Config, arguments: dict[str, Any], colour: Colour) -> dict[str, Any]:
    """Return timm's hub configuration (`config.json`) of the backbone."""
    side_px = config.model.image_px
    return {
        "architecture": _ARCHITECTURE,
        "num_classes": 0,
        "num_features": config.model.width,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [arguments["in_chans"], side_px, side_px],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": colour.mean,
            "std": colour.std,
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def _write_json(url: str, value: dict[str, Any]) -> None:
    storage.write_bytes(url, json.dumps(value, indent=2).encode() + b"\n")
