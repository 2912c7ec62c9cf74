"""Patch features of a data set whose pixels have classes, computed once and kept in a file, never all in memory.

OUT/features/KEY.bin holds, one sample after the other, the features of its image (or both images) as float16 and its
mask; KEY.json, written last, says where they lie. The file is mapped into memory and read as heads are trained; where
OUT is a bucket it is fetched to the scratch disk (TMPDIR) first. Its size: 2 bytes × patches × D per image (300 kB for
a ViT-B/16 at 224 px) and 1 byte per pixel of the mask. Halves cost 3 decimal digits and reach to 65,504; features
beyond that are refused.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from eval.data.kinds import LabelledData, Sample
from eval.features import Cost, Work, check_rejected, cost_since, in_bands_of, load_ahead
from eval.models.model import Model, digest_of
from eval.models.windows import OVERLAP, DenseFeatures, embed_large
from eval.protocols.dense import DenseSample
from shards import storage
from shards.errors import UserError

_VERSION = "patches 4"
_ALIGNMENT = 64  # torch takes arrays that begin on a multiple of their items' size
_FREE_SIDE_PX = 256  # of models that take images as they are


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """Where a sample lies in the file."""

    place: int
    offset: int
    grid: tuple[int, int, int]
    """h, w, D of each image's features."""
    num_images: int
    mask: tuple[int, int]
    cell_px: tuple[float, float]
    manner: str


@dataclass(frozen=True)
class StoredSamples:
    """The readable samples of a data set; a sample is read from the file when it is asked for."""

    entries: tuple[_Entry, ...]
    content: NDArray[np.uint8]
    """The mapped file."""

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int, /) -> DenseSample:
        entry = self.entries[index]
        size = 2 * int(np.prod(entry.grid)) * entry.num_images
        values = self.content[entry.offset : entry.offset + size].view(np.float16)
        start = entry.offset + size
        mask = self.content[start : start + entry.mask[0] * entry.mask[1]].reshape(entry.mask)
        features = values.reshape(entry.num_images, *entry.grid)
        return DenseSample(features=tuple(features), cell_px=entry.cell_px, manner=entry.manner, mask=mask)

    def at(self, chosen: NDArray[np.int64]) -> "StoredSamples":
        """Return the samples of some numbers, in their order."""
        return replace(self, entries=tuple(self.entries[number] for number in chosen))


@dataclass(frozen=True, kw_only=True)
class PatchTable:
    """Patch features of the readable samples of a data set."""

    index: NDArray[np.int64]
    """Places in the data set of the readable samples, ascending."""
    samples: StoredSamples
    rejected: tuple[tuple[str, str], ...]
    """(id, reason) of every sample left out."""
    num_incomplete: int
    """How many of the others lack values of their images."""
    cost: Cost


@contextlib.contextmanager
def patches_of(model: Model, data: LabelledData, out: str, work: Work) -> Iterator[PatchTable]:
    """Yield the patch features of a data set of masks or changes, computed first where OUT/features lacks them.

    Raises:
        UserError: more than 1 % of the samples are unreadable, the model has no patch features, or they are not
            finite as halves.
    """
    key = digest_of(model.digest, model.image_px, model.patch_px, model.bands, data.digest, OVERLAP, _VERSION)
    stem = storage.join(out, "features", key[:32])
    if work.redo or not storage.exists(f"{stem}.json"):
        with storage.spooled(storage.join(out, "features")) as path:
            with path.open("wb") as file:
                info = _extract(model, data, file, work)
            storage.put_file(path, f"{stem}.bin")
        storage.write_bytes(f"{stem}.json", json.dumps(info).encode())
    else:
        work.advance(len(data.ids))
    with storage.local_copy(f"{stem}.bin") as path:
        yield _table(path, f"{stem}.json")


def _table(path: Path, url: str) -> PatchTable:
    try:
        info = json.loads(storage.read_bytes(url))
        entries = tuple(_Entry(**{name: _tupled(value) for name, value in entry.items()}) for entry in info["entries"])
        content: NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
        if len(content) != info["size"]:
            raise ValueError(f"{len(content)} bytes instead of {info['size']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cached features {url} are damaged ({error}): remove the file and run again") from error
    return PatchTable(
        index=np.array([entry.place for entry in entries], np.int64),
        samples=StoredSamples(entries, content),
        rejected=tuple((name, reason) for name, reason in info["rejected"]),
        num_incomplete=info["num_incomplete"],
        cost=Cost(**info["cost"]),
    )


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _extract(model: Model, data: LabelledData, file: BinaryIO, work: Work) -> dict[str, Any]:
    """Write features and masks of every readable sample; return what KEY.json says."""
    started = time.perf_counter()
    entries: list[_Entry] = []
    rejected: list[tuple[str, str]] = []
    num_incomplete = 0
    places = range(len(data.ids))
    chunk = _samples_at_once(model, data, work.batch_size)
    prepare = partial(in_bands_of, model, data)
    for loaded, faults, lacking in load_ahead(data, places, chunk, work.workers, prepare):
        rejected += faults
        num_incomplete += lacking
        check_rejected(data, rejected, len(places))
        images = [torch.from_numpy(np.array(image)) for _, sample in loaded for image in sample.images]
        grids = embed_large(model, images, batch_size=work.batch_size)
        per_sample = len(images) // max(1, len(loaded))
        for number, (place, sample) in enumerate(loaded):
            own = grids[number * per_sample : (number + 1) * per_sample]
            entries.append(_write(model, file, place, sample, own))
        work.advance(len(loaded) + len(faults))
    check_rejected(data, rejected, len(places), at_end=True)
    return {
        "entries": [asdict(entry) for entry in entries], "size": file.tell(), "rejected": rejected,
        "num_incomplete": num_incomplete, "cost": asdict(cost_since(started, len(places))),
    }  # fmt: skip


def _samples_at_once(model: Model, data: LabelledData, batch_size: int) -> int:
    """Return how many samples make about one batch of windows, by the size of the first that can be read."""
    for loaded, _, _ in load_ahead(data, range(len(data.ids)), 1, 1, lambda sample: sample.images):
        if loaded:
            num_pixels: int = sum(image.shape[0] * image.shape[1] for image in loaded[0][1])
            side_px: int = model.image_px or _FREE_SIDE_PX
            return max(1, min(batch_size, batch_size * side_px * side_px // num_pixels))
    raise UserError(f"none of the {len(data.ids)} samples of {data.name} can be read: is this the right folder?")


def _write(model: Model, file: BinaryIO, place: int, sample: Sample, grids: Sequence[DenseFeatures]) -> _Entry:
    assert sample.mask is not None
    file.write(bytes(-file.tell() % _ALIGNMENT))
    offset = file.tell()
    for grid in grids:
        halves = grid.values.half()
        if not bool(halves.isfinite().all()):
            raise UserError(f"{model.name} gives patch features beyond ±65,504 or not finite: its weights are unusable")
        file.write(halves.numpy().tobytes())
    file.write(np.ascontiguousarray(sample.mask).tobytes())
    height, width, channels = grids[0].values.shape
    return _Entry(
        place=place, offset=offset, grid=(height, width, channels), num_images=len(grids),
        mask=(sample.mask.shape[0], sample.mask.shape[1]), cell_px=grids[0].cell_px, manner=grids[0].manner,
    )  # fmt: skip
