from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.data.split import TEST, TRAIN, VALIDATION
from eval.models.floors import floor_model
from eval.protocols.task import Task, make_task


@pytest.fixture
def classes_task() -> Callable[..., Task]:
    """Make a task of Gaussian classes; all parts come from one draw."""

    def make(num: int = 900, num_classes: int = 5, width: int = 24, noise: float = 2.0, seed: int = 0) -> Task:
        draw = np.random.default_rng(seed)
        centres = draw.normal(size=(num_classes, width))
        labels = draw.integers(0, num_classes, num)
        features = (centres[labels] + noise * draw.normal(size=(num, width))).astype(np.float32)
        parts = draw.choice([TRAIN, VALIDATION, TEST], num, p=[0.5, 0.2, 0.3])
        return make_task(features, labels, parts, standardise=False, seed=seed)

    return make


@pytest.fixture(scope="session")
def eurosat_task(real_images: Path) -> Task:
    """Features of 1,500 real images of ten classes: means and deviations of 8 × 8 cells, [N, 384]."""
    folders = sorted(folder for folder in (real_images / "eurosat_rgb").iterdir() if folder.is_dir())
    files = [file for folder in folders for file in sorted(folder.iterdir())[:150]]
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files]))
    patches = floor_model("image_stats").embed(pixels).patches
    assert patches is not None
    features = patches.flatten(1).numpy()
    parts = np.random.default_rng(0).permutation(np.repeat([TRAIN, VALIDATION, TEST], [600, 150, 750]))
    return make_task(features, np.repeat(np.arange(10), 150), parts, standardise=True)
