"""A run in steps: the configured durations, resolved for a dataset, and the rates of each step."""

from dataclasses import dataclass

from pretrain.config import Config, ScheduleConfig
from pretrain.training.schedules import cosine, linear, to_steps, warmup_cosine
from shards.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What one step uses."""

    lr: float
    weight_decay: float
    ema: float
    teacher_temperature: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """When things happen, in optimiser steps."""

    schedule: ScheduleConfig
    num_steps: int
    """Length of all schedules."""
    stop_step: int
    """Steps to make in all: less than `num_steps` where max_steps says so."""
    lr_warmup_steps: int
    temperature_warmup_steps: int
    checkpoint_steps: int
    """Between two checkpoints."""
    keep_steps: int | None
    """Between two checkpoints that are kept for good: a multiple of `checkpoint_steps`."""

    def rates(self, step: int) -> Rates:
        """Return the rates of a step, counted from 0."""
        s = self.schedule
        return Rates(
            lr=warmup_cosine(step, s.lr, s.lr_end, self.lr_warmup_steps, self.num_steps),
            weight_decay=cosine(step, *s.weight_decay, self.num_steps),
            ema=cosine(step, *s.ema, self.num_steps),
            teacher_temperature=linear(step, *s.teacher_temperature, self.temperature_warmup_steps),
        )

    def saves_after(self, num_done: int) -> bool:
        """Say whether a checkpoint is due when so many steps are made."""
        return num_done == self.stop_step or num_done % self.checkpoint_steps == 0


def make_plan(config: Config, num_samples: int) -> Plan:
    """Resolve the durations of a configuration for a dataset of so many samples.

    Raises:
        UserError: the run would have no step, or a warm-up is longer than it.
    """
    schedule, batch = config.schedule, config.loader.batch

    def steps(duration: str, length: int | None = None) -> int:
        return to_steps(duration, num_samples=num_samples, global_batch=batch, length=length)

    num_steps = steps(schedule.length)
    if num_steps < 1:
        raise UserError(
            f"schedule.length {schedule.length!r} is less than one step of {batch} samples: "
            f"the dataset has {num_samples}; lengthen it or lower loader.batch"
        )
    for name in ("lr_warmup", "teacher_temperature_warmup"):
        duration = getattr(schedule, name)
        if steps(duration, num_steps) > num_steps:
            raise UserError(
                f"schedule.{name} {duration!r} is longer than the run, schedule.length {schedule.length!r} "
                f"({num_steps} steps): shorten it, e.g. to '10 %'"
            )
    checkpoint_steps, keep_every = max(1, steps(config.checkpoint.every, num_steps)), config.checkpoint.keep_every
    # Rounded to steps each for itself, one is hardly ever a multiple of the other: 10 epochs 391, 1 epoch 39.
    num_between = max(1, round(steps(keep_every, num_steps) / checkpoint_steps)) if keep_every else None
    return Plan(
        schedule=schedule,
        num_steps=num_steps,
        stop_step=min(num_steps, config.max_steps or num_steps),
        lr_warmup_steps=steps(schedule.lr_warmup, num_steps),
        temperature_warmup_steps=steps(schedule.teacher_temperature_warmup, num_steps),
        checkpoint_steps=checkpoint_steps,
        keep_steps=num_between * checkpoint_steps if num_between else None,
    )
