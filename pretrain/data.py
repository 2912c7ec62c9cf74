"""The stream of batches: positions of the endless exactly-once order become crops, patch sets and colour draws.

State is one number, the samples consumed. A batch is a pure function of (seed, dataset, positions): it does not
depend on workers, ranks or restarts.

Shape legend: N = views · images in view-major order, C bands, P patches of a set.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from pretrain.colour import Colour
from pretrain.config import Config
from pretrain.masks import draw_patch_sets, set_sizes
from pretrain.views import ColourDraws, ViewTensors, cut_view, draw_colours, view_names
from shards.dataset import Dataset, Sample
from shards.errors import UserError
from shards.images import decode_image
from shards.order import locate, rank_positions

VALUE_RANGES = {"uint8": 255.0, "uint16": 65535.0}


class SampleSource(Protocol):
    """What the stream needs of a dataset."""

    digest: str

    @property
    def num_samples(self) -> int:
        """Count of samples."""
        ...

    def read(self, index: int) -> Sample:
        """Return the sample at an index."""
        ...


@dataclass(frozen=True, kw_only=True)
class ViewBatch:
    """All views of one size of a step's samples, in CPU memory, pixels in the dataset's units."""

    crops_NCHW: Tensor
    student_indices_NP: Tensor
    learnable_indices_NP: Tensor
    teacher_indices_NP: Tensor
    student_colours: ColourDraws
    teacher_colours: ColourDraws

    def pin_memory(self) -> "ViewBatch":
        """Return a copy whose tensors can be sent to an accelerator while it computes."""
        pinned = {f.name: getattr(self, f.name).pin_memory() for f in fields(self) if f.type is Tensor}
        return replace(self, **pinned)

    def to_views(self, device: torch.device, colour: Colour) -> ViewTensors:
        """Send to the device and make both sides' colours there."""
        crops_NCHW = self.crops_NCHW.to(device, non_blocking=True)
        return ViewTensors(
            student_NCHW=colour(crops_NCHW, self.student_colours),
            teacher_NCHW=colour(crops_NCHW, self.teacher_colours),
            student_indices_NP=self.student_indices_NP.to(device, non_blocking=True),
            learnable_indices_NP=self.learnable_indices_NP.to(device, non_blocking=True),
            teacher_indices_NP=self.teacher_indices_NP.to(device, non_blocking=True),
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step of one rank."""

    global_views: ViewBatch
    local_views: ViewBatch | None

    def pin_memory(self) -> "Batch":
        """See ViewBatch.pin_memory; the loader calls it."""
        local_views = self.local_views and self.local_views.pin_memory()
        return Batch(global_views=self.global_views.pin_memory(), local_views=local_views)


class BatchMaker:
    """Map-style dataset whose item is a whole batch: index it with the positions of a step."""

    def __init__(self, dataset: SampleSource, config: Config, bands: tuple[int, ...]) -> None:
        self._dataset = dataset
        self._config = config
        self._bands = list(bands)

    @property
    def num_samples(self) -> int:
        """Samples of an epoch."""
        return self._dataset.num_samples

    def __getitem__(self, positions: NDArray[np.int64]) -> Batch:
        """Read, decode and cut the samples at these positions of the stream.

        Raises:
            ValueError: a sample's image does not decode; names the sample.
        """
        epochs, indices = locate(positions, self._dataset.num_samples, self._config.seed, self._dataset.digest)
        visits, images = [], []
        for epoch, index in zip(epochs.tolist(), indices.tolist(), strict=True):
            sample = self._dataset.read(index)
            visits.append((self._config.seed, epoch, sample.key))
            images.append(self._decode(sample))
        global_names, local_names = view_names(self._config.views)
        return Batch(
            global_views=self._views(images, visits, global_names, self._config.model.image_px),
            local_views=self._views(images, visits, local_names, self._config.views.local_px) if local_names else None,
        )

    def _decode(self, sample: Sample) -> NDArray[Any]:
        try:
            pixels = decode_image(sample.ext, sample.image)
        except ValueError as error:
            raise ValueError(f"sample {sample.key}: {error}") from error
        if self._bands != list(range(pixels.shape[2])):
            pixels = pixels[:, :, self._bands]
        # torch resizes uint8 and float only.
        return pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)

    def _views(
        self, images: list[NDArray[Any]], visits: list[tuple[int, int, str]], names: list[str], side_px: int
    ) -> ViewBatch:
        config = self._config
        masks, num_patches = config.masks, (side_px // config.model.patch_px) ** 2
        sizes = set_sizes(num_patches, masks.student, masks.teacher)
        crops = [
            cut_view(image, config.views, side_px, visit, name)
            for name in names
            for image, visit in zip(images, visits, strict=True)
        ]
        sets = [draw_patch_sets(sizes, *visit, view=name) for name in names for visit in visits]
        colours = {
            side: _cat([draw_colours(config.colour, share, visits, name, side) for name in names])
            for side, share in (("student", config.colour.student), ("teacher", config.colour.teacher))
        }
        return ViewBatch(
            crops_NCHW=torch.stack(crops).contiguous(),
            student_indices_NP=torch.from_numpy(np.stack([s.student for s in sets])),
            learnable_indices_NP=torch.from_numpy(np.stack([s.learnable for s in sets])),
            teacher_indices_NP=torch.from_numpy(np.stack([s.teacher for s in sets])),
            student_colours=colours["student"],
            teacher_colours=colours["teacher"],
        )


def _cat(draws: list[ColourDraws]) -> ColourDraws:
    return ColourDraws(**{f.name: torch.cat([getattr(d, f.name) for d in draws]) for f in fields(ColourDraws)})


def choose_bands(dataset: Dataset, config: Config) -> tuple[int, ...]:
    """Return the places of the configured bands in the dataset's tiles.

    Raises:
        UserError: the dataset lacks one.
    """
    names = [band.name for band in dataset.bands]
    wanted = config.bands or tuple(names)
    missing = [name for name in wanted if name not in names]
    if missing:
        raise UserError(
            f"{dataset.url} has no band {', '.join(missing)}: its bands are {', '.join(names)}; "
            "choose from them with bands, or ingest again"
        )
    return tuple(names.index(name) for name in wanted)


def make_colour(dataset: Dataset, config: Config, bands: tuple[int, ...]) -> Colour:
    """Return colours and normalisation for a dataset's bands.

    Raises:
        UserError: its type has no value range, or the configured mean and std have another number of bands.
    """
    if dataset.dtype not in VALUE_RANGES:
        raise UserError(
            f"{dataset.url} holds {dataset.dtype}, but training takes {' or '.join(VALUE_RANGES)}: "
            "ingest with another normalisation"
        )
    value_range = VALUE_RANGES[dataset.dtype]
    chosen = [dataset.bands[place] for place in bands]
    mean = config.colour.mean or tuple(band.mean / value_range for band in chosen)
    # A constant band would be divided by 0; its normalised values are 0 whatever it is divided by.
    std = config.colour.std or tuple(band.std / value_range or 1.0 for band in chosen)
    if not len(mean) == len(std) == len(bands):
        raise UserError(f"colour.mean and colour.std have {len(mean)} and {len(std)} values for {len(bands)} bands")
    names = [band.name for band in chosen]
    has_rgb = {"red", "green", "blue"} <= set(names)
    rgb = tuple(names.index(name) for name in ("red", "green", "blue")) if has_rgb else ()
    return Colour(value_range=value_range, mean=mean, std=std, rgb=rgb)


def stream_batches(
    maker: BatchMaker,
    config: Config,
    *,
    samples_consumed: int,
    num_steps: int,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Yield this rank's batches of the next steps.

    Args:
        maker: of batches.
        config: global batch and workers.
        samples_consumed: over all ranks, before the first of these steps.
        num_steps: batches to yield.
        rank: in [0, world).
        world: number of ranks; divides the batch.
        pin_memory: for an accelerator.
    """
    workers = config.loader.workers
    loader: DataLoader[Batch] = DataLoader(
        maker,  # type: ignore[arg-type]  # torch wants its own base class, needs only __getitem__
        sampler=StepPositions(config.loader.batch, rank, world, samples_consumed, num_steps),
        batch_size=None,
        num_workers=workers,
        # Forking a process that has started threads deadlocks; a fork server starts none.
        multiprocessing_context="forkserver" if workers else None,
        pin_memory=pin_memory,
    )
    return iter(loader)


class StepPositions:
    """The positions of each step, as the loader's sampler: nothing is stored, however long the run."""

    def __init__(self, global_batch: int, rank: int, world: int, start: int, num_steps: int) -> None:
        self._take = partial(rank_positions, global_batch=global_batch, rank=rank, world=world, start=start)
        self._num_steps = num_steps

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return (self._take(step) for step in range(self._num_steps))
