"""Whole images of a stream as batches, for trainers of one's own; `pretrain.batches.loader.deliver` makes them ahead.

Shape legend: B samples of this rank, H height, W width, C bands.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain.batches.parcels import Empty
from shards.streaming.stream import Replacement, Slot, Stream


@dataclass(frozen=True, kw_only=True)
class Images:
    """A step's images of one rank."""

    pixels_BHWC: Tensor
    """As they were stored: uint8, uint16, int16 or float32."""
    keys: Sequence[str]
    """Of the samples."""
    slots: Sequence[Slot]
    """Their places in the stream: dataset, epoch, row of the samples table; of what was replaced, the new row."""

    def pin_memory(self) -> "Images":
        """Return a copy that can be sent to an accelerator while it computes."""
        return replace(self, pixels_BHWC=self.pixels_BHWC.pin_memory())


class ImageMaker:
    """Makes the batches of a stream whose images are alike."""

    def __init__(self, stream: Stream) -> None:
        """Take the stream of a rank; may be pickled to workers."""
        self.stream = stream

    def make(self, step: int, empty: Empty = torch.empty) -> tuple[Images, Sequence[Replacement]]:
        """Read and decode the samples of a step; also return which were replaced.

        Args:
            step: of the stream.
            empty: gives the memory.

        Raises:
            As `Stream.read_images`.
        """

        def allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
            return empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype).numpy()

        pixels_BHWC, read = self.stream.read_images(step, allocate)
        rows = {replaced.number: replaced.replaced_by for replaced in read.replaced}
        slots = [slot._replace(row=rows.get(slot.number, slot.row)) for slot in read.slots] if rows else read.slots
        keys = [sample.key for sample in read.items]
        return Images(pixels_BHWC=torch.from_numpy(pixels_BHWC), keys=keys, slots=slots), read.replaced
