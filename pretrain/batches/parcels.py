"""Parcels: how a worker hands what it has made to the training process, in shared memory that is used again and again.

New shared memory is dear: the system gives it page by page, each zeroed first, which in a virtual machine takes half as
long as to decode an image into it; and torch hands over each tensor of a batch in memory of its own. Here all tensors
of a batch lie in one slab, which the training process maps once. When the last of them is gone there, the worker takes
the slab for another parcel. So whoever wants to keep a batch just keeps it; a worker has as many slabs as batches are
under way or kept, and a few to spare.
"""

import io
import itertools
import math
import os
import pickle
import weakref
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.errors import UserError

_HEAD_BYTES = _ALIGNED_BYTES = 64
_MAX_SPARE = 4
_Place = tuple[int, torch.dtype, torch.Size]
"""Of a tensor in a slab: first byte, type, shape."""

_numbers = itertools.count()
_known: dict[tuple[int, int], Tensor] = {}
"""Memory of the slabs whose parcels this process has opened, by their names."""


class Empty(Protocol):
    """Gives memory for a tensor of what is being made, and for nothing later, as torch.empty does."""

    def __call__(self, shape: Sequence[int], /, *, dtype: torch.dtype) -> Tensor:
        """Return a tensor with any values."""
        ...


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A value on its way from one process to another."""

    slab: tuple[int, int]
    """Process that made the slab, and a number."""
    memory: Tensor | None
    """Of the slab, with its first parcel."""
    dropped: Sequence[tuple[int, int]]
    """Slabs of the same process that come with no more parcels."""
    pickled: bytes
    """The value, with places in the slab for its tensors."""

    def open(self) -> Any:
        """Return the value, once; its tensors lie in the slab, which is used again when nobody has any of them."""
        if self.memory is not None:
            _known[self.slab] = self.memory
        for slab in self.dropped:
            _known.pop(slab, None)
        # Each call gives another array; tensors keep it for as long as one of them, or a view, is there.
        array: NDArray[Any] = _known[self.slab].numpy()
        weakref.finalize(array, _free, _known[self.slab].numpy(), os.getpid()).atexit = False
        return _Unpacking(self.pickled, array).load()

    def pin_memory(self) -> Any:
        """Return the value with its tensors in pinned memory; torch calls it."""
        return self.open().pin_memory()


def forget(processes: Collection[int | None]) -> None:
    """Let go of the slabs of processes that have ended; what lies in them stays for as long as it is used."""
    for slab in list(_known):  # at once: another thread may open a parcel meanwhile
        if slab[0] in processes:
            _known.pop(slab, None)


class _Slab:
    """Shared memory, in the process that made it; the first byte says whether a parcel in it is in use."""

    def __init__(self, num_bytes: int) -> None:
        self.name = (os.getpid(), next(_numbers))
        self.memory = torch.zeros(num_bytes, dtype=torch.uint8)
        try:
            self.memory.share_memory_()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            # torch's only kind; it tells the file and the system's reason.
            raise UserError(
                f"no shared memory for {num_bytes / 1e6:.1f} MB, a batch ({error}): lower loader.workers or "
                "loader.batch, or give /dev/shm more room (for a container: --shm-size)"
            ) from error
        self.is_sent = False

    @property
    def is_free(self) -> bool:
        return not self.memory[0]


class Packer:
    """Makes the parcels of a process, one after the other, each to be opened once, all by the same other process."""

    def __init__(self) -> None:
        """Begin without a slab: the first parcel tells how large they must be."""
        self._slabs: list[_Slab] = []
        self._slab: _Slab | None = None
        """Of the parcel that is being made."""
        self._end = _HEAD_BYTES
        """Of what is taken of it."""
        self._num_bytes = 0
        """Of the largest parcel so far."""
        self._dropped: list[tuple[int, int]] = []
        """Slabs of which the other process does not know yet that they are."""

    def begin(self) -> None:
        """Begin a parcel; memory of one that was begun and never packed is given up.

        Raises:
            UserError: there is no shared memory; likewise `pack`.
        """
        self._slab = self._take(self._num_bytes) if self._num_bytes else None
        self._end = _HEAD_BYTES

    def empty(self, shape: Sequence[int], *, dtype: torch.dtype) -> Tensor:
        """See Empty: where the parcel needs no copy of it, if there is room."""
        begin, end = self._end, self._end + math.prod(shape) * dtype.itemsize
        if self._slab is None or end > len(self._slab.memory):
            return torch.empty(shape, dtype=dtype)
        self._end = _aligned(end)
        return _at(self._slab.memory, (begin, dtype, torch.Size(shape)))

    def pack(self, value: Any) -> Parcel:
        """Return the parcel.

        Args:
            value: can be pickled. Tensors, all on the CPU, arrive as plain contiguous ones, each for itself.
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
        memory = None if slab.is_sent else slab.memory
        parcel = Parcel(slab=slab.name, memory=memory, dropped=self._dropped, pickled=packing.file.getvalue())
        slab.is_sent, self._slab, self._dropped = True, None, []
        self._num_bytes = max(self._num_bytes, packing.end)
        return parcel

    def _take(self, num_bytes: int) -> _Slab:
        """Return a free slab, a new one if there is none; of the others a few are kept, smaller ones are not."""
        free = [slab for slab in self._slabs if slab.is_free]
        spare = [slab for slab in free if len(slab.memory) >= num_bytes][: 1 + _MAX_SPARE]
        dropped = [slab for slab in free if slab not in spare]
        self._slabs = [slab for slab in self._slabs if slab not in dropped]
        self._dropped += [slab.name for slab in dropped if slab.is_sent]
        if not spare:
            spare.append(_Slab(num_bytes))
            self._slabs += spare
        return spare[0]


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
        value = value.detach().resolve_conj().resolve_neg()
        begin = value.data_ptr() - self._memory.data_ptr()
        if value.is_contiguous() and _HEAD_BYTES <= begin <= len(self._memory) - value.nbytes:
            return begin, value.dtype, value.shape
        place = (self.end, value.dtype, value.shape)
        self.copied.append((place, value))
        self.end = _aligned(self.end + value.nbytes)
        return place


class _Unpacking(pickle.Unpickler):
    """Reads a value whose tensors lie in a slab."""

    def __init__(self, pickled: bytes, array: NDArray[Any]) -> None:
        super().__init__(io.BytesIO(pickled))
        self._array = array

    def persistent_load(self, place: _Place) -> Tensor:
        """Return the tensor at a place, with a storage of its own, as torch would have made it."""
        begin, dtype, shape = place
        end = begin + shape.numel() * dtype.itemsize
        return torch.from_numpy(self._array[begin:end]).view(dtype).view(shape)


def _at(memory: Tensor, place: _Place) -> Tensor:
    begin, dtype, shape = place
    return memory[begin : begin + shape.numel() * dtype.itemsize].view(dtype).view(shape)


def _aligned(end: int) -> int:
    return -(-end // _ALIGNED_BYTES) * _ALIGNED_BYTES


def _free(array: NDArray[Any], process: int) -> None:
    # By numpy: in torch it would belong to whatever is traced at the moment. A forked process has nothing to give back.
    if os.getpid() == process:
        array[0] = 0
