"""Batches: the samples of a step become crops, patch sets and colour draws.

A batch is a pure function of (seed, datasets, step of the stream, rank): it does not depend on workers or restarts.

Shape legend: N = views · images in view-major order, C bands, P patches of a set.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.colour import Colour
from pretrain.config import Config
from pretrain.masks import draw_patch_sets, set_sizes
from pretrain.views import ColourDraws, ViewTensors, cut_view, draw_colours, view_names
from shards.dataset import Sample
from shards.images import decode_image
from shards.streaming.stream import Replacement, Slot, Stream


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
        """See ViewBatch.pin_memory."""
        local_views = self.local_views and self.local_views.pin_memory()
        return Batch(global_views=self.global_views.pin_memory(), local_views=local_views)


class BatchMaker:
    """Make the batches of a stream; may be pickled to workers."""

    def __init__(self, stream: Stream, config: Config, places: Sequence[Sequence[int]]) -> None:
        """Take what batches are made of.

        Args:
            stream: of this rank.
            config: views, masks, colours.
            places: of the bands to train on, in the images of each of the stream's datasets.
        """
        self.stream = stream
        self._config = config
        self._places = [list(each) for each in places]

    def make(self, step: int) -> tuple[Batch, Sequence[Replacement]]:
        """Read, decode and cut the samples of a step; also return which were replaced.

        Raises:
            UserError: a shard is missing, has changed, or may not be read.
            CorruptSampleError: a sample is damaged or does not decode, and was not to be replaced.
            StorageError: the store kept failing.
        """
        read = self.stream.read(step, self._decode)
        visits = [self._visit(slot, key) for slot, (key, _) in zip(read.slots, read.items, strict=True)]
        images = [image for _, image in read.items]
        global_names, local_names = view_names(self._config.views)
        batch = Batch(
            global_views=self._views(images, visits, global_names, self._config.model.image_px),
            local_views=self._views(images, visits, local_names, self._config.views.local_px) if local_names else None,
        )
        return batch, read.replaced

    def _decode(self, sample: Sample, dataset: int) -> tuple[str, NDArray[Any]]:
        """Return key and bands to train on, in a type that torch can resize: uint8 or float32.

        Args:
            sample: of one of the stream's datasets.
            dataset: its number.

        Raises:
            ValueError: the image is damaged, or of another kind than its dataset.
        """
        pixels = decode_image(sample.ext, sample.image)
        kind, num_bands = self.stream.datasets[dataset].dtype, len(self.stream.datasets[dataset].bands)
        if (str(pixels.dtype), pixels.shape[2]) != (kind, num_bands):
            found = f"{pixels.shape[2]} bands of {pixels.dtype}"
            raise ValueError(f"the image has {found}, unlike the dataset: {num_bands} of {kind}")
        places = self._places[dataset]
        chosen = pixels if places == list(range(num_bands)) else pixels[:, :, places]
        return sample.key, chosen if chosen.dtype == np.uint8 else chosen.astype(np.float32)

    def _visit(self, slot: Slot, key: str) -> tuple[int, int, str]:
        # A sample that two datasets have in common is not cut twice in the same way.
        return self._config.seed, slot.epoch, f"{slot.dataset}/{key}"

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
