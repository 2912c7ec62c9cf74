"""The candidates of the benchmarks: each yields batches of 64 without end, as its documentation says for local data.

The decoder is the same for all (`shards.images.decode_image`), but MosaicML comes twice: with a column of JPEGs, which
it decodes itself (by Pillow), as its documentation has it for images; and with a column of bytes and our decoder. 64
images become one uint8 tensor, in workers in memory that processes share: the peers' and the bare loop's by torch's
default_collate; the stream's come from the loader of pretrain. Without decoding a batch is a list of the
encoded images. Worker processes are torch's.
"""

import fcntl
import itertools
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

from pretrain.batches.images import ImageMaker
from pretrain.batches.loader import deliver
from shards import storage
from shards.dataset import Dataset, Sample, open_dataset
from shards.images import decode_image
from shards.streaming.order import OrderSettings, default_lanes
from shards.streaming.stream import Stream
from shards.tables import read_table
from tests.bench.stream_race import BATCH

SETTINGS = OrderSettings(seed=0, lanes=default_lanes(BATCH))

# Pillow's pixels are; they are only copied.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

Decode = Callable[[bytes | memoryview], Any]


def decode_jpeg(data: bytes | memoryview) -> np.ndarray:
    """Decode to [height, width, 3]."""
    return decode_image("jpg", data)


def as_it_is(data: bytes | memoryview) -> bytes | memoryview:
    """Decode nothing."""
    return data


def collate(images: Sequence[Any]) -> Any:
    """Make one tensor of decoded images; leave others as they are."""
    return default_collate(list(map(torch.from_numpy, images))) if isinstance(images[0], np.ndarray) else images


def ours(folder: str, decode: Decode, workers: int) -> Iterator[object]:
    """Yield batches of the stream."""
    return load_stream(Stream([open_dataset(folder)], SETTINGS, global_batch=BATCH), decode, workers)


def load_stream(stream: Stream, decode: Decode, workers: int) -> Iterator[object]:
    """Yield the batches of a stream's steps: images by the loader of pretrain, what is not decoded as it is read."""
    if decode is not decode_jpeg:
        return load(_EncodedSteps(stream, decode), workers)
    return (delivery.batch.pixels_BHWC for delivery in deliver(ImageMaker(stream), num_steps=10**9, workers=workers))


class _EncodedSteps:
    """Map-style: the samples of each step of a stream."""

    def __init__(self, stream: Stream, decode: Decode) -> None:
        self._stream, self._decode = stream, decode

    def __getitem__(self, step: int) -> Any:
        return self._stream.read(step, self._decode_sample).items

    def _decode_sample(self, sample: Sample, _: int) -> Any:
        return self._decode(sample.image)


def bare(folder: str, decode: Decode, workers: int) -> Iterator[object]:
    """Yield batches of the bare loop: a positioned read of each image in the stream's order, and the decoder."""
    return load(_PlacedImages(open_dataset(folder), folder, decode), workers)


class _PlacedImages:
    """Map-style: the batch of each step of one epoch, from lists of places that were made before."""

    def __init__(self, dataset: Dataset, folder: str, decode: Decode) -> None:
        stream = Stream([dataset], SETTINGS, global_batch=BATCH)
        steps = range(dataset.num_samples // BATCH)
        rows = [slot.row for step in steps for slot in stream.slots(step)]
        table = read_table(folder, dataset.version, "samples", ["member_offset", "member_size"])
        offsets, sizes = (table[name].to_numpy()[rows].tolist() for name in table.column_names)
        self._places = list(zip([dataset.rows.place(row).shard for row in rows], offsets, sizes, strict=True))
        self._paths = [storage.local_path(shard.url) for shard in dataset.shards]
        self._decode = decode
        self._files: list[int] = []

    def __getitem__(self, step: int) -> Any:
        self._files = self._files or [os.open(path, os.O_RDONLY) for path in self._paths]
        first = step * BATCH % len(self._places)
        places = self._places[first : first + BATCH]
        return collate([self._decode(os.pread(self._files[file], size, at)) for file, at, size in places])


def load(steps: Any, workers: int) -> Iterator[object]:
    """Load endless steps with torch's DataLoader, its workers started as `pretrain.batches.loader` does."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    options: dict[str, Any] = {"persistent_workers": True, "multiprocessing_context": context} if workers else {}
    # Batches come as they are to be: torch would look into each for arrays that it should make tensors of.
    loader = DataLoader(
        steps, sampler=_Endless(), batch_size=None, collate_fn=_unchanged, num_workers=workers, **options
    )
    return iter(loader)


def _unchanged(batch: Any) -> Any:
    return batch


class _Endless:
    def __iter__(self) -> Iterator[int]:
        return itertools.count()


def webdataset(folder: str, decode: Decode, workers: int) -> Iterator[object]:
    """Yield batches of webdataset: shards drawn anew without end, as it advises for training, a buffer of 1,000."""
    import webdataset as wds

    urls = sorted(map(str, Path(folder, "shards").glob("*.tar")))
    dataset = (
        wds.WebDataset(urls, resampled=True, shardshuffle=False)
        .shuffle(1000)
        .to_tuple("jpg")
        .map_tuple(decode)
        .map(_first)
        .batched(BATCH, collation_fn=collate, partial=False)
    )
    return iter(wds.WebLoader(dataset, batch_size=None, collate_fn=_unchanged, num_workers=workers, **_fork(workers)))


def _first(values: tuple[Any, ...]) -> Any:
    return values[0]


def mosaicml(folder: str, decode: Decode, workers: int) -> Iterator[object]:
    """Yield batches of MosaicML Streaming, which decodes itself, epoch after epoch."""
    return mosaicml_bytes(folder, np.asarray, workers)


def mosaicml_bytes(folder: str, decode: Decode, workers: int) -> Iterator[object]:
    """Yield batches of MosaicML Streaming with a column of bytes, epoch after epoch."""
    from streaming import StreamingDataset

    # Two that begin at the same time may choose the same name for what their processes share.
    with Path(folder).parent.joinpath("mosaicml.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        dataset = StreamingDataset(local=folder, shuffle=True, batch_size=BATCH)
    return _epochs(DataLoader(dataset, batch_size=BATCH, **_options(decode, workers)))


def litdata(folder: str, decode: Decode, workers: int) -> Iterator[object]:
    """Yield batches of litData, epoch after epoch."""
    from litdata import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(folder, shuffle=True, drop_last=True)
    return _epochs(StreamingDataLoader(dataset, batch_size=BATCH, **_options(decode, workers)))


class _Collate:
    """Decodes where the batch is made: in the worker, if there is one."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode

    def __call__(self, samples: Sequence[dict[str, Any]]) -> Any:
        return collate([self._decode(sample["image"]) for sample in samples])


def _options(decode: Decode, workers: int) -> dict[str, Any]:
    kept = {"persistent_workers": True} if workers else {}
    return {"num_workers": workers, "collate_fn": _Collate(decode), **kept, **_fork(workers)}


def _fork(workers: int) -> dict[str, Any]:
    """Start the peers' workers as they do by default on Linux, whatever started this process."""
    return {"multiprocessing_context": "fork"} if workers else {}


def _epochs(loader: Iterable[object]) -> Iterator[object]:
    while True:
        yield from loader
