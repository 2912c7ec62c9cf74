"""The linear probe: multinomial logistic regression on standardised features, C chosen on a validation split.

The objective is scikit-learn's: C Σ cross-entropy + ½‖W‖², the bias free. L-BFGS runs in coordinates in which the
bound ½ XᵀX/n + I/(C n) of the Hessian (Böhning 1992) is the identity; the minimum is the same and takes 2 to 4 times
fewer iterations on correlated features. One decomposition (D³, or D N² for fewer samples than features: the weights
lie in the span of the samples) serves all C; an iteration is two products [N, D] × [D, K]. C grows along the sweep and
each fit starts from the one before.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from eval.protocols.task import Labelled, Outcome, Protocol, Task, accuracy_outcome

C_SWEEP = tuple(10.0**power for power in range(-6, 5))
_MAX_ITERATIONS = 1000
# Largest gradient, whitened coordinates; to rank values of C less will do than for the final fit.
SWEEP_TOLERANCE, TOLERANCE = 3e-4, 1e-6
_SMALL_PRODUCT = 30_000_000  # multiplications N × D × K below which threads wait for each other more than they work


@dataclass(frozen=True, kw_only=True)
class LinearFit:
    """Predictions of the probe and how it came by them."""

    predictions: NDArray[np.int64]
    """Classes of the queries [Q]."""
    c: float
    """The chosen inverse regularisation."""
    validation_accuracy: float | None
    """Accuracy that chose C, 0…1; None where there is no validation part and C is 1."""


@dataclass(frozen=True)
class _Standardiser:
    mean: Tensor
    std: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class LogisticRegression:
    """Logistic regression on fixed data in whitened coordinates."""

    def __init__(self, x: Tensor, labels: Tensor, num_classes: int) -> None:
        mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
        # A constant feature carries nothing; scikit-learn's StandardScaler leaves its scale alone as well.
        self.standardise = _Standardiser(mean, torch.where(std > 1e-7 * mean.abs(), std, torch.ones_like(std)))
        self.num_samples = len(x)
        self.num_classes = num_classes
        self.labels = labels
        z = self.standardise(x)
        self.eigenvalues, self.rotation = _principal_axes(z)
        self.rotated = z @ self.rotation

    def fit(self, c: float, start: Tensor, tolerance: float) -> Tensor:
        """Return the weights [R + 1, K] (rotated coordinates, bias last) that minimise the objective."""
        l2 = 1 / (c * self.num_samples)
        scale = (0.5 * self.eigenvalues + l2).rsqrt()[:, None]
        columns, penalty = self.rotated * scale.T, l2 * scale.square()
        v = (start / torch.cat([scale, scale.new_ones(1, 1)])).requires_grad_()
        optimiser = torch.optim.LBFGS(
            [v],
            max_iter=_MAX_ITERATIONS,
            tolerance_grad=tolerance,
            tolerance_change=1e-9,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimiser.zero_grad()
            logits = torch.addmm(v[-1], columns, v[:-1])
            loss: Tensor = functional.cross_entropy(logits, self.labels) + 0.5 * (penalty * v[:-1].square()).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimiser.step(closure)  # type: ignore[no-untyped-call]
        return torch.cat([v.detach()[:-1] * scale, v.detach()[-1:]])

    def predict(self, weights: Tensor, x: Tensor) -> Tensor:
        """Return the class of each row of x [Q, D]."""
        logits: Tensor = self.standardise(x) @ self.rotation @ weights[:-1] + weights[-1]
        return logits.argmax(dim=1)

    def zeros(self) -> Tensor:
        """Return the start of the first fit."""
        return torch.zeros(len(self.eigenvalues) + 1, self.num_classes)


def _principal_axes(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues [R] and eigenvectors [D, R] of zᵀz/N for z [N, D], R = min(N, D)."""
    num_samples, num_features = z.shape
    if num_samples < num_features:
        _, singular, rows = torch.linalg.svd(z.double(), full_matrices=False)
        return (singular.square() / num_samples).float(), rows.T.float()
    eigenvalues, rotation = torch.linalg.eigh((z.T @ z / num_samples).double())
    return eigenvalues.clamp_min(0).float(), rotation.float()


@contextlib.contextmanager
def threads_for(num_multiplications: int) -> Iterator[None]:
    """Run small products on one thread: on a busy machine a barrier costs more than the product."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if num_multiplications < _SMALL_PRODUCT else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def linear_predict(train: Labelled, validation: Labelled, queries: NDArray[np.float32]) -> LinearFit:
    """Choose C on the validation part, refit on train + validation, predict the queries.

    Args:
        train: features [N, D] and classes [N].
        validation: alike, [V, D] and [V]; with V = 0 there is nothing to choose by and C is 1.
        queries: features [Q, D].
    """
    num_classes = int(max(labels.max(initial=0) for _, labels in (train, validation))) + 1
    best_c, accuracy = 1.0, None
    with threads_for(train[0].size * num_classes):
        if len(validation[1]):
            best_c, accuracy = _choose_c(train, validation, num_classes)
        features, labels = (np.concatenate([a, b]) for a, b in zip(train, validation, strict=True))
        problem = LogisticRegression(torch.from_numpy(features), torch.from_numpy(labels), num_classes)
        weights = problem.fit(best_c, problem.zeros(), TOLERANCE)
        predictions = problem.predict(weights, torch.from_numpy(queries)).numpy()
    return LinearFit(predictions=predictions, c=best_c, validation_accuracy=accuracy)


def _choose_c(train: Labelled, validation: Labelled, num_classes: int) -> tuple[float, float]:
    """Return (C, accuracy) of the best C of the sweep, the smallest of equals."""
    problem = LogisticRegression(torch.from_numpy(train[0]), torch.from_numpy(train[1]), num_classes)
    x, labels = torch.from_numpy(validation[0]), torch.from_numpy(validation[1])
    weights, best = problem.zeros(), (C_SWEEP[0], -1.0)
    # All of them: accuracy is flat over small C, where the weights' direction hardly changes, before it rises.
    for c in C_SWEEP:
        weights = problem.fit(c, weights, SWEEP_TOLERANCE)
        accuracy = float((problem.predict(weights, x) == labels).double().mean())
        if accuracy > best[1]:
            best = (c, accuracy)
    return best


def _run(task: Task) -> dict[str, Outcome]:
    fit = linear_predict(task.train, task.validation, task.test[0])
    return {"linear": accuracy_outcome(fit.predictions, task.test[1], fit.validation_accuracy, c=fit.c)}


LINEAR: Protocol[Task] = Protocol(name="linear", kind="classes", titles={"linear": "linear probe"}, run=_run)
