"""Features of a data set under a model, computed once and cached by digest.

Threads read, decode and resize while the main thread runs the backbone; a few batches are in flight at a time, so
that memory holds the features (float32 [N, D]) and never the images. Patch features, which are larger, are in
`eval.patches`. Values that an image lacks are filled in (`eval.data.missing`) and such images counted; one that has no
value at all is unreadable.
"""

import io
import itertools
import json
import resource
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.data.decode import UnreadableImageError, labelled_chips
from eval.data.kinds import LabelledData, Sample
from eval.data.missing import filled, present
from eval.models.model import Model, digest_of
from eval.models.resolve import Candidate
from eval.models.windows import resized
from shards import storage
from shards.errors import UserError

MAX_REJECTED_SHARE = 0.01
_NUM_NAMED = 3
_TRANSFORM = "bicubic, antialias, square; 4"
_JOINED = "cls+mean"

Advance = Callable[[int], None]
Prepared = TypeVar("Prepared")
Loaded = tuple[list[tuple[int, Prepared]], list[tuple[str, str]], int]
"""(place, prepared sample) of some samples, (id, reason) of the unreadable among them, and how many lack values."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """How features are extracted."""

    batch_size: int
    """Images in a forward pass."""
    workers: int
    """Threads that read, decode and resize."""
    redo: bool = False
    """Whether the cache is written anew."""
    advance: Advance = lambda num_images: None
    """Is called with the number of images that were done since it was called before."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the extraction of features took."""

    images_per_s: float
    """Reading, decoding, forward pass."""
    memory_bytes: int
    """The GPU's peak where there is one, else the peak of the process until then."""


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """Features of the readable images of a data set."""

    index: NDArray[np.int64]
    """Places in the data set of the M readable images, ascending."""
    values: dict[str, NDArray[np.float32]]
    """Each kind of feature, [M, D]."""
    rejected: tuple[tuple[str, str], ...]
    """(id, reason) of every image left out."""
    num_incomplete: int
    """How many of the others lack values."""
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Features of some images after a change of size."""

    places: tuple[int, ...]
    """Which images, ascending."""
    share: float
    """Of their height and width that is left, before they are resized to the model's input."""


def check_compatible(model: Model | Candidate, data: LabelledData) -> None:
    """Raise UserError if the data cannot supply the bands or the type that a model takes."""
    missing = [band for band in model.bands or () if band not in data.bands]
    if missing:
        raise UserError(
            f"{model.name} takes {','.join(model.bands or ())}, but {data.name} has no {','.join(missing)} "
            f"(it has {','.join(data.bands)}): evaluate it on data with these bands"
        )
    if model.dtype not in (None, data.dtype):
        raise UserError(f"{model.name} takes {model.dtype} images, {data.name} is {data.dtype}: convert the images")


def features_of(model: Model, data: LabelledData, out: str, work: Work, variant: Variant | None = None) -> FeatureTable:
    """Return the features of a data set, from OUT/features if they are there, else computed and stored.

    `cls+mean` is made here and not stored.

    Raises:
        UserError: more than 1 % of the images are unreadable; the first ones are named.
    """
    places = variant.places if variant else range(len(data.ids))
    changed = [list(variant.places), variant.share] if variant else None
    key = digest_of(model.digest, model.image_px, model.bands, data.digest, _TRANSFORM, changed)
    url = storage.join(out, "features", f"{key[:32]}.npz")
    if work.redo or not storage.exists(url):
        table = extract(model, data, places, work, variant.share if variant else 1.0)
        storage.write_bytes(url, _encode(table))
    else:
        table = _decode(url)
        work.advance(len(places))
    values = dict(table.values)
    if {"cls", "patch_mean"} <= values.keys():
        values[_JOINED] = np.concatenate([values["cls"], values["patch_mean"]], axis=1)
    return replace(table, values=values)


def extract(model: Model, data: LabelledData, places: Sequence[int], work: Work, share: float = 1.0) -> FeatureTable:
    """Compute the features of every readable image at some places, after scaling them to a share of their size.

    Raises:
        UserError: more than 1 % of the images are unreadable.
    """
    started = time.perf_counter()
    index: list[int] = []
    parts: list[dict[str, Tensor]] = []
    rejected: list[tuple[str, str]] = []
    num_incomplete = 0

    def prepare(sample: Sample) -> Tensor:
        return model_input(in_bands_of(model, data, sample), model.image_px, share)

    for images, faults, lacking in load_ahead(data, places, work.batch_size, work.workers, prepare):
        rejected += faults
        num_incomplete += lacking
        check_rejected(data, rejected, len(places))
        # A model that takes images as they are sees one batch per run of equal sizes.
        for _, group in itertools.groupby(images, key=lambda item: item[1].shape):
            some, stack = zip(*group, strict=True)
            parts.append(_checked(model, model.embed(torch.stack(stack)).pooled))
            index += some
        work.advance(len(images) + len(faults))
    check_rejected(data, rejected, len(places), at_end=True)
    return FeatureTable(
        index=np.array(index, np.int64),
        values={name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]},
        rejected=tuple(rejected),
        num_incomplete=num_incomplete,
        cost=cost_since(started, len(places)),
    )


