"""The samples that a page shows: read, cut and coloured by training's own parts, then put before a model, if any.

Shape legend: V views of one size, B images, N = V · B in view-major order, L patches of a view, W width.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.batches.batch import Batch, BatchMaker, ViewBatch, decode_bands, patchify, visit_of
from pretrain.batches.colour import Colour
from pretrain.batches.sources import Sources, begin_stream
from pretrain.batches.views import Crop, draw_crops
from pretrain.config import Config
from pretrain.model.pera import PerA
from pretrain.pages.inspection import Findings, Pairs, inspect
from pretrain.pages.painting import Painter
from pretrain.pages.pictures import choose_look, component_colours
from pretrain.pages.samples import Pair, ShownSample, ShownView
from pretrain.training.plan import make_plan
from shards.dataset import Sample
from shards.streaming.state import open_stream
from shards.streaming.stream import Stream


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is shown: a configured training, and the model of one of its checkpoints."""

    config: Config
    sources: Sources
    colour: Colour
    model: PerA | None = None
    model_step: int = 0
    """Steps that the model has made."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A sample before it is cut, and where it is cut."""

    key: str
    origin: str
    """Dataset and epoch, in words."""
    pixels_HWC: NDArray[Any]
    """The bands to train on, in the dataset's units."""
    crops: list[tuple[str, int, Crop]]
    """Size ("global" or "local"), number and crop of each view."""


def read_samples(subject: Subject, num_samples: int, step: int) -> list[ShownSample]:
    """Return the first samples of a step, with all their views.

    Args:
        subject: what is shown.
        num_samples: at most the batch.
        step: of the run, from 0.

    Raises:
        UserError: a shard is missing, has changed, or may not be read.
        CorruptSampleError: a sample is damaged, and was not to be replaced.
        StorageError: the store kept failing.
    """
    stream = first_stream(subject, num_samples)
    batch, _ = BatchMaker(stream, subject.config, subject.sources.places).make(step)
    painters, findings = _painters(subject, batch)
    tiles, pairs = read_tiles(subject, stream, step), findings.pairs if findings else None
    return [_shown(subject, painters, pairs, tile, image, len(tiles)) for image, tile in enumerate(tiles[:num_samples])]


def first_stream(subject: Subject, num_samples: int) -> Stream:
    """Return the stream of the first of as many ranks as leave each so many samples of a step."""
    config, sources = subject.config, subject.sources
    batch = config.loader.batch
    world = max(ranks for ranks in range(1, batch + 1) if batch % ranks == 0 and batch // ranks >= num_samples)
    return open_stream(
        begin_stream(config, sources),
        sources.datasets,
        global_batch=batch,
        weights=sources.weights,
        world=world,
        on_bad=config.loader.on_bad,
    )


def read_tiles(subject: Subject, stream: Stream, step: int) -> list[Tile]:
    """Read the samples of a step whole, and draw their crops as `BatchMaker` does."""
    config, sources = subject.config, subject.sources
    counts = {"global": config.views.num_global, "local": config.views.num_local}

    def decode(sample: Sample, dataset: int) -> tuple[str, NDArray[Any]]:
        return sample.key, decode_bands(sample, sources.datasets[dataset], sources.places[dataset])

    read = stream.read(step, decode)
    tiles = []
    for slot, (key, pixels_HWC) in zip(read.slots, read.items, strict=True):
        visit = visit_of(config, slot, key)
        height, width = pixels_HWC.shape[:2]
        crops = [
            (size, number, crop)
            for size, count in counts.items()
            for number, crop in enumerate(draw_crops(config.views, height, width, visit, size, count) if count else [])
        ]
        origin = f"{sources.datasets[slot.dataset].url}, epoch {slot.epoch}"
        tiles.append(Tile(key=key, origin=origin, pixels_HWC=pixels_HWC, crops=crops))
    return tiles


def _painters(subject: Subject, batch: Batch) -> tuple[dict[str, Painter], Findings | None]:
    painters = {
        size: Painter(views=views, patches=views.to_patches(torch.device("cpu"), subject.colour), colour=subject.colour)
        for size, views in (("global", batch.global_views), ("local", batch.local_views))
        if views is not None
    }
    if subject.model is None:
        return painters, None
    findings = inspect(
        subject.model,
        painters["global"].patches,
        painters["local"].patches if "local" in painters else None,
        whole_patches(batch.global_views, subject.colour),
        make_plan(subject.config, subject.sources.num_samples).rates(subject.model_step).teacher_temperature,
    )
    features_NLW = findings.features_NLW.numpy()
    colours_M3 = component_colours(features_NLW.reshape(-1, features_NLW.shape[-1]))
    painters["global"] = replace(
        painters["global"],
        predictions_NPD=findings.predictions_NPD,
        components_NL3=colours_M3.reshape(*features_NLW.shape[:2], 3),
    )
    return painters, findings


def whole_patches(views: ViewBatch, colour: Colour) -> Tensor:
    """Return all patches [N, L, D] of views in their own colours, float32, normalised."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (colour.mean, colour.std))
    return patchify((views.crops_NCHW.float() / colour.value_range - mean) / std, views.patch_px)


def _shown(
    subject: Subject,
    painters: dict[str, Painter],
    pairs: Pairs | None,
    tile: Tile,
    image: int,
    num_images: int,
) -> ShownSample:
    shares_HWC = tile.pixels_HWC.astype(np.float32) / np.float32(subject.colour.value_range)
    look = choose_look(shares_HWC, subject.sources.bands, is_8_bit=tile.pixels_HWC.dtype == np.uint8)
    views = []
    for place, (size, number, crop) in enumerate(tile.crops):
        row = number * num_images + image
        views.append(
            ShownView(
                size=size,
                number=number,
                crop=crop,
                colours=painters[size].colours(row),
                pictures=painters[size].pictures(row, look),
                pair=_pair(pairs, place, image) if pairs else None,
            )
        )
    return ShownSample(key=tile.key, origin=tile.origin, tile=look(shares_HWC), views=views)


def _pair(pairs: Pairs, place: int, image: int) -> Pair:
    return Pair(
        cross_entropy=float(pairs.cross_entropy_VB[place, image]),
        choice=int(pairs.choice_VB[place, image]),
        place=int(pairs.place_VB[place, image]),
    )
