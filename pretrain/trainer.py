"""One optimiser step and one save: model, optimiser, plan and device put together.

What is drawn in a step is keyed by (seed, step) or by sample, so a step is a function of the state before it.
"""

import os
from dataclasses import asdict, dataclass

import torch

from pretrain.backbone import DropPath
from pretrain.checkpoint import Position, remove_old, save_checkpoint
from pretrain.colour import Colour
from pretrain.config import Config
from pretrain.data import Batch
from pretrain.export import Origin, export
from pretrain.optim import make_optimiser, set_rates
from pretrain.pera import PerA, PeraOutput
from pretrain.plan import Plan, Rates, make_plan
from pretrain.run import flatten, identity_sha256, versions
from pretrain.sources import Sources
from shards.errors import UserError
from shards.keyed import hash64
from shards.streaming.state import StreamState


class NonFiniteError(RuntimeError):
    """Loss or gradient is infinite or not a number: nothing of this step was applied."""


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """The parts of a run; `Trainer.step` is one optimiser step."""

    config: Config
    plan: Plan
    device: torch.device
    colour: Colour
    model: PerA
    optimiser: torch.optim.AdamW
    origin: Origin

    def step(self, step: int, batch: Batch) -> tuple[PeraOutput, Rates, torch.Tensor]:
        """Make optimiser step `step` (from 0); return the losses, the rates used and the gradient's norm.

        Raises:
            NonFiniteError: before anything is changed.
        """
        rates = self.plan.rates(step)
        self.optimiser.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            output = self._forward(step, batch, rates.teacher_temperature)
        output.loss.backward()  # type: ignore[no-untyped-call]
        clip = self.config.optimiser.clip or float("inf")
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.trainable().values(), clip)
        if not torch.isfinite(output.loss.detach() + grad_norm):
            figures = {name: float(value) for name, value in output.parts.items()}
            raise NonFiniteError(f"step {step}: gradient norm {float(grad_norm)}, {figures}; lower schedule.lr")
        set_rates(self.optimiser, rates.lr, rates.weight_decay)
        self.optimiser.step()
        self.model.update_teacher(rates.ema, output.teacher_mean_K)
        return output, rates, grad_norm

    def save(self, position: Position, stream: StreamState) -> tuple[str, str]:
        """Write the export, then the checkpoint with the stream's state there; return their URLs."""
        # In this order: where there is a checkpoint there is its export, whenever the process dies.
        run = self.config.run
        export_url = export(run, self.model, self.colour, position, self.origin)
        record = {"config": flatten(self.config), **asdict(self.origin)}
        checkpoint_url = save_checkpoint(run, self.model, self.optimiser, position.step, stream, record)
        remove_old(run, self.config.checkpoint.keep_last)
        return export_url, checkpoint_url

    def _forward(self, step: int, batch: Batch, teacher_temperature: float) -> PeraOutput:
        generator = torch.Generator().manual_seed(hash64("drop_path", self.config.seed, step) >> 1)
        local_views = batch.local_views and batch.local_views.to_views(self.device, self.colour)
        output: PeraOutput = self.model(
            batch.global_views.to_views(self.device, self.colour),
            local_views,
            teacher_temperature,
            DropPath(rate=self.config.model.drop_path, generator=generator),
        )
        return output


def build_trainer(config: Config, sources: Sources, colour: Colour) -> Trainer:
    """Make model and optimiser as they are before the first step.

    Raises:
        UserError: the run would have no step, or there is no such device.
    """
    plan = make_plan(config, sources.num_samples)
    device = choose_device(config)
    with torch.random.fork_rng():
        torch.manual_seed(hash64("weights", config.seed) >> 1)
        model = PerA(config, len(sources.bands)).to(device)
    origin = Origin(
        bands=sources.bands,
        dtype=sources.datasets[0].dtype,
        dataset_digest=sources.digest,
        config_sha256=identity_sha256(config),
        versions=versions(),
    )
    optimiser = make_optimiser(model.trainable(), config.optimiser)
    return Trainer(
        config=config,
        plan=plan,
        device=device,
        colour=colour,
        model=model,
        optimiser=optimiser,
        origin=origin,
    )


def choose_device(config: Config) -> torch.device:
    """Return the device, and on a CPU leave cores to the loader's workers.

    Raises:
        UserError: a GPU was asked for and there is none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: this machine has no CUDA device; use --device cpu or auto")
    if config.device == "cpu" or not torch.cuda.is_available():
        if config.loader.workers:
            # Threads that wait spin: as many as cores beside busy workers slow a step many times over.
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - config.loader.workers))
        return torch.device("cpu")
    return torch.device("cuda")
