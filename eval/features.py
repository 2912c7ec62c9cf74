"""Features of a data set under a model, computed once and cached by digest.

Threads read, decode and resize while the main thread runs the backbone; a few batches are in flight at a time, so
that memory holds the features (float32 [N, D]) and never the images.
"""

import io
import itertools
import json
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from eval.data import ClassFolders
from eval.decode import UnreadableImageError, labelled_chips
from eval.models import Model, digest_of
from shards import storage
from shards.errors import UserError

_MAX_REJECTED_SHARE = 0.01
_TRANSFORM = "bicubic, antialias, square; 1"

Advance = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """Features of the readable images of a data set."""

    index: NDArray[np.int64]
    """Places in the data set of the M readable images, ascending."""
    values: dict[str, NDArray[np.float32]]
    """Each kind of feature, [M, D]."""
    rejected: tuple[tuple[str, str], ...]
    """(path, reason) of every image left out."""
    images_per_s: float
    """Rate of the extraction: reading, decoding, forward pass."""


@dataclass(frozen=True)
class _Loaded:
    images: list[tuple[int, Tensor]]  # (place, [H, W, C])
    rejected: list[tuple[str, str]]


def check_compatible(model: Model, data: ClassFolders) -> None:
    """Raise UserError if the data cannot supply the bands or the type that a model takes."""
    missing = [band for band in model.bands or () if band not in data.bands]
    if missing:
        raise UserError(
            f"{model.name} takes {','.join(model.bands or ())}, but {data.name} has no {','.join(missing)} "
            f"(it has {','.join(data.bands)}): evaluate it on data with these bands"
        )
    if model.dtype not in (None, data.dtype):
        raise UserError(f"{model.name} takes {model.dtype} images, {data.name} is {data.dtype}: convert the images")


def features_of(
    model: Model, data: ClassFolders, out: str, *, batch_size: int, workers: int, redo: bool, advance: Advance
) -> FeatureTable:
    """Return the features of a data set, from OUT/features if they are there, else computed and stored.

    `advance` is called with the number of images done. The result has `both` = cls and patch_mean side by side
    where the model has these.

    Raises:
        UserError: more than 1 % of the images are unreadable; the first ones are named.
    """
    key = digest_of(model.digest, model.image_px, model.bands, data.digest, _TRANSFORM)
    url = storage.join(out, "features", f"{key[:32]}.npz")
    if redo or not storage.exists(url):
        table = extract(model, data, batch_size=batch_size, workers=workers, advance=advance)
        storage.write_bytes(url, _encode(table))
    else:
        table = _decode(url)
        advance(len(data.paths))
    values = dict(table.values)
    if {"cls", "patch_mean"} <= values.keys():
        values["both"] = np.concatenate([values["cls"], values["patch_mean"]], axis=1)
    return FeatureTable(
        index=table.index, values=values, rejected=table.rejected, images_per_s=table.images_per_s
    )  # fmt: skip


def extract(model: Model, data: ClassFolders, *, batch_size: int, workers: int, advance: Advance) -> FeatureTable:
    """Compute the features of every readable image.

    Raises:
        UserError: more than 1 % of the images are unreadable.
    """
    started = time.perf_counter()
    index: list[int] = []
    parts: list[dict[str, Tensor]] = []
    rejected: list[tuple[str, str]] = []
    for loaded in _load_ahead(model, data, batch_size, workers):
        rejected += loaded.rejected
        _check_rejected(data, rejected)
        # A model that takes images as they are sees one batch per run of equal sizes.
        for _, group in itertools.groupby(loaded.images, key=lambda item: item[1].shape):
            places, images = zip(*group, strict=True)
            parts.append(_checked(model, model.embed(torch.stack(images))))
            index += places
        advance(len(loaded.images) + len(loaded.rejected))
    return FeatureTable(
        index=np.array(index, np.int64),
        values={name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]},
        rejected=tuple(rejected),
        images_per_s=len(data.paths) / (time.perf_counter() - started),
    )


def _checked(model: Model, features: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, values in features.items():
        if not bool(values.isfinite().all()):
            raise UserError(f"{model.name} gives {name} features that are not finite: its weights are unusable")
    return features


def _check_rejected(data: ClassFolders, rejected: list[tuple[str, str]]) -> None:
    if len(rejected) > _MAX_REJECTED_SHARE * len(data.paths):
        named = "; ".join(f"{path} ({reason})" for path, reason in rejected[:3])
        raise UserError(
            f"{data.name}: more than {_MAX_REJECTED_SHARE:.0%} of its {len(data.paths)} images are unreadable, "
            f"among them {named}: mend or remove them"
        )


def _load_ahead(model: Model, data: ClassFolders, batch_size: int, workers: int) -> Iterator[_Loaded]:
    """Yield the batches in order while the next ones are being read."""
    starts = iter(range(0, len(data.paths), batch_size))
    with ThreadPoolExecutor(workers) as pool, labelled_chips():

        def submit(start: int) -> "Future[_Loaded]":
            return pool.submit(_load, model, data, range(start, min(start + batch_size, len(data.paths))))

        pending = deque(submit(start) for start in itertools.islice(starts, workers + 1))
        while pending:
            loaded = pending.popleft().result()
            pending.extend(submit(start) for start in itertools.islice(starts, 1))
            yield loaded


def _load(model: Model, data: ClassFolders, places: range) -> _Loaded:
    chosen = None if model.bands in (None, data.bands) else [data.bands.index(band) for band in model.bands or ()]
    images: list[tuple[int, Tensor]] = []
    rejected: list[tuple[str, str]] = []
    for place in places:
        try:
            pixels = data.read(place)
        except UnreadableImageError as error:
            rejected.append((data.paths[place], str(error)))
            continue
        if chosen is not None:
            pixels = pixels[:, :, chosen]
        images.append((place, resize(torch.from_numpy(np.array(pixels)), model.image_px)))
    return _Loaded(images, rejected)


def resize(image: Tensor, side_px: int | None) -> Tensor:
    """Resize an image [H, W, C] to a square, bicubic with antialiasing; None or an equal size leaves it as it is."""
    if side_px is None or image.shape[:2] == (side_px, side_px):
        return image
    # Torch resizes uint8 and float natively; other integers go by way of float32 and stay within their range.
    native = image.dtype == torch.uint8 or image.is_floating_point()
    channels_first = (image if native else image.float()).permute(2, 0, 1)
    resized: Tensor = transforms.resize(
        channels_first, [side_px, side_px], transforms.InterpolationMode.BICUBIC, antialias=True
    ).permute(1, 2, 0)
    if native:
        return resized
    limits = np.iinfo(str(image.dtype).removeprefix("torch."))
    return resized.round().clamp(limits.min, limits.max).to(image.dtype)


def _encode(table: FeatureTable) -> bytes:
    info = json.dumps({"rejected": table.rejected, "images_per_s": table.images_per_s}).encode()
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
    return FeatureTable(index=index, values=values, rejected=rejected, images_per_s=info["images_per_s"])
