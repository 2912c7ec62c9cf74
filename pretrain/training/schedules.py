"""Everything that changes over a run, as pure functions of the step.

Lengths are written as durations ("200 epochs", "500 steps", "1e6 samples", "10 %" of the run) and become
steps once the dataset and the batch are known, so that one preset serves datasets of any size.
"""

import math
import re

_DURATION = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(epochs?|steps?|samples?|%)\s*")
_MAX_NUMBER = 1e15
"""Of any unit: what is made of it stays finite, and exact."""


def parse_duration(text: str) -> tuple[float, str]:
    """Split a duration into number and unit: "epoch", "step", "sample" or "%".

    Raises:
        ValueError: the text is no duration, or none that a run could have.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no duration: write e.g. '200 epochs', '500 steps', '1e6 samples' or '10 %'")
    number = float(match[1])
    if number > _MAX_NUMBER:
        raise ValueError(f"{text!r} is beyond {_MAX_NUMBER:g}: no run is as long, shorten it")
    return number, match[2].rstrip("s")


def to_steps(duration: str, *, num_samples: int, global_batch: int, length: int | None = None) -> int:
    """Return a duration in optimiser steps, rounded to the nearest.

    Args:
        duration: see `parse_duration`.
        num_samples: samples in the dataset, one epoch.
        global_batch: samples per step.
        length: steps of the whole run, what "%" refers to.

    Raises:
        ValueError: no duration, or a share where there is no whole.
    """
    number, unit = parse_duration(duration)
    if unit == "%":
        if length is None:
            raise ValueError(f"{duration!r}: the length of the run itself must be in epochs, steps or samples")
        return round(length * number / 100)
    samples = {"epoch": num_samples, "step": global_batch, "sample": 1}[unit]
    return round(number * samples / global_batch)


def cosine(step: int, start: float, end: float, num_steps: int) -> float:
    """Return the value of a half cosine from start at step 0 to end at the last step, then constant."""
    share = min(step / max(num_steps - 1, 1), 1.0)
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


def linear(step: int, start: float, end: float, num_steps: int) -> float:
    """Return the value of a straight line from start at step 0 to end at num_steps, then constant."""
    return end if step >= num_steps else start + (end - start) * step / num_steps


def warmup_cosine(step: int, peak: float, end: float, num_warmup: int, num_steps: int) -> float:
    """Return a linear rise from 0 to the peak over the warm-up, then a half cosine to the end."""
    if step < num_warmup:
        return peak * (step + 1) / num_warmup
    return cosine(step - num_warmup, peak, end, num_steps - num_warmup)
