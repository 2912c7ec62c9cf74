"""From a model and a data set to questions that only need answering: features extracted, tasks cut by the split.

Costs the extraction of the features, where the cache lacks them. Memory holds the features of whole images; those of
patches stay in their file.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.config import EvalConfig
from eval.data.split import TEST, TRAIN, VALIDATION
from eval.features import Cost, FeatureTable, Variant, Work, features_of, in_bands_of, model_input
from eval.models.model import Model
from eval.patches import PatchTable, patches_of
from eval.pictures import for_the_eye
from eval.prepared import Prepared
from eval.protocols.dense import DenseTask
from eval.protocols.fine_tune import FINE_TUNE, FineTuneTask
from eval.protocols.task import Outcome, Protocol, make_task
from shards.errors import UserError
from shards.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Question:
    """One protocol for one kind of features; answering computes, so that known answers cost nothing."""

    features: str
    protocol: Protocol[Any]
    answer: Callable[[], dict[str, Outcome]]


@dataclass(frozen=True, kw_only=True)
class Questions:
    """All that is asked of a model on a data set."""

    asked: list[Question]
    index: NDArray[np.int64]
    """Places in the data set of the M readable samples, ascending."""
    parts: NDArray[np.int64]
    """Part of each readable sample [M]."""
    labels: NDArray[np.int64] | None
    """Class of each readable sample [M], where samples have classes."""
    rejected: tuple[tuple[str, str], ...]
    num_incomplete: int
    """How many of the readable samples lack values of their images."""
    cost: Cost


@contextlib.contextmanager
def questions(model: Model, item: Prepared, config: EvalConfig, device: torch.device) -> Iterator[Questions]:
    """Extract features and yield what is asked of them.

    Raises:
        UserError: too many unreadable samples, or a class that lost all of a part to them.
    """
    with contextlib.ExitStack() as stack:
        # The line of progress ends before the protocols begin.
        with working(f"{model.name} on {item.data.name}", len(item.data.ids), config) as work:
            if item.data.kind == "classes":
                table = features_of(model, item.data, config.out, work)
            else:
                patches = stack.enter_context(patches_of(model, item.data, config.out, work))
        if item.data.kind == "classes":
            yield _of_features(model, item, table, config)
        else:
            yield _of_patches(item, patches, config, device)


@contextlib.contextmanager
def working(title: str, num_images: int, config: EvalConfig) -> Iterator[Work]:
    """Yield how images are worked through, and show how far it is."""
    with Progress(title, num_images, "images") as progress:
        yield Work(batch_size=config.batch_size, workers=config.workers, redo=config.redo, advance=_Advance(progress))


class _Advance:
    """Tell the progress how many are done, from how many more are."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._done = progress, 0

    def __call__(self, num_images: int) -> None:
        self._done += num_images
        self._progress.update(self._done)


def _of_features(model: Model, item: Prepared, table: FeatureTable, config: EvalConfig) -> Questions:
    assert item.data.labels is not None
    labels, parts = item.data.labels[table.index], item.split.parts[table.index]
    _check_classes(item, labels, parts)
    variants = _Variants(model, item, table.index[parts == TEST], config)

    def answer(features: str, protocol: Protocol[Any]) -> dict[str, Outcome]:
        changed = {name: variants.get(share)[features] for name, share in protocol.variants.items()}
        task = make_task(
            table.values[features], labels, parts,
            standardise=model.standardise, variants=changed, places=table.index, seed=config.seed,
        )  # fmt: skip
        return protocol.run(task)

    on_features = [protocol for protocol in item.protocols if protocol is not FINE_TUNE]
    asked = [
        Question(features=features, protocol=protocol, answer=partial(answer, features, protocol))
        for features in table.values
        for protocol in on_features
    ]
    if FINE_TUNE in item.protocols and model.network is not None:
        tune = partial(_fine_tune, model, item, table.index, config)
        asked.append(Question(features="tuned", protocol=FINE_TUNE, answer=tune))
    return Questions(
        asked=asked, index=table.index, parts=parts, labels=labels, rejected=table.rejected,
        num_incomplete=table.num_incomplete, cost=table.cost,
    )  # fmt: skip


