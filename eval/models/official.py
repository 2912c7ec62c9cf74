"""The official PerA weights, `official:FILE.pth`: a pickle from which tensors alone are taken, never code.

Such a file holds `teacher.backbone.*` with timm's names, somewhere in nested dictionaries. The architecture is read
off the shapes. Heads have no shape: both published backbones have 64 channels a head, others need ?heads=N. The
normalisation is ImageNet's, or that of ?mean=…&std=…; the wrong one costs points. Cost: the file, twice in memory.
"""

import argparse
import hashlib
import io
import math
import pickle
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

import safetensors.torch
import torch
from torch import Tensor

from eval.models.exports import Export
from shards import storage
from shards.errors import UserError

_PREFIX = "teacher.backbone."
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_HEAD_CHANNELS = 64
_OPTIONS = ("mean", "std", "heads")


def official_export(word: str) -> Export:
    """Read FILE.pth[?mean=R,G,B&std=R,G,B&heads=N] as if it were an export of ours.

    Raises:
        UserError: no such file, a pickle that needs code, no such weights in it, shapes that are no plain ViT.
    """
    url, _, query = word.partition("?")
    options = _parse_options(word, query)
    try:
        with storage.user_errors(url):
            data = storage.read_bytes(url)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"official:{url} does not exist: give the .pth file") from error
    weights = teacher_backbone(_load(url, data))
    if not weights:
        raise UserError(f"official:{url} has no tensors named {_PREFIX}*: is it a PerA checkpoint?")
    try:
        args, image_px = architecture(weights, options.get("heads"))
    except (KeyError, ValueError) as error:
        raise UserError(f"official:{url} is no plain vision transformer: {error}") from error
    content = safetensors.torch.save({name: tensor.float().contiguous() for name, tensor in weights.items()})
    normalisation = _IMAGENET | {name: options[name] for name in ("mean", "std") if name in options}
    return Export(
        url=url, architecture="vit_base_patch16_224", model_args=args, image_px=image_px,
        bands=("red", "green", "blue"), dtype="uint8", step=None, samples_seen=None, dataset_digest="",
        weights_sha256=hashlib.sha256(data).hexdigest(), read_weights=lambda: content, **normalisation,
    )  # fmt: skip


def _parse_options(word: str, query: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        try:
            options[name] = int(text) if name == "heads" else tuple(float(part) for part in text.split(","))
        except ValueError as error:
            raise UserError(f"official:{word}: {name}={text} is no number: write, say, ?heads=12") from error
        if name not in _OPTIONS or (name != "heads" and len(options[name]) != 3):
            raise UserError(f"official:{word}: use ?mean=R,G,B, std=R,G,B and heads=N, joined by &")
    return options


def _load(url: str, data: bytes) -> Any:
    try:
        # A namespace is a bag of values; trainers in the manner of DINO keep their arguments in one.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        # torch's message is a page; of it the name of what would have to run is what counts.
        needed = re.search(r"GLOBAL (\S+)", str(error))
        fault = f"it needs {needed[1]}" if needed else " ".join(str(error).split())[:120]
        raise UserError(
            f"official:{url} is refused: it is damaged, or a pickle that needs code and not tensors alone ({fault})"
        ) from error


def teacher_backbone(content: Any) -> dict[str, Tensor]:
    """Return the tensors below `teacher.backbone.` in nested dictionaries, without that prefix; {} if there are none.

    Whatever wrapped the network (`module.`) may stand before it.
    """
    if not isinstance(content, Mapping):
        return {}
    found = {
        name.partition(_PREFIX)[2]: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor) and name.removeprefix("module.").startswith(_PREFIX)
    }
    if found:
        return found
    return next((inner for value in content.values() if (inner := teacher_backbone(value))), {})


def architecture(weights: Mapping[str, Tensor], heads: int | None) -> tuple[dict[str, Any], int]:
    """Return timm's arguments and the input's side in pixels, from the shapes of a ViT's weights.

    Raises:
        KeyError: a tensor is missing.
        ValueError: shapes that do not belong to one square ViT, or heads that cannot be told.
    """
    width, bands, patch_px, _ = weights["patch_embed.proj.weight"].shape
    num_patches = weights["pos_embed"].shape[1] - 1
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise ValueError(f"{num_patches} position embeddings are no square")
    if bands != 3:
        raise ValueError(f"{bands} bands: the official backbones take 3")
    if heads is None and width % _HEAD_CHANNELS:
        raise ValueError(f"width {width} is no multiple of {_HEAD_CHANNELS}: add ?heads=N")
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    args = {
        "img_size": side * patch_px, "patch_size": patch_px, "in_chans": bands, "embed_dim": width, "depth": depth,
        "num_heads": heads or width // _HEAD_CHANNELS,
        "mlp_ratio": weights["blocks.0.mlp.fc1.weight"].shape[0] / width,
    }  # fmt: skip
    return args, side * patch_px