def model_input(sample: Sample, side_px: int | None, share: float = 1.0) -> Tensor:
    """Return a sample's image [H, W, C], scaled to a share of its size, then to a square; None leaves it as it is."""
    image = torch.from_numpy(np.array(sample.images[0]))
    if share != 1:
        height, width = (max(1, round(length * share)) for length in image.shape[:2])
        image = resized(image, (height, width))
    return image if side_px is None else resized(image, (side_px, side_px))


def _checked(model: Model, features: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, values in features.items():
        if not bool(values.isfinite().all()):
            raise UserError(f"{model.name} gives {name} features that are not finite: its weights are unusable")
    return {name: values for name, values in features.items() if name != _JOINED}


def check_rejected(
    data: LabelledData, rejected: Sequence[tuple[str, str]], num_images: int, *, at_end: bool = False
) -> None:
    """Raise UserError if too many images are unreadable, as soon as three can be named."""
    if len(rejected) > MAX_REJECTED_SHARE * num_images and (at_end or len(rejected) >= _NUM_NAMED):
        named = "; ".join(f"{path} ({reason})" for path, reason in rejected[:_NUM_NAMED])
        raise UserError(
            f"{data.name}: more than {MAX_REJECTED_SHARE:.0%} of its {num_images} images are unreadable, "
            f"among them {named}: mend or remove them"
        )


def cost_since(started: float, num_images: int) -> Cost:
    """Return the cost of an extraction that began at `started` of time.perf_counter."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        memory_bytes = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        memory_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Cost(images_per_s=num_images / (time.perf_counter() - started), memory_bytes=memory_bytes)


def load_ahead(
    data: LabelledData,
    places: Sequence[int],
    batch_size: int,
    workers: int,
    prepare: Callable[[Sample], Prepared],
) -> Iterator[Loaded[Prepared]]:
    """Yield what is loaded batch by batch, while the next ones are being read.

    `prepare` runs in the reading threads.
    """
    starts = iter(range(0, len(places), batch_size))
    with ThreadPoolExecutor(workers) as pool, labelled_chips():

        def submit(start: int) -> "Future[Loaded[Prepared]]":
            return pool.submit(_load, data, places[start : start + batch_size], prepare)

        pending = deque(submit(start) for start in itertools.islice(starts, workers + 1))
        while pending:
            loaded = pending.popleft().result()
            pending.extend(submit(start) for start in itertools.islice(starts, 1))
            yield loaded


def _load(data: LabelledData, places: Sequence[int], prepare: Callable[[Sample], Prepared]) -> Loaded[Prepared]:
    samples: list[tuple[int, Prepared]] = []
    rejected: list[tuple[str, str]] = []
    num_incomplete = 0
    for place in places:
        try:
            sample = data.read(place)
            num_incomplete += _is_incomplete(sample)
        except UnreadableImageError as error:
            rejected.append((data.ids[place], str(error)))
            continue
        samples.append((place, prepare(sample)))
    return samples, rejected, num_incomplete


def _is_incomplete(sample: Sample) -> bool:
    """Say whether images lack values; raise UnreadableImageError if one has none."""
    known = [there for there in map(present, sample.images) if there is not None]
    if not all(there.any() for there in known):
        raise UnreadableImageError("all of its values are NaN or infinite")
    return bool(known)


def in_bands_of(model: Model, data: LabelledData, sample: Sample) -> Sample:
    """Return a sample with the bands that a model takes, in its order, and the mean of the band for what is missing."""
    images = sample.images
    if model.bands not in (None, data.bands):
        chosen = [data.bands.index(band) for band in model.bands or ()]
        images = tuple(image[:, :, chosen] for image in images)
    return replace(sample, images=tuple(filled(image, model.mean) for image in images))


def _encode(table: FeatureTable) -> bytes:
    told = {"rejected": table.rejected, "num_incomplete": table.num_incomplete, "cost": asdict(table.cost)}
    info = json.dumps(told).encode()
    out = io.BytesIO()
    arrays = {f"features.{name}": values for name, values in table.values.items()}
    np.savez(out, index=table.index, info=np.frombuffer(info, np.uint8), **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def _decode(url: str) -> FeatureTable:
    try:
        with np.load(io.BytesIO(storage.read_bytes(url)), allow_pickle=False) as arrays:
            info = json.loads(arrays["info"].tobytes())
            values = {name.partition(".")[2]: arrays[name] for name in arrays.files if name.startswith("features.")}
            index = arrays["index"]
    except (zipfile.BadZipFile, ValueError, KeyError) as error:
        raise UserError(f"cached features {url} are damaged ({error}): remove the file and run again") from error
    rejected = tuple((path, reason) for path, reason in info["rejected"])
    return FeatureTable(
        index=index, values=values, rejected=rejected, cost=Cost(**info["cost"]),
        num_incomplete=info["num_incomplete"],
    )  # fmt: skip
