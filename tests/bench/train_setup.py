"""What the parts of tests/bench/train.py share: configurations, batches of noise, and a trainer without a dataset."""

from dataclasses import replace

import numpy as np
import torch

from pretrain.batches.batch import Batch, make_batch
from pretrain.batches.colour import Colour
from pretrain.batches.views import group_bands
from pretrain.config import Config, HeadConfig, LoaderConfig, MasksConfig, ModelConfig, ScheduleConfig, ViewsConfig
from pretrain.model.pera import PerA
from pretrain.training.network import make_network
from pretrain.training.optim import make_optimiser
from pretrain.training.plan import make_plan
from pretrain.training.ranks import Ranks
from pretrain.training.trainer import Trainer, choose_device
from tests.bench.train_options import Options

NUM_BANDS, _TILE_PX = 3, 512
COLOUR = Colour(value_range=255.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), rgb=(0, 1, 2))


def vit_s(image_px: int, prototypes: int, batch: int) -> Config:
    """Return ViT-S/16 with the paper's views, stochastic depth and width of heads."""
    return Config(
        data="",
        run="",
        device="cpu",
        model=ModelConfig(image_px=image_px, patch_px=16, width=384, depth=12, heads=6, drop_path=0.3),
        head=HeadConfig(hidden=2048, bottleneck=384, prototypes=prototypes),
        views=ViewsConfig(num_global=2, num_local=8, local_px=96, local_scale=(0.05, 0.4)),
        schedule=ScheduleConfig(length="1000 steps"),
        loader=LoaderConfig(batch=batch),
    )


SMALL = vit_s(image_px=224, prototypes=4096, batch=16)
LARGE = vit_s(image_px=448, prototypes=65_536, batch=8)
CONFIGS = {"2 × 224², K 4,096": SMALL, "2 × 448², K 65,536": LARGE}


def dense(config: Config) -> Config:
    """Return a dense two-view method at the same crops: all patches on both sides, the same pairs, no pixels.

    Blocks, stochastic depth and losses are the same, so that what is compared is the patches alone.
    """
    masks = MasksConfig(student=1.0, teacher=1.0, learnable=0.0, independent=True)
    return replace(config, masks=masks, loss=replace(config.loss, pixel=0.0))


def on_device(config: Config, options: Options) -> Config:
    """Return a configuration for what was asked for: see train.py."""
    precision = "bfloat16" if options.device == "cuda" else "float32"
    return replace(config, device=options.device, precision=precision)


def with_depth(config: Config, depth: int) -> Config:
    """Return a configuration with so many blocks."""
    return replace(config, model=replace(config.model, depth=depth))


def with_batch(config: Config, batch: int) -> Config:
    """Return a configuration with so many images a step."""
    return replace(config, loader=replace(config.loader, batch=batch))


def noise_batch(config: Config) -> Batch:
    """Make a step's batch, as the loader does, from images of noise."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (config.loader.batch, _TILE_PX, _TILE_PX, NUM_BANDS), np.uint8)
    visits = [(0, 0, f"image {number}") for number in range(len(images))]
    batch = make_batch(config, [group_bands(image) for image in images], visits, NUM_BANDS)
    # As the loader does.
    return batch.pin_memory() if config.device == "cuda" else batch


def make_trainer(config: Config) -> Trainer:
    """Make a trainer whose dataset does not matter."""
    # Sets the number of threads, too.
    device = choose_device(config)
    torch.manual_seed(0)
    model = PerA(config, NUM_BANDS)
    return Trainer(
        config=config,
        plan=make_plan(config, num_samples=1_000_000),
        device=device,
        colour=COLOUR,
        ranks=Ranks(),
        network=make_network(model.to(device), config, Ranks()),
        optimiser=make_optimiser(model.trainable(), config.optimiser),
    )
