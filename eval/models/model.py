"""Backbones behind one small interface: `embed(images) -> pooled features, patch features`.

An export and a timm model become a timm network with its own input size, bands and normalisation; floors are in
`eval.models.floors`, images of any size in `eval.models.windows`. Nothing is downloaded: timm weights count only if
they lie in the Hugging Face cache, as safetensors. Cost: the network's forward pass; a batch's patch features take
batch × patches × D × 4 bytes beside it (39 MB for 64 images of a ViT-B at 224 px).
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from eval.models.exports import Export
from eval.models.pooling import Pooled, cell_px, pool
from shards.errors import UserError
from shards.keyed import hash64

RGB = ("red", "green", "blue")


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Features of a batch of B images, float32 on the CPU."""

    pooled: Pooled
    """Features of each whole image, [B, D] by name: `cls`, `patch_mean` and `cls+mean` (the two side by side) of a
    transformer, `pooled` of another network, `stats` and `responses` of the floors."""
    patches: Tensor | None
    """[B, h, w, D], the last features on the grid of patches, row 0 in the north; None where a model has no grid."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """Anything that turns images into features."""

    name: str
    """As the report calls it; unique within a report."""
    kind: str
    """export, timm or floor."""
    digest: str
    """64 hex digits that name what the features depend on: weights, architecture, normalisation."""
    description: str
    """Architecture and origin in words."""
    image_px: int | None
    """Side of the square that images are resized to; None: they stay as they are."""
    bands: tuple[str, ...] | None
    """Bands it takes, in order; None: whatever the data have."""
    dtype: str | None
    """Type of the images it takes; None: any."""
    standardise: bool
    """Whether k-NN needs features standardised over the training part (their units differ)."""
    patch_px: int | None
    """Side of a cell of the patch grid, pixels of the input; None where it is unknown or there is no grid."""
    embed: Callable[[Tensor], Embedded]
    """Map images [B, H, W, C] in their type's own units to features."""
    network: nn.Module | None = None
    """The timm network, for fine-tuning; None where there is nothing to tune."""
    mean: tuple[float, ...] | None = None
    """Of each band, by which images are normalised, in units of the type's value range 0…1; `std` alike. None without a
    network."""
    std: tuple[float, ...] | None = None
    normalise: Callable[[Tensor], Tensor] | None = None
    """Map images [B, H, W, C] to the network's input, float32 [B, C, H, W] on its device; None without a network."""


def digest_of(*parts: Any) -> str:
    """Return the sha256 of JSON-able parts, 64 hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def export_model(export: Export, device: torch.device) -> Model:
    """Build the exported network through timm and load its weights.

    Raises:
        UserError: timm cannot build it, or the weights do not fit it.
    """
    network = _build(export)
    try:
        network.load_state_dict(safetensors.torch.load(export.weights))
    except (RuntimeError, safetensors.SafetensorError) as error:
        fault = " ".join(str(error).split())[:300]
        raise UserError(f"{export.url}/model.safetensors does not fit {export.architecture}: {fault}") from error
    return _model_of_export(export, network, device, name=export.label, kind="export", origin=export.weights_sha256)


def random_init_of_export(export: Export, device: torch.device) -> Model:
    """Build the floor: the export's architecture and normalisation with fresh weights."""
    with _fixed_seed(export.architecture):
        network = _build(export)
    return _model_of_export(export, network, device, name="floor:random_init", kind="floor", origin="random_init")


def _model_of_export(
    export: Export, network: nn.Module, device: torch.device, *, name: str, kind: str, origin: str
) -> Model:
    network = network.eval().to(device)
    normalise = normaliser(export.mean, export.std, device)
    return Model(
        name=name,
        kind=kind,
        digest=digest_of(
            origin, export.architecture, dict(export.model_args), export.image_px, export.bands, export.mean, export.std
        ),
        description=f"{export.architecture} {_arguments(export.model_args)}, {_millions(network)}",
        image_px=export.image_px,
        bands=export.bands,
        dtype=export.dtype,
        standardise=False,
        patch_px=cell_px(network),
        embed=embedder(network, normalise),
        network=network,
        mean=export.mean,
        std=export.std,
        normalise=normalise,
    )