def _fine_tune(model: Model, item: Prepared, index: NDArray[np.int64], config: EvalConfig) -> dict[str, Outcome]:
    data, labels = item.data, item.data.labels
    assert model.network is not None
    assert model.normalise is not None
    assert labels is not None
    normalise = model.normalise

    def load(places: NDArray[np.int64]) -> Tensor:
        samples = (in_bands_of(model, data, data.read(int(place))) for place in places)
        return normalise(torch.stack([model_input(sample, model.image_px) for sample in samples]))

    train, validation, test = (index[item.split.parts[index] == part] for part in (TRAIN, VALIDATION, TEST))
    task = FineTuneTask(
        network=model.network, load=load, train=(train, labels[train]), validation=(validation, labels[validation]),
        test=(test, labels[test]), seed=config.seed,
    )  # fmt: skip
    return FINE_TUNE.run(task)


class _Variants:
    """Features of the test images at other sizes, extracted when a protocol first needs them."""

    def __init__(self, model: Model, item: Prepared, places: NDArray[np.int64], config: EvalConfig) -> None:
        self._model, self._item, self._config = model, item, config
        self._places = tuple(int(place) for place in places)
        self._known: dict[float, dict[str, NDArray[np.float32]]] = {}

    def get(self, share: float) -> dict[str, NDArray[np.float32]]:
        """Return each kind of features [N_test, D] of the test images at a share of their size."""
        if share not in self._known:
            title = f"{self._model.name} on {self._item.data.name} at {100 * share:g} %"
            with working(title, len(self._places), self._config) as work:
                variant = Variant(places=self._places, share=share)
                table = features_of(self._model, self._item.data, self._config.out, work, variant)
            self._known[share] = table.values
        return self._known[share]


def _check_classes(item: Prepared, labels: NDArray[np.int64], parts: NDArray[np.int64]) -> None:
    """Raise if unreadable images left a class without training or test images."""
    for label, name in enumerate(item.data.classes):
        mine = parts[labels == label]
        if not (mine == TEST).any() or not (mine != TEST).any():
            raise UserError(f"class {name!r} of {item.data.name} lost all training or test images to damage: mend them")


def _of_patches(item: Prepared, table: PatchTable, config: EvalConfig, device: torch.device) -> Questions:
    data, parts = item.data, item.split.parts[table.index]
    train, validation, test = (np.flatnonzero(parts == part) for part in (TRAIN, VALIDATION, TEST))
    if not len(train) or not len(test):
        raise UserError(f"{data.name} lost all training or test images to damage: mend them")

    def show(number: int) -> tuple[NDArray[np.uint8], ...]:
        return for_the_eye(data, int(table.index[test[number]]))

    task = DenseTask(
        train=table.samples.at(train), validation=table.samples.at(validation), test=table.samples.at(test),
        classes=data.classes, show=show, seed=config.seed, device=str(device),
    )  # fmt: skip
    asked = [Question(features="patches", protocol=p, answer=partial(p.run, task)) for p in item.protocols]
    return Questions(
        asked=asked, index=table.index, parts=parts, labels=None, rejected=table.rejected,
        num_incomplete=table.num_incomplete, cost=table.cost,
    )  # fmt: skip


def detail_of(outcome: Outcome, item: Prepared, found: Questions) -> dict[str, Any]:
    """Return a protocol's detail with the accuracy of each class, where it predicts one class for each image."""
    if outcome.predictions is None or found.labels is None:
        return outcome.detail
    truth = found.labels[found.parts == TEST]
    right = outcome.predictions == truth
    per_class = {name: float(right[truth == label].mean()) for label, name in enumerate(item.data.classes)}
    return outcome.detail | {"per_class": per_class}
