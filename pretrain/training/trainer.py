"""One optimiser step: model, optimiser, plan, device and ranks put together.

What is drawn in a step is keyed by (seed, step, rank, part) or by sample, so a step is a function of the state before
it. Gradients are means over the batch, however it is shared out among ranks and micro-batches.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.batches.batch import Batch
from pretrain.batches.colour import Colour
from pretrain.batches.sources import Sources
from pretrain.config import Config
from pretrain.model.backbone import DropPath
from pretrain.model.losses import diversity, koleo_and_gradient
from pretrain.model.pera import PerA, PeraOutput
from pretrain.runs.checkpoint import Checkpoint
from pretrain.runs.initial import load_initial
from pretrain.training.network import Network, make_network
from pretrain.training.optim import make_optimiser, set_rates
from pretrain.training.plan import Plan, Rates, make_plan
from pretrain.training.ranks import Ranks, local_rank, local_world, node_world
from pretrain.training.threads import available_cores, trainer_threads
from shards.allocation import keep_freed_memory
from shards.errors import UserError
from shards.keyed import hash64


class NonFiniteError(RuntimeError):
    """Loss or gradient is infinite or not a number: nothing of this step was applied, on any rank."""


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """A step that was made."""

    figures: dict[str, Tensor]
    """Scalars: the unweighted terms, means over the batch, and the gradient's norm before it was clipped."""
    rates: Rates
    features_NW: Tensor
    """The student's cls features of this rank's global views."""
    stop: bool
    """Whether a rank was asked to stop."""


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """The parts of a run; `Trainer.step` is one optimiser step."""

    config: Config
    plan: Plan
    device: torch.device
    colour: Colour
    ranks: Ranks
    network: Network
    optimiser: torch.optim.AdamW

    @property
    def model(self) -> PerA:
        """What is trained."""
        return self.network.model

    def step(self, step: int, batch: Batch, stop: Callable[[], bool] = lambda: False) -> StepOutcome:
        """Make optimiser step `step` (from 0).

        Args:
            step: its number.
            batch: of this rank.
            stop: says whether this rank was asked to stop; called once, when the ranks are about to exchange what they
                found, so that all leave after the same step.

        Raises:
            NonFiniteError: on all ranks, before anything is changed.
        """
        rates = self.plan.rates(step)
        self.optimiser.zero_grad()
        means, features_NW = self._backward(step, batch.split(self.config.accumulate), rates, stop)
        clip = self.config.optimiser.clip or float("inf")
        grad_norm = self.network.clip_gradient(clip)
        figures = {**means.figures(self.config), "grad_norm": grad_norm}
        # Both at once: the device is waited for here, and nowhere else in a step.
        decisive, asked = torch.stack([figures["loss"] + grad_norm, means.stop]).tolist()
        if not math.isfinite(decisive):
            told = ", ".join(f"{name} {float(value):.4g}" for name, value in figures.items())
            raise NonFiniteError(
                f"step {step}: a loss or the gradient is not finite ({told}); nothing of this step was applied: start "
                "another --run with a lower schedule.lr or precision float32, if need be from this run's newest export "
                "(--init_from)"
            )
        set_rates(self.optimiser, rates.lr, rates.weight_decay)
        self.optimiser.step()
        self.model.update_teacher(rates.ema, means.teacher_mean_K)
        return StepOutcome(figures=figures, rates=rates, features_NW=features_NW, stop=asked > 0)

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        self.network.load_state(checkpoint.model)
        self.network.load_moments(checkpoint.optimiser, self.optimiser)

    def _backward(
        self, step: int, parts: Sequence[Batch], rates: Rates, stop: Callable[[], bool]
    ) -> tuple["Means", Tensor]:
        """Leave the gradient of the whole batch in the parameters; return means over it, and this rank's features."""
        counts = self.config.loss.koleo > 0
        koleo = self._koleo_ahead(step, parts) if counts and len(parts) > 1 else None
        outputs: list[PeraOutput] = []
        for number, part in enumerate(parts):
            # The gradients of micro-batches add up in the parameters, and reach the other ranks with the last one.
            with self.network.communicating(number == len(parts) - 1):
                output = self._forward(step, number, part, rates.teacher_temperature)
                koleo = koleo or self._koleo([output.spread_VBX]) if counts else None
                roots = [output.loss / len(parts)] + [output.spread_VBX] * counts
                torch.autograd.backward(roots, [None, koleo.gradients_VBX[number]] if koleo else [None])
            outputs.append(output.detached())
        # Else it is a figure alone.
        koleo = koleo or self._koleo([output.spread_VBX for output in outputs])
        mean = torch.stack([Means.of(output, koleo.value).values for output in outputs]).mean(0)
        mean[_NAMES.index("stop")] = float(stop())
        return Means(self.ranks.mean_(mean)), torch.cat([output.student.cls_features_NW for output in outputs])

    def _koleo_ahead(self, step: int, parts: Sequence[Batch]) -> "Koleo":
        """Return what `_koleo` does before there is a graph of any micro-batch, at the cost of a forward pass."""
        spreads = []
        for number, part in enumerate(parts):
            with self._autocast():
                views = part.global_views.to_patches(self.device, self.colour)
                spreads.append(self.model.spread(views, self._drop_path(step, number)))
        return self._koleo(spreads)

    def _koleo(self, spreads_VBX: Sequence[Tensor]) -> "Koleo":
        """Compute KoLeo over the images of all micro-batches and ranks."""
        own_VBX = torch.cat([spread.detach() for spread in spreads_VBX], dim=1)
        loss, gradient_VBX = koleo_and_gradient(self.ranks.concatenated(own_VBX, dim=1))
        # The ranks' gradients are going to be averaged, and this one is to be their sum.
        gradient_VBX = gradient_VBX * (self.config.loss.koleo * self.ranks.world)
        own = gradient_VBX.chunk(self.ranks.world, dim=1)[self.ranks.rank].to(own_VBX.dtype)
        return Koleo(loss, own.chunk(len(spreads_VBX), dim=1))

    def _forward(self, step: int, number: int, part: Batch, teacher_temperature: float) -> PeraOutput:
        with self._autocast():
            local_views = part.local_views.to_patches(self.device, self.colour) if part.local_views else None
            return self.network(
                part.global_views.to_patches(self.device, self.colour),
                local_views,
                teacher_temperature,
                self._drop_path(step, number),
            )

    def _drop_path(self, step: int, number: int) -> DropPath:
        key = hash64("drop_path", self.config.seed, step, self.ranks.rank, number) >> 1
        return DropPath(rate=self.config.model.drop_path, generator=torch.Generator().manual_seed(key))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")


