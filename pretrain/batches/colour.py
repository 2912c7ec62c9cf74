"""Colours and normalisation of gathered patches: each side's, for a whole batch, on the device.

Only the patches that a side is given are coloured. Each image has its own factors and its own order of operations.
Contrast turns around the mean of the pixels that this side is given, so that nothing of the other side's pixels comes
through a mean. Bands other than red, green and blue get brightness and contrast only, each band around its own mean.

On an accelerator all images are coloured at once; those that get an operation in a round are gathered by indices known
on the CPU, so that the device is never waited for. On a CPU images with the same order are coloured together, a
megabyte for each thread at a time: each operation reads and writes all values, which costs several times as much where
a cache does not hold them. What is together in a chunk does not matter to an image, see `pretrain.batches.operations`.

Cost on one core: 15 ns per perturbed pixel of three bands, 3 ns per one that is only normalised; and as much as 8 ns
more for each where the C library gives memory back to the system between steps, because its pages then come anew.

Shape legend: N images, C bands, L patches of an image, P patches of a set, M patches of several images, Q pixels of a
patch, D = C · Q values in the order band, row, column; S planes: the C bands, red, green and blue first, and scratch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.batches.operations import (
    NUM_SCRATCH,
    Factor,
    Operation,
    Planes,
    brightness,
    contrast,
    contrast_of_bands,
    grey,
    hue,
    make_factors,
    planes_of,
    planes_of_rgb,
    saturation,
)
from pretrain.batches.views import GREY, JITTER, NUM_OPERATIONS, PLAIN, ColourDraws
from pretrain.transfer import send

_CHUNK_BYTES = 2**20
_GREY_NUMBER = NUM_OPERATIONS
_OF_RGB: tuple[Operation, ...] = (brightness, contrast, saturation, hue, grey)
_OF_OTHERS: tuple[Operation, ...] = (brightness, contrast_of_bands)
_Group = tuple[Planes, tuple[Operation, ...]]
"""Bands, and what is done to them."""


@dataclass(frozen=True, kw_only=True)
class _Step:
    """An operation on some images of a chunk."""

    number: int
    """Of the operation: its place in `order`, or GREY's after them."""
    images: Tensor | None
    """Places in the chunk, on the device; None means all."""


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Images that are coloured at once."""

    images: NDArray[np.int64]
    """Their places in the batch."""
    steps: Sequence[_Step]


def _chunks(draws: ColourDraws, images_at_once: int) -> Iterator[_Chunk]:
    """Cut a batch into chunks of images that get the same operations in the same order."""
    kind_N, order_N4 = draws.kind_N.numpy(), draws.order_N4.numpy()
    digits_N5 = np.where(kind_N[:, None] == JITTER, np.insert(order_N4, 0, JITTER, axis=1), 0)
    digits_N5[:, 0] = kind_N
    code_N = digits_N5 @ (NUM_OPERATIONS ** np.arange(NUM_OPERATIONS, -1, -1))
    images_N = np.argsort(code_N, kind="stable")
    for images in np.split(images_N, np.flatnonzero(np.diff(code_N[images_N])) + 1):
        kind, order = kind_N[images[0]], order_N4[images[0]].tolist()
        numbers = {PLAIN: [], JITTER: order, GREY: [_GREY_NUMBER]}[int(kind)]
        steps = [_Step(number=number, images=None) for number in numbers]
        for start in range(0, len(images), images_at_once):
            yield _Chunk(images=images[start : start + images_at_once], steps=steps)


def _one_chunk(draws: ColourDraws, device: torch.device) -> _Chunk:
    """Return the whole batch as a chunk; which images get an operation in a round is sent to the device at once."""
    kind_N, order_N4 = draws.kind_N.numpy(), draws.order_N4.numpy()
    chosen = [(_GREY_NUMBER, np.flatnonzero(kind_N == GREY))]
    for round_ in range(NUM_OPERATIONS):
        number_N = np.where(kind_N == JITTER, order_N4[:, round_], -1)
        chosen += [(number, np.flatnonzero(number_N == number)) for number in range(NUM_OPERATIONS)]
    sent = send(torch.from_numpy(np.concatenate([images for _, images in chosen])), device)
    parts = torch.split(sent, [len(images) for _, images in chosen])
    steps = [_Step(number=number, images=part) for (number, _), part in zip(chosen, parts, strict=True) if len(part)]
    return _Chunk(images=np.arange(len(kind_N)), steps=steps)


@dataclass(frozen=True, kw_only=True)
class Colour:
    """What turns integer patches into a side's inputs."""

    value_range: float
    """What 1.0 is in the crops' units: 255 for uint8."""
    mean: tuple[float, ...]
    """Per band, as a share of the value range."""
    std: tuple[float, ...]
    rgb: tuple[int, ...]
    """Places of red, green and blue among the bands; empty where they are not all there."""

    def __call__(self, patches_NLD: Tensor, sets_NP: Sequence[Tensor], draws: ColourDraws) -> list[Tensor]:
        """Return one side's patches of each set [N, P, D]: float32, perturbed and normalised.

        Args:
            patches_NLD: all patches, on the device, in the dataset's units.
            sets_NP: indices of the patches that this side is given, in CPU memory; contrast has one mean over all sets.
            draws: one entry per image.
        """
        device, (num_images, num_patches, depth) = patches_NLD.device, patches_NLD.shape
        rows_NP = (torch.cat(list(sets_NP), 1) + num_patches * torch.arange(num_images)[:, None]).numpy()
        num_bands, num_given = len(self.mean), rows_NP.shape[1]
        if not num_given:  # as a teacher that does not look at local views
            return [patches_NLD.new_empty(num_images, 0, depth, dtype=torch.float32) for _ in sets_NP]
        at_once, chunks = _plan(draws, num_given * depth, device)
        results_NPD = [patches_NLD.new_empty(num_images, s.shape[1], depth, dtype=torch.float32) for s in sets_NP]
        # Once for all chunks: what a C library gives back to the system comes again page by page, at a price.
        num_planes = num_bands + (NUM_SCRATCH if self.rgb else 0)
        work = patches_NLD.new_empty(at_once, num_planes, num_given, depth // num_bands, dtype=torch.float32)
        factor_NK, patches_MD = make_factors(draws.amount_N4), patches_NLD.flatten(0, 1)
        scale_C11, shift_C11 = _normalisation(self, device)
        for chunk in chunks:
            x_NSPQ = work[: len(chunk.images)]
            rows = send(torch.from_numpy(rows_NP[chunk.images].reshape(-1)), device)
            self._load(patches_MD.index_select(0, rows), x_NSPQ)
            if chunk.steps:
                factors = send(factor_NK[torch.from_numpy(chunk.images)], device)
                self._perturb(x_NSPQ, factors, chunk.steps)
            x_NCPQ = x_NSPQ[:, :num_bands].mul_(scale_C11)
            self._store(x_NCPQ, shift_C11, chunk.images, results_NPD)
        return results_NPD

    def order(self) -> list[int]:
        """Return the places of the bands in the order of work: red, green, blue, then all others."""
        return [*self.rgb, *[band for band in range(len(self.mean)) if band not in self.rgb]]

    def _load(self, patches_MD: Tensor, x_NSPQ: Tensor) -> None:
        n, _, p, q = x_NSPQ.shape
        planes_NCPQ, order = patches_MD.view(n, p, -1, q).transpose(1, 2), self.order()
        if order == sorted(order):
            x_NSPQ[:, : len(order)].copy_(planes_NCPQ)
            return
        for place, band in enumerate(order):
            # Not by a list of indices: an accelerator would be waited for.
            x_NSPQ[:, place].copy_(planes_NCPQ[:, band])

    def _perturb(self, x_NSPQ: Tensor, factor_NK: Tensor, steps: Sequence[_Step]) -> None:
        """Do the steps in place; factors on the images' device."""
        x_NCPQ, scratch_NSPQ = x_NSPQ[:, : len(self.mean)], x_NSPQ[:, len(self.mean) :]
        whole, factors = self._groups(x_NCPQ, scratch_NSPQ), _columns(factor_NK)
        for step in steps:
            if step.images is None:
                _operate(step.number, whole, factors)
            else:
                part = x_NCPQ.index_select(0, step.images)
                groups = self._groups(part, scratch_NSPQ[: len(part)])
                _operate(step.number, groups, _columns(factor_NK.index_select(0, step.images)))
                x_NCPQ.index_copy_(0, step.images, part)

    def _groups(self, x_NCPQ: Tensor, scratch_NSPQ: Tensor) -> list[_Group]:
        num_rgb, num_bands, high = len(self.rgb), len(self.mean), self.value_range
        groups: list[_Group] = []
        if num_rgb:
            groups.append((planes_of_rgb(x_NCPQ[:, :num_rgb], high, scratch_NSPQ), _OF_RGB))
        if num_rgb < num_bands:
            groups.append((planes_of(x_NCPQ[:, num_rgb:], high), _OF_OTHERS))
        return groups

    def _store(
        self, x_NCPQ: Tensor, shift_C11: Tensor, images: NDArray[np.int64], results_NPD: Sequence[Tensor]
    ) -> None:
        """Shift, and write each set's patches to its images' places, bands in their own order."""
        n, first, start, order = len(images), int(images[0]), 0, self.order()
        in_a_row = images[-1] - first + 1 == n
        for result_NPD in results_NPD:
            stop = start + result_NPD.shape[1]
            target = result_NPD[first : first + n] if in_a_row else result_NPD.new_empty(n, *result_NPD.shape[1:])
            planes_NCPQ = target.view(n, stop - start, *x_NCPQ.shape[1::2]).transpose(1, 2)
            if order == sorted(order):
                torch.add(x_NCPQ[:, :, start:stop], shift_C11, out=planes_NCPQ)
            else:
                for place, band in enumerate(order):
                    torch.add(x_NCPQ[:, place, start:stop], shift_C11[place], out=planes_NCPQ[:, band])
            if not in_a_row:
                result_NPD.index_copy_(0, torch.from_numpy(images), target)
            start = stop


@cache
def _normalisation(colour: Colour, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what each plane is multiplied with and what is added then: float32 [C, 1, 1]."""
    order = colour.order()
    scale = [1 / (colour.std[band] * colour.value_range) for band in order]
    shift = [-colour.mean[band] / colour.std[band] for band in order]
    return torch.tensor(scale).view(-1, 1, 1).to(device), torch.tensor(shift).view(-1, 1, 1).to(device)


def _operate(number: int, groups: Sequence[_Group], factors: Sequence[Factor]) -> None:
    for planes, operations in groups:
        if number < len(operations):
            operations[number](planes, factors)


def _columns(factor_NK: Tensor) -> Sequence[Factor]:
    """Return factors as operations take them: numbers cost less than tensors of one number."""
    if len(factor_NK) == 1 and factor_NK.device.type == "cpu":
        numbers: list[float] = factor_NK[0].tolist()
        return numbers
    return factor_NK.t().contiguous()[:, :, None, None, None].unbind(0)


def _plan(draws: ColourDraws, values: int, device: torch.device) -> tuple[int, Iterable[_Chunk]]:
    """Return how many images a chunk has at most, and the chunks; an image has so many values."""
    num_images = len(draws.kind_N)
    if device.type != "cpu":
        return num_images, [_one_chunk(draws, device)]
    at_once = min(num_images, max(1, _CHUNK_BYTES * torch.get_num_threads() // (4 * values)))
    return at_once, _chunks(draws, at_once)
