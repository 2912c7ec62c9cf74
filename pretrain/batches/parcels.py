"""Parcels: how a worker hands what it has made to the training process, in shared memory that is used again and again.

New shared memory is dear: the system gives it page by page, each zeroed first, which in a virtual machine takes half as
long as to decode an image into it; and torch hands over each tensor of a batch in memory of its own, by a descriptor.
Here all tensors of a batch lie in one slab, which the training process maps once. When the last of them is gone there,
the worker takes the slab for another parcel. So whoever wants to keep a batch just keeps it, and a worker has as many
slabs as batches are under way or kept.
"""

import io
import itertools
import math
import os
import pickle
import weakref
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

_HEAD_BYTES = _ALIGNED_BYTES = 64
_Place = tuple[int, torch.dtype, torch.Size]
"""Of a tensor in a slab: first byte, type, shape."""

_numbers = itertools.count()
_known: dict[tuple[int, int], Tensor] = {}
"""Memory of the slabs whose parcels this process has opened, by their names."""


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A value on its way from one process to another."""

    slab: tuple[int, int]
    """Process that made the slab, and a number."""
    memory: Tensor | None
    """Of the slab, with its first parcel."""
    pickled: bytes
    """The value, with places in the slab for its tensors."""

    def open(self) -> Any:
        """Return the value, once; its tensors lie in the slab, which is used again when nobody has any of them."""
        if self.memory is not None:
            _known[self.slab] = self.memory
        memory = _known[self.slab]
        # An array of its own: torch keeps it for as long as a tensor, or a view of one, needs it.
        array: NDArray[Any] = memory.numpy()[:]
        weakref.finalize(array, _free, memory).atexit = False
        return _Unpacking(self.pickled, torch.from_numpy(array)).load()

    def pin_memory(self) -> Any:
        """Return the value with its tensors in pinned memory; torch calls it."""
        return self.open().pin_memory()


def forget(processes: Collection[int | None]) -> None:
    """Let go of the slabs of processes that have ended; what lies in them stays for as long as it is used."""
    for slab in [slab for slab in _known if slab[0] in processes]:
        del _known[slab]


class _Slab:
    """Shared memory, in the process that made it; the first byte says whether a parcel in it is in use."""

    def __init__(self, num_bytes: int) -> None:
        self.name = (os.getpid(), next(_numbers))
        self.memory: Tensor = torch.zeros(num_bytes, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        self.is_known = False
        """To the process that opens parcels."""

    @property
    def is_free(self) -> bool:
        return not self.memory[0]


class Packer:
    """Makes the parcels of a process, one after the other. Each is to be opened by the same other process, in order."""

    def __init__(self) -> None:
        """Begin without a slab: the first parcel tells how large they must be."""
        self._slabs: list[_Slab] = []
        self._slab: _Slab | None = None
        """Of the parcel that is being made."""
        self._end = _HEAD_BYTES
        """Of what is taken of it."""
        self._num_bytes = 0
        """Of the largest parcel so far."""

    def begin(self) -> None:
        """Begin a parcel; memory of one that was begun and never packed is given up."""
        self._slab = self._take(self._num_bytes) if self._num_bytes else None
        self._end = _HEAD_BYTES

    def empty(self, shape: Sequence[int], *, dtype: torch.dtype) -> Tensor:
        """Return memory as torch.empty does: where the parcel needs no copy of it, if there is room."""
        begin, end = self._end, self._end + math.prod(shape) * dtype.itemsize
        if self._slab is None or end > len(self._slab.memory):
            return torch.empty(shape, dtype=dtype)
        self._end = _aligned(end)
        return _at(self._slab.memory, (begin, dtype, torch.Size(shape)))

    def pack(self, value: Any) -> Parcel:
        """Return the parcel.

        Args:
            value: can be pickled; tensors on the CPU, those from `empty` among them, are not.
        """
        packing = _Packing(self._slab, self._end)
        packing.dump(value)
        slab = self._slab
        if slab is None or packing.end > len(slab.memory):
            slab = self._take(packing.end)
            if self._slab is not None:
                slab.memory[_HEAD_BYTES : self._end] = self._slab.memory[_HEAD_BYTES : self._end]
        for place, tensor in packing.copied:
            _at(slab.memory, place).copy_(tensor)
        slab.memory[0] = 1
        memory, slab.is_known = None if slab.is_known else slab.memory, True
        self._slab, self._num_bytes = None, max(self._num_bytes, packing.end)
        return Parcel(slab=slab.name, memory=memory, pickled=packing.file.getvalue())

    def _take(self, num_bytes: int) -> _Slab:
        """Return a free slab, a new one if there is none; smaller ones are not kept."""
        self._slabs = [slab for slab in self._slabs if not slab.is_free or len(slab.memory) >= num_bytes]
        free = next((slab for slab in self._slabs if slab.is_free), None)
        if free is None:
            free = _Slab(num_bytes)
            self._slabs.append(free)
        return free


class _Packing(pickle.Pickler):
    """Pickles a value without its tensors, and places these in a slab."""

    def __init__(self, slab: _Slab | None, end: int) -> None:
        self.file = io.BytesIO()
        super().__init__(self.file, pickle.HIGHEST_PROTOCOL)
        self._memory = torch.empty(0, dtype=torch.uint8) if slab is None else slab.memory
        self.end = end
        """Of all that has a place."""
        self.copied: list[tuple[_Place, Tensor]] = []
        """What does not lie at its place yet."""

    def persistent_id(self, value: Any) -> _Place | None:
        """Return the place of a tensor; None of what is pickled."""
        if not isinstance(value, Tensor):
            return None
        begin = value.data_ptr() - self._memory.data_ptr()
        if value.is_contiguous() and _HEAD_BYTES <= begin <= len(self._memory) - value.nbytes:
            return begin, value.dtype, value.shape
        place = (self.end, value.dtype, value.shape)
        self.copied.append((place, value))
        self.end = _aligned(self.end + value.nbytes)
        return place


class _Unpacking(pickle.Unpickler):
    """Reads a value whose tensors lie in a slab."""

    def __init__(self, pickled: bytes, memory: Tensor) -> None:
        super().__init__(io.BytesIO(pickled))
        self._memory = memory

    def persistent_load(self, place: _Place) -> Tensor:
        """Return the tensor at a place."""
        return _at(self._memory, place)


def _at(memory: Tensor, place: _Place) -> Tensor:
    begin, dtype, shape = place
    return memory[begin : begin + shape.numel() * dtype.itemsize].view(dtype).view(shape)


def _aligned(end: int) -> int:
    return -(-end // _ALIGNED_BYTES) * _ALIGNED_BYTES


def _free(memory: Tensor) -> None:
    memory[0] = 0
