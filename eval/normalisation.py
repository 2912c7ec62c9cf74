"""Normalisation by the data: mean and deviation of each band over all pixels of the training part.

What is missing of them (`eval.data.missing`) counts for nothing.

A backbone brings the normalisation of its own training; for another sensor that of the data may be the better one, or
cost points. Floors of fixed figures (`image_stats`, `random_conv`) have none and stay as they are.

Sums of integers are exact, and those of floats added sample by sample in order, so that any number of threads gives
the same figures. Cost: one reading of the training images, once for a data set and split: OUT/features/KEY.json.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from eval.config import EvalConfig
from eval.data.kinds import LabelledData, Sample
from eval.data.missing import present
from eval.data.split import TRAIN
from eval.features import Work, check_rejected, load_ahead
from eval.models.model import Model, digest_of, embedder, normaliser
from eval.prepared import Prepared
from eval.questions import working
from shards import storage
from shards.errors import UserError

_VERSION = "band figures 3"
_STRIP_PX = 1 << 20
_EXACT_BYTES = 2  # of integers whose squares, a strip of them added up, fit int64
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, kw_only=True)
class BandFigures:
    """Figures of each band, in units of the type's value range 0…1 as those of an export are."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    """1 for a band that is constant: it is only shifted."""


@dataclass(frozen=True)
class Sums:
    """Sums over the values that are there, band by band: whole numbers of integer types, else floats."""

    num_values: tuple[int, ...]
    values: tuple[int | float, ...]
    squares: tuple[int | float, ...]

    def __add__(self, other: "Sums") -> "Sums":
        num_values = _added(self.num_values, other.num_values)
        return Sums(num_values, _added(self.values, other.values), _added(self.squares, other.squares))


def _added(mine: tuple[_Number, ...], others: tuple[_Number, ...]) -> tuple[_Number, ...]:
    return tuple(a + b for a, b in zip(mine, others, strict=True))


def sums_of(images: Iterable[NDArray[np.generic]]) -> Sums:
    """Add up the pixels of images [H, W, C] of one type, one at least."""
    parts = [_sums(strip) for image in images for strip in _strips(image)]
    return sum(parts[1:], start=parts[0])


def _strips(image: NDArray[np.generic]) -> list[NDArray[np.generic]]:
    pixels = image.reshape(-1, image.shape[2])
    return [pixels[start : start + _STRIP_PX] for start in range(0, len(pixels), _STRIP_PX)]


def _sums(pixels: NDArray[np.generic]) -> Sums:
    is_exact = pixels.dtype.kind in "iu" and pixels.dtype.itemsize <= _EXACT_BYTES
    wide = pixels.astype(np.int64 if is_exact else np.float64)
    num_values, there = (len(wide),) * wide.shape[1], present(pixels)
    if there is not None:
        wide, num_values = np.where(there, wide, 0), tuple(there.sum(axis=0).tolist())
    return Sums(num_values, tuple(wide.sum(axis=0).tolist()), tuple(np.square(wide).sum(axis=0).tolist()))


def band_figures(sums: Sums, dtype: str) -> BandFigures:
    """Return mean and deviation of what was added up of a type; integers are scaled by their largest value."""
    scale = 1.0 if np.dtype(dtype).kind == "f" else float(np.iinfo(dtype).max)
    bands = list(zip(sums.num_values, sums.values, sums.squares, strict=True))
    # In whole numbers nothing is lost when the square of the mean is taken away.
    variances = [max(0, number * s - v * v) / number**2 for number, v, s in bands]
    return BandFigures(
        mean=tuple(value / number / scale for number, value, _ in bands),
        std=tuple(math.sqrt(variance) / scale or 1.0 for variance in variances),
    )


def measure(data: LabelledData, places: Sequence[int], work: Work) -> BandFigures:
    """Return the figures of the readable samples at some places, of pairs of both images.

    Raises:
        UserError: more than 1 % of them are unreadable, a band lacks all its values, or values are too large.
    """
    parts: list[Sums] = []
    rejected: list[tuple[str, str]] = []
    for loaded, faults, _ in load_ahead(data, places, work.batch_size, work.workers, _sums_of_sample):
        rejected += faults
        check_rejected(data, rejected, len(places))
        parts += [sums for _, sums in loaded]
        work.advance(len(loaded) + len(faults))
    check_rejected(data, rejected, len(places), at_end=True)
    sums = sum(parts[1:], start=parts[0])
    empty = [band for band, number in zip(data.bands, sums.num_values, strict=True) if not number]
    if empty:
        raise UserError(
            f"all values of {','.join(empty)} are NaN or infinite in the training images of {data.name}: "
            "choose the other bands with #bands="
        )
    figures = band_figures(sums, data.dtype)
    if not all(map(math.isfinite, figures.mean + figures.std)):
        raise UserError(f"{data.name} has training images with values too large to be measured: mend or remove them")
    return figures


def _sums_of_sample(sample: Sample) -> Sums:
    return sums_of(sample.images)


def figures_of(item: Prepared, config: EvalConfig) -> BandFigures:
    """Return the figures of a data set's training part, from OUT/features if they are there; raises as `measure`."""
    key = digest_of(item.data.digest, item.split.digest, _VERSION)
    url = storage.join(config.out, "features", f"{key[:32]}.json")
    if not config.redo and storage.exists(url):
        try:
            known = json.loads(storage.read_bytes(url))
            return BandFigures(mean=tuple(map(float, known["mean"])), std=tuple(map(float, known["std"])))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"cached figures {url} are damaged ({error}): remove the file and run again") from error
    places = [int(place) for place in np.flatnonzero(item.split.parts == TRAIN)]
    with working(f"mean and deviation of {item.data.name}", len(places), config) as work:
        figures = measure(item.data, places, work)
    storage.write_bytes(url, json.dumps(asdict(figures)).encode())
    return figures


def renormalised(model: Model, bands: Sequence[str], figures: BandFigures, device: torch.device) -> Model:
    """Return a model that normalises by figures of the data, under another digest.

    Args:
        model: with a network; its bands, if it names any, are among those of the data.
        bands: of the data, in the order of the figures.
        figures: of the data.
        device: of the network.
    """
    assert model.network is not None
    chosen = [list(bands).index(band) for band in model.bands or bands]
    mean, std = (tuple(values[place] for place in chosen) for values in (figures.mean, figures.std))
    normalise = normaliser(mean, std, device)
    return replace(
        model, digest=digest_of(model.digest, "normalised by the data", mean, std), mean=mean, std=std,
        normalise=normalise, embed=embedder(model.network, normalise),
    )  # fmt: skip


class Normalisation:
    """What --normalisation makes of models; a data set is measured when it is first needed."""

    def __init__(self, config: EvalConfig, device: torch.device) -> None:
        self._config, self._device = config, device
        self._known: dict[str, BandFigures] = {}

    def name(self, model: Model) -> str:
        """Return by whose figures a model normalises: model, dataset or, where it has no network, none."""
        return "none" if model.network is None else self._config.normalisation

    def of(self, model: Model, item: Prepared) -> Model:
        """Return a model as it sees a data set; raises as `measure`."""
        if self.name(model) != "dataset":
            return model
        if item.data.name not in self._known:
            self._known[item.data.name] = figures_of(item, self._config)
        return renormalised(model, item.data.bands, self._known[item.data.name], self._device)

    def figures(self, item: Prepared) -> dict[str, Any]:
        """Return what the report says of a data set that was measured, JSON-able."""
        known = self._known.get(item.data.name)
        return {} if known is None else {"training_mean": list(known.mean), "training_std": list(known.std)}