class Koleo(NamedTuple):
    """The loss over a whole batch."""

    value: Tensor
    """Scalar, unweighted."""
    gradients_VBX: Sequence[Tensor]
    """For each micro-batch: what weighs in on its features, so that the ranks' mean is right."""


_NAMES = ("global_cls", "local_cls", "koleo", "pixel", "teacher_entropy", "stop")


@dataclass(frozen=True)
class Means:
    """Means over a batch in one tensor, so that ranks exchange one."""

    values: Tensor
    """First the scalars of `_NAMES`, then the teacher's mean scores [K], then its mean assignment [K]."""

    @classmethod
    def of(cls, output: PeraOutput, koleo: Tensor) -> "Means":
        """Put together what a micro-batch gives; nobody is asked to stop yet."""
        parts = {**output.parts, "koleo": koleo, "stop": koleo.new_zeros(())}
        scalars = torch.stack([parts[name].float() for name in _NAMES])
        return cls(torch.cat([scalars, output.teacher_mean_K.float(), output.assignment_K.float()]))

    @property
    def teacher_mean_K(self) -> Tensor:
        """Mean prototype scores of the teacher."""
        return self.values[len(_NAMES) :].chunk(2)[0]

    @property
    def stop(self) -> Tensor:
        """Above 0 where a rank was asked to stop."""
        return self.values[_NAMES.index("stop")]

    def figures(self, config: Config) -> dict[str, Tensor]:
        """Return scalars: the total, its unweighted terms and what shows a collapse."""
        # Not all of them: to go through a tensor makes one of each value, and there may be 131,072 prototypes.
        parts = dict(zip(_NAMES, self.values[: len(_NAMES)], strict=True))
        del parts["stop"]
        cls = parts["global_cls"] + parts["local_cls"]
        return {
            "loss": config.loss.cls * cls + config.loss.koleo * parts["koleo"] + config.loss.pixel * parts["pixel"],
            **parts,
            # Kullback-Leibler: the part of the cross-entropy that the student can do something about.
            "divergence": cls - parts["teacher_entropy"],
            "teacher_diversity": diversity(self.values[len(_NAMES) :].chunk(2)[1]),
        }


def build_trainer(
    config: Config, sources: Sources, colour: Colour, ranks: Ranks, device: torch.device, *, starts: bool = True
) -> Trainer:
    """Make model and optimiser as they are before the first step.

    Args:
        config: of the run.
        sources: what it trains on.
        colour: colours and normalisation.
        ranks: all must call.
        device: of this rank.
        starts: whether the run is new, and begins with the weights that `init_from` names.

    Raises:
        UserError: the run would have no step, or the batch does not go into so many parts, or what `init_from` names
            does not fit.
    """
    plan = ranks.agree(lambda: _plan(config, sources, ranks))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hash64("weights", config.seed) >> 1)
        model = PerA(config, len(sources.bands))
    if config.init_from and starts:
        told = ranks.agree(lambda: load_initial(model.student.backbone, str(config.init_from), sources.bands))
        model.start_teacher()
        if ranks.is_first:
            print(f"pretrain: {told}", file=sys.stderr, flush=True)
    network = make_network(model.to(device), config, ranks)
    return Trainer(
        config=config,
        plan=plan,
        device=device,
        colour=colour,
        ranks=ranks,
        network=network,
        optimiser=make_optimiser(model.trainable(), config.optimiser),
    )


def _plan(config: Config, sources: Sources, ranks: Ranks) -> Plan:
    batch, parts = config.loader.batch, ranks.world * config.accumulate
    if batch % parts:
        raise UserError(
            f"loader.batch {batch} is not a multiple of {ranks.world} ranks × accumulate {config.accumulate}: "
            f"take e.g. {max(1, batch // parts) * parts}"
        )
    if batch > sources.num_samples:
        most = sources.num_samples // parts * parts
        raise UserError(
            f"loader.batch {batch} is more than the {sources.num_samples} samples that there are, and a batch would "
            f"have some twice: {f'take at most {most}' if most > 1 else 'give more data'}"
        )
    if config.shard and ranks.world == 1:
        raise UserError("shard: there is one rank, and nobody to share with: start several with torchrun, or leave it")
    return make_plan(config, sources.num_samples)


def choose_device(config: Config) -> torch.device:
    """Return this rank's device.

    Raises:
        UserError: a GPU was asked for and there is none for this rank.
    """
    number, available = local_rank(), torch.cuda.device_count() if config.device != "cpu" else 0
    if config.device == "cpu" or (config.device == "auto" and not available):
        torch.set_num_threads(trainer_threads(available_cores(), local_world()))
        keep_freed_memory()
        return torch.device("cpu")
    if number >= available:
        raise UserError(
            f"device {config.device}: this machine has {available} CUDA devices for {node_world()} ranks; "
            "start as many ranks as devices, or use --device cpu"
        )
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device
