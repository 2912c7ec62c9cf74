"""Fine-tuning: the whole backbone and a linear head learn the classes; an option, as it costs far more than a probe.

AdamW with a short warm-up and a cosine to zero, a few epochs, no augmentation. The learning rate is chosen on the
validation part by a run each, then train and validation together are fitted once more. The order of the images and
whatever the network draws (dropout) are keyed by the seed, so that a CPU repeats its figures bit for bit; a GPU's
kernels may differ in the last digits.

Cost: epochs × (rates + 1) forward and backward passes over the training images: with the defaults 40 epochs, about
120 times the extraction of features. Memory: a copy of the network, AdamW's two moments, one batch.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from eval.protocols.task import Outcome, Protocol, accuracy, accuracy_outcome
from shards.keyed import generator, hash64

_WEIGHT_DECAY, _MAX_GRADIENT_NORM, _WARM_UP_SHARE = 0.05, 1.0, 0.1
_NUM_SCALING = 8  # batches that scale the features

Load = Callable[[NDArray[np.int64]], Tensor]
Placed = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Places of images in the data set [N] and their classes [N]."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast the network learns."""

    rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4)
    """Learning rates of AdamW to choose from."""
    num_epochs: int = 10
    batch_size: int = 32


@dataclass(frozen=True, kw_only=True)
class FineTuneTask:
    """A network and the images that it is to learn and to be tested on."""

    network: nn.Module
    """Maps images to pooled features [B, D], as timm's do with num_classes = 0. It is copied, never changed."""
    load: Load
    """Map places in the data set [B] to the network's input, float32 [B, C, H, W] on the network's device."""
    train: Placed
    validation: Placed
    """With no images here there is nothing to choose by, and the middle rate is taken."""
    test: Placed
    schedule: Schedule = Schedule()
    seed: int = 0


def run(task: FineTuneTask) -> dict[str, Outcome]:
    """Choose the rate, fit train and validation together, predict the test images."""
    schedule, num_classes = task.schedule, int(max(task.train[1].max(), task.validation[1].max(initial=0))) + 1
    rate, validation = schedule.rates[len(schedule.rates) // 2], None
    if len(task.validation[0]):
        rate, validation = _choose_rate(task, num_classes)
    both = _joined(task.train, task.validation)
    tuned = _fit(task, both, num_classes, rate)
    predictions = _predict(tuned, task.load, task.test[0], schedule.batch_size)
    outcome = accuracy_outcome(predictions, task.test[1], validation, rate=rate, num_epochs=schedule.num_epochs)
    return {"fine_tune": outcome}


def _joined(first: Placed, second: Placed) -> Placed:
    return np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])


def _choose_rate(task: FineTuneTask, num_classes: int) -> tuple[float, float]:
    """Return (rate, accuracy) of the rate that does best on the validation part, the smallest of equals."""
    places, labels = task.validation
    best = (0.0, -1.0)
    for rate in sorted(task.schedule.rates):
        tuned = _fit(task, task.train, num_classes, rate)
        score = accuracy(_predict(tuned, task.load, places, task.schedule.batch_size), labels)
        assert score is not None
        if score > best[1]:
            best = (rate, score)
    return best


def _fit(task: FineTuneTask, images: Placed, num_classes: int, rate: float) -> nn.Module:
    """Return a copy of the network with a head, trained on the images at a peak rate."""
    places, labels = images
    with _keyed_draws(task):
        model = _with_head(task, num_classes).train()
        steps = list(_batches(len(places), task.schedule, task.seed))
        optimiser = torch.optim.AdamW(_groups(model), lr=rate)
        for number, chosen in enumerate(steps):
            for group in optimiser.param_groups:
                group["lr"] = rate * rate_share(number, len(steps))
            logits = model(task.load(places[chosen]))
            loss = functional.cross_entropy(logits, torch.from_numpy(labels[chosen]).to(logits.device))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM)
            optimiser.step()
    return model


@contextlib.contextmanager
def _keyed_draws(task: FineTuneTask) -> Iterator[None]:
    """Key what layers draw by the seed, and leave the caller's random state as it is."""
    with torch.random.fork_rng():
        torch.manual_seed(hash64("fine_tune", task.seed) >> 1)
        yield


class _Classifier(nn.Module):
    """A network, its features scaled to mean 0 and deviation 1 as they were before training, a linear head at zero."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, features: Tensor, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", features.mean(dim=0))
        self.register_buffer("std", features.std(dim=0, correction=0).clamp_min(1e-6))
        self.head = nn.Linear(features.shape[1], num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head((self.network(images) - self.mean) / self.std)
        return logits


def _with_head(task: FineTuneTask, num_classes: int) -> _Classifier:
    """Copy the network and give it a head.

    Backbones differ by orders of magnitude in the scale of their features, and one grid of rates has to fit them all:
    so the head sees features scaled by figures of some training images.
    """
    network, size = copy.deepcopy(task.network).requires_grad_(True).eval(), task.schedule.batch_size
    some = generator("fine_tune figures", task.seed).permutation(task.train[0])[: _NUM_SCALING * size]
    with torch.no_grad():
        features = torch.cat([network(task.load(some[at : at + size])) for at in range(0, len(some), size)])
    return _Classifier(network, features, num_classes).to(features.device)


def _batches(num_images: int, schedule: Schedule, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield the numbers of the images of each step; an epoch has each image once, in batches alike within one."""
    num_batches = math.ceil(num_images / schedule.batch_size)
    for epoch in range(schedule.num_epochs):
        order = generator("fine_tune", seed, epoch).permutation(num_images)
        yield from np.array_split(order, num_batches)


def _groups(model: nn.Module) -> list[dict[str, object]]:
    """Return AdamW's parameters: weights decay, biases, norms and scales do not."""
    parameters = list(model.parameters())
    return [
        {"params": [each for each in parameters if each.ndim > 1], "weight_decay": _WEIGHT_DECAY},
        {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
    ]


def rate_share(step: int, num_steps: int) -> float:
    """Return the share of the peak rate at a step: a line up over the first tenth, then half a cosine down to zero."""
    warm_up = max(1, round(_WARM_UP_SHARE * num_steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, num_steps - warm_up)))


def _predict(model: nn.Module, load: Load, places: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
    model.eval()
    with torch.inference_mode():
        starts = range(0, len(places), batch_size)
        parts = [model(load(places[at : at + batch_size])).argmax(dim=1).cpu().numpy() for at in starts]
    return np.concatenate([np.zeros(0, np.int64), *parts])


FINE_TUNE: Protocol[FineTuneTask] = Protocol(
    name="fine_tune", kind="classes", titles={"fine_tune": "fine-tuned"}, run=run
)
