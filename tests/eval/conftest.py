import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import timm
import torch
from PIL import Image
from safetensors.torch import save

from eval.data.decode import labelled_chips

ARCHITECTURE = "vit_tiny_patch16_224"


@pytest.fixture
def write_export() -> Callable[..., Path]:
    """Write an export folder by the contract, without our trainer."""

    def write(folder: Path, step: int = 100, bands: tuple[str, ...] = ("red", "green", "blue"), **changes) -> Path:
        folder.mkdir(parents=True)
        model_args = {
            "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "in_chans": len(bands),
        }  # fmt: skip
        torch.manual_seed(step)
        weights = save(timm.create_model(ARCHITECTURE, num_classes=0, **model_args).state_dict())
        (folder / "model.safetensors").write_bytes(weights)
        fields = {
            "format": "pera-export", "format_version": 1, "architecture": ARCHITECTURE, "model_args": model_args,
            "image_px": 32, "patch_px": 8, "bands": list(bands), "dtype": "uint8",
            "mean": [0.4] * len(bands), "std": [0.2] * len(bands), "dataset_digest": "0" * 64, "step": step,
            "samples_seen": 10 * step, "config_sha256": "1" * 64,
            "weights_sha256": hashlib.sha256(weights).hexdigest(), "versions": {},
        }  # fmt: skip
        (folder / "model.json").write_text(json.dumps(fields | changes))
        return folder

    return write


@pytest.fixture
def write_classes() -> Callable[..., Path]:
    """Write class folders of small PNGs whose colour tells the class, more or less."""

    def write(folder: Path, num_classes: int = 3, num_images: int = 20, side_px: int = 24) -> Path:
        draw = np.random.default_rng(0)
        for label in range(num_classes):
            (folder / f"class_{label}").mkdir(parents=True)
            for number in range(num_images):
                colour = np.eye(3)[label % 3] * 60 + 90 + draw.normal(0, 30, 3)
                pixels = np.clip(draw.normal(colour, 25, (side_px, side_px, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"class_{label}" / f"image_{number}.png")
        return folder

    return write


@pytest.fixture
def write_floats() -> Callable[..., Path]:
    """Write class folders of float32 TIFFs in decibels, red, green and blue; one pixel of some is NaN or infinite."""

    def write(folder: Path, lacking: dict[str, float], num_images: int = 60) -> Path:
        draw = np.random.default_rng(3)
        for name in ("dry", "wet"):
            (folder / name).mkdir(parents=True)
            for number in range(num_images):
                pixels = draw.normal(-12 if name == "dry" else -6, 2, (3, 24, 20)).astype(np.float32)
                pixels[1, 5, 6] = lacking.get(f"{name}/{number}.tif", pixels[1, 5, 6])
                size = {"width": 20, "height": 24, "count": 3}
                path = folder / name / f"{number}.tif"
                with labelled_chips(), rasterio.open(path, "w", driver="GTiff", dtype="float32", **size) as image:
                    image.write(pixels)
        return folder

    return write


@pytest.fixture
def write_masks() -> Callable[..., Path]:
    """Write images/ of dark and bright halves with masks/ that tell them apart."""

    def write(folder: Path, num_images: int = 12, side_px: int = 32) -> Path:
        draw = np.random.default_rng(1)
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True)
        for number in range(num_images):
            mask = np.zeros((side_px, side_px), np.uint8)
            mask[:, draw.integers(8, side_px - 8) :] = 1
            pixels = draw.normal(np.where(mask, 180, 60)[..., None], 15, (side_px, side_px, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{number}.png")
            Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
        return folder

    return write


@pytest.fixture
def write_pairs() -> Callable[..., Path]:
    """Write A/, B/ and label/: B has a bright square that A lacks, and the label shows it."""

    def write(folder: Path, num_images: int = 10, side_px: int = 32) -> Path:
        draw = np.random.default_rng(2)
        for name in ("A", "B", "label"):
            (folder / name).mkdir(parents=True)
        for number in range(num_images):
            mask = np.zeros((side_px, side_px), np.uint8)
            top, left = draw.integers(0, side_px - 12, 2)
            mask[top : top + 12, left : left + 12] = 255
            before = draw.normal(80, 10, (side_px, side_px, 3))
            after = np.where(mask[..., None] > 0, 220, draw.normal(80, 10, (side_px, side_px, 3)))
            for name, pixels in (("A", before), ("B", after)):
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number}.png")
            Image.fromarray(mask).save(folder / "label" / f"{number}.png")
        return folder

    return write
