"""Batches: the samples of a step become crops, patch sets and colour draws.

A batch is a pure function of (seed, datasets, step of the stream, rank): it does not depend on workers or restarts.

Shape legend: N = views · images in view-major order, C bands, P patches of a set.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.batches.colour import Colour
from pretrain.batches.masks import Visit, draw_patch_sets
from pretrain.batches.parcels import Empty
from pretrain.batches.views import ColourDraws, Tile, cut_views, draw_colours, group_bands
from pretrain.config import Config
from pretrain.model.inputs import ViewPatches
from pretrain.transfer import send
from shards.dataset import Dataset, Sample
from shards.images import decode_image
from shards.streaming.stream import Replacement, Slot, Stream


@dataclass(frozen=True, kw_only=True)
class ViewBatch:
    """All views of one size of a step's samples, in CPU memory, pixels in the dataset's units."""

    crops_NCHW: Tensor
    student_indices_NP: Tensor
    learnable_indices_NP: Tensor
    """What is predicted; of local views nothing."""
    teacher_indices_NP: Tensor
    """Of local views nothing where the teacher does not look at them."""
    student_colours: ColourDraws
    teacher_colours: ColourDraws
    num_views: int
    """V, of each sample."""
    patch_px: int
    """Side of a patch, pixels."""
    perturb_targets: bool
    """Whether what is predicted has the student's colours."""

    def pin_memory(self) -> "ViewBatch":
        """Return a copy whose tensors can be sent to an accelerator while it computes.

        The draws of colours are not sent: they are read here, and what is made of them is.
        """
        pinned = {
            f.name: getattr(self, f.name).pin_memory()
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **pinned)

    def to_patches(self, device: torch.device, colour: Colour) -> ViewPatches:
        """Send to the device; gather there what each side is given, and make its colours."""
        patches_NLD = patchify(send(self.crops_NCHW, device), self.patch_px)
        student_sets = (self.student_indices_NP, self.learnable_indices_NP)
        student_NPD, learnable_NPD = colour(patches_NLD, student_sets, self.student_colours)
        if not self.perturb_targets:
            # In addition: the student's contrast is to be the same with both.
            (learnable_NPD,) = colour(patches_NLD, (self.learnable_indices_NP,), self.student_colours.left_out())
        (teacher_NPD,) = colour(patches_NLD, (self.teacher_indices_NP,), self.teacher_colours)
        return ViewPatches(
            student_NPD=student_NPD,
            student_indices_NP=send(self.student_indices_NP, device),
            learnable_NPD=learnable_NPD,
            learnable_indices_NP=send(self.learnable_indices_NP, device),
            teacher_NPD=teacher_NPD,
            teacher_indices_NP=send(self.teacher_indices_NP, device),
        )

    def split(self, parts: int) -> list["ViewBatch"]:
        """See Batch.split."""
        return [self._part(part, parts) for part in range(parts)]

    def _part(self, part: int, parts: int) -> "ViewBatch":
        def take(value: Tensor) -> Tensor:
            n, rest = len(value), value.shape[1:]
            chosen = value.view(self.num_views, parts, n // (self.num_views * parts), *rest)[:, part].flatten(0, 1)
            return chosen.pin_memory() if value.is_pinned() else chosen

        def take_draws(draws: ColourDraws) -> ColourDraws:
            return ColourDraws(**{f.name: take(getattr(draws, f.name)) for f in fields(draws)})

        taken: dict[str, Any] = {
            f.name: take(getattr(self, f.name)) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)
        }
        for side in ("student_colours", "teacher_colours"):
            taken[side] = take_draws(getattr(self, side))
        return replace(self, **taken)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step of one rank."""

    global_views: ViewBatch
    local_views: ViewBatch | None

    def pin_memory(self) -> "Batch":
        """See ViewBatch.pin_memory."""
        local_views = self.local_views and self.local_views.pin_memory()
        return Batch(global_views=self.global_views.pin_memory(), local_views=local_views)

    def split(self, parts: int) -> list["Batch"]:
        """Cut into batches of equally many images each, which follow one another; the views of an image stay together.

        Args:
            parts: divides the number of images.
        """
        if parts == 1:
            return [self]
        num_images = len(self.global_views.crops_NCHW) // self.global_views.num_views
        assert num_images % parts == 0, f"{num_images} images do not make {parts} equal parts"
        local_parts = self.local_views.split(parts) if self.local_views else [None] * parts
        pairs = zip(self.global_views.split(parts), local_parts, strict=True)
        return [Batch(global_views=global_views, local_views=local_views) for global_views, local_views in pairs]


_CARRIERS = (torch.complex128, torch.int64, torch.int32, torch.int16, torch.uint8)


def patchify(images_NCHW: Tensor, patch_px: int) -> Tensor:
    """Cut images into patches in raster order: [N, L, D], D = C · patch² values in the order band, row, column.

    A row of a patch moves as one value of up to 16 bytes: that costs a fifth of moving each pixel.
    """
    n, c, height, width = images_NCHW.shape
    row_bytes = patch_px * images_NCHW.itemsize
    carrier = next(carrier for carrier in _CARRIERS if row_bytes % carrier.itemsize == 0)
    wide = images_NCHW.contiguous().view(carrier)
    rows, columns, values = height // patch_px, width // patch_px, row_bytes // carrier.itemsize
    grid = wide.view(n, c, rows, patch_px, columns, values).permute(0, 2, 4, 1, 3, 5)
    return grid.reshape(n, rows * columns, c * patch_px * values).view(images_NCHW.dtype)


def make_batch(
    config: Config,
    tiles: Sequence[Tile],
    visits: Sequence[Visit],
    num_bands: int,
    empty: Empty = torch.empty,
) -> Batch:
    """Draw and cut the views of samples; what a sample gets is a function of its tile and its visit.

    Args:
        config: views, masks, colours.
        tiles: of the samples, one type for all.
        visits: of the samples.
        num_bands: of each tile.
        empty: gives memory for the crops.
    """

    def views(size: str, num_views: int, side_px: int) -> ViewBatch:
        sets = draw_patch_sets(config.set_sizes(side_px), visits, size, num_views)
        student_colours, teacher_colours = draw_colours(config.colour, visits, size, num_views)
        return ViewBatch(
            crops_NCHW=cut_views(config.views, tiles, visits, size, num_views, (num_bands, side_px, side_px), empty),
            student_indices_NP=torch.from_numpy(sets.student_NP),
            # Nothing is predicted of local views.
            learnable_indices_NP=torch.from_numpy(sets.learnable_NP[:, : None if size == "global" else 0]),
            teacher_indices_NP=torch.from_numpy(sets.teacher_NP[:, : None if size in seen_by_teacher else 0]),
            student_colours=student_colours,
            teacher_colours=teacher_colours,
            num_views=num_views,
            patch_px=config.model.patch_px,
            perturb_targets=config.colour.perturb_targets,
        )

    seen_by_teacher = config.teacher_sizes
    num_local = config.views.num_local
    return Batch(
        global_views=views("global", config.views.num_global, config.model.image_px),
        local_views=views("local", num_local, config.views.local_px) if num_local else None,
    )


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

    def make(self, step: int, empty: Empty = torch.empty) -> tuple[Batch, Sequence[Replacement]]:
        """Read, decode and cut the samples of a step; also return which were replaced.

        Args:
            step: of the stream.
            empty: see `make_batch`.

        Raises:
            UserError: a shard is missing, has changed, or may not be read.
            CorruptSampleError: a sample is damaged or does not decode, and was not to be replaced.
            StorageError: the store kept failing.
        """
        read = self.stream.read(step, self._decode)
        visits = [visit_of(self._config, slot, key) for slot, (key, _) in zip(read.slots, read.items, strict=True)]
        tiles = [tile for _, tile in read.items]
        return make_batch(self._config, tiles, visits, len(self._places[0]), empty), read.replaced

    def _decode(self, sample: Sample, dataset: int) -> tuple[str, Tile]:
        """Return key and bands to train on, laid out to be resized.

        Args:
            sample: of one of the stream's datasets.
            dataset: its number.

        Raises:
            ValueError: the image is damaged, or of another kind than its dataset.
        """
        return sample.key, group_bands(decode_bands(sample, self.stream.datasets[dataset], self._places[dataset]))


def decode_bands(sample: Sample, dataset: Dataset, places: Sequence[int]) -> NDArray[Any]:
    """Return the bands to train on of a sample's image, [H, W, C] in the dataset's units.

    Args:
        sample: of the dataset.
        dataset: what says how its images are.
        places: of the bands to train on.

    Raises:
        ValueError: the image is damaged, or of another kind than its dataset.
    """
    pixels = decode_image(sample.ext, sample.image, padded=True)
    kind, num_bands = dataset.dtype, len(dataset.bands)
    if (str(pixels.dtype), pixels.shape[2]) != (kind, num_bands):
        found = f"{pixels.shape[2]} bands of {pixels.dtype}"
        raise ValueError(f"the image has {found}, unlike the dataset: {num_bands} of {kind}")
    return pixels if list(places) == list(range(num_bands)) else pixels[:, :, list(places)]


def visit_of(config: Config, slot: Slot, key: str) -> Visit:
    """Return what keys the draws of a sample at its place in the order."""
    # A sample that two datasets have in common is not cut twice in the same way.
    return config.seed, slot.epoch, f"{slot.dataset}/{key}"