def _build(export: Export) -> nn.Module:
    try:
        network: nn.Module = timm.create_model(
            export.architecture, pretrained=False, **{**export.model_args, "num_classes": 0}
        )
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise UserError(f"{export.url}: timm cannot build {export.architecture}: {error}") from error
    return network


def timm_model(name: str, device: torch.device) -> Model:
    """Build a timm model from weights that lie in the Hugging Face cache.

    Raises:
        UserError: timm has no such model, or its weights are not on disk as safetensors.
    """
    config = _pretrained_config(name)
    weights = _cached_weights(name, config)
    overlay = {"file": str(weights), "custom_load": False}
    network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0)
    origin = hashlib.sha256(weights.read_bytes()).hexdigest()
    return _model_of_timm(name, network, config, device, kind="timm", origin=origin, label=f"timm:{name}")


def random_init_of_timm(name: str, device: torch.device) -> Model:
    """Build the floor `floor:random_init=NAME`: a timm architecture with fresh weights."""
    config = _pretrained_config(name)
    with _fixed_seed(name):
        network = timm.create_model(name, pretrained=False, num_classes=0)
    label = f"floor:random_init={name}"
    return _model_of_timm(name, network, config, device, kind="floor", origin="random_init", label=label)


def _model_of_timm(
    name: str, network: nn.Module, config: Any, device: torch.device, *, kind: str, origin: str, label: str
) -> Model:
    image_px = int(config.input_size[-1])
    network = network.eval().to(device)
    normalise = normaliser(config.mean, config.std, device)
    return Model(
        name=label,
        kind=kind,
        digest=digest_of(origin, name, image_px, config.mean, config.std),
        description=f"{name}, {_millions(network)}",
        image_px=image_px,
        bands=RGB,
        dtype="uint8",
        standardise=False,
        patch_px=cell_px(network),
        embed=embedder(network, normalise),
        network=network,
        mean=tuple(config.mean),
        std=tuple(config.std),
        normalise=normalise,
    )


def _pretrained_config(name: str) -> Any:
    if not timm.is_model(name):
        raise UserError(f"timm {timm.__version__} has no model {name!r}: see timm.list_models()")
    return timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()


def _cached_weights(name: str, config: Any) -> Path:
    path = (
        huggingface_hub.try_to_load_from_cache(config.hf_hub_id, "model.safetensors")
        if config.hf_hub_id and "/" in config.hf_hub_id
        else None
    )
    if not isinstance(path, str):
        source = config.hf_hub_id or "(none published)"
        raise UserError(
            f"timm:{name}: its weights are not on disk and nothing is downloaded here; "
            f"fetch model.safetensors of {source} into the Hugging Face cache first, or use floor:random_init={name}"
        )
    return Path(path)


def normaliser(mean: Sequence[float], std: Sequence[float], device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return the way from images [B, H, W, C] to a network's input: scaled to 0…1, normalised by band, [B, C, H, W]."""
    shift = torch.tensor(mean, dtype=torch.float32, device=device)[:, None, None]
    scale = torch.tensor(std, dtype=torch.float32, device=device)[:, None, None]

    def normalise(images: Tensor) -> Tensor:
        return (unit_range(images.to(device)).permute(0, 3, 1, 2) - shift) / scale

    return normalise


def embedder(network: nn.Module, normalise: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Embedded]:
    """Return `embed` of a timm network in evaluation mode: normalise, forward, pool."""

    def embed(images: Tensor) -> Embedded:
        with torch.inference_mode():
            pooled, patches = pool(network, normalise(images))
            return Embedded(
                pooled={name: values.float().cpu() for name, values in pooled.items()},
                patches=None if patches is None else patches.float().cpu(),
            )

    return embed


def unit_range(images: Tensor) -> Tensor:
    """Scale images of an integer type to float32 0…1 by the type's range; float images pass."""
    if images.is_floating_point():
        return images.float()
    return images.float() / float(np.iinfo(str(images.dtype).removeprefix("torch.")).max)


@contextlib.contextmanager
def _fixed_seed(name: str) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hash64("random_init", name) >> 1)
        yield


def _arguments(model_args: Any) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(model_args.items()))


def _millions(network: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.1f} M parameters"
