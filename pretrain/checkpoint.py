"""Checkpoints: one file per save with everything that the rest of the run depends on.

Student, teacher, heads, mask token, centre, optimiser, steps made and the stream's state. There is no random state to
save: every draw is keyed. The centre's update is applied within its step, so nothing is pending between steps.
"""

import io
import re
from dataclasses import dataclass
from typing import Any

import torch

from pretrain.pera import PerA
from shards import storage
from shards.errors import UserError
from shards.streaming.state import StreamState

_NAME = re.compile(r"step_(\d{8})\.pt")
FORMAT = "pera-checkpoint"
FORMAT_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands."""

    step: int = 0
    """Optimiser steps made."""
    samples: int = 0
    """Samples consumed, over all ranks."""


def list_checkpoints(run: str) -> dict[int, str]:
    """Return the URLs of a run's checkpoints by step, ascending."""
    folder = storage.join(run, "checkpoints")
    if not storage.exists(folder):
        return {}
    names = [info.path for info in storage.list_files(folder)]
    return {int(match[1]): storage.join(folder, match[0]) for match in map(_NAME.fullmatch, names) if match}


def save_checkpoint(
    run: str, model: PerA, optimiser: torch.optim.Optimizer, step: int, stream: StreamState, record: dict[str, Any]
) -> str:
    """Write a checkpoint atomically and return its URL.

    Args:
        run: URL of the run.
        model: all of it is saved.
        optimiser: its moments.
        step: optimiser steps made.
        stream: where the stream stands: at the samples of these steps, however many were read ahead.
        record: plain values that say what this belongs to: configuration, dataset digest, versions.
    """
    buffer = io.BytesIO()
    state = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": step,
        "stream": stream.to_json(),
        "record": record,
    }
    torch.save(state, buffer)
    url = storage.join(run, "checkpoints", f"step_{step:08d}.pt")
    storage.write_bytes(url, buffer.getvalue())
    return url


def load_checkpoint(url: str, model: PerA, optimiser: torch.optim.Optimizer) -> tuple[int, StreamState]:
    """Restore model and optimiser in place; return the steps made and where the stream stands.

    Raises:
        UserError: the file is of a format this code does not know.
    """
    # weights_only: a checkpoint from elsewhere cannot run code here.
    state = torch.load(io.BytesIO(storage.read_bytes(url)), map_location="cpu", weights_only=True)
    if (state["format"], state["format_version"]) != (FORMAT, FORMAT_VERSION):
        raise UserError(
            f"{url} has format {state['format']} {state['format_version']}, but this code reads {FORMAT} "
            f"{FORMAT_VERSION}: go on with the version of this package that wrote it, or choose another --run"
        )
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return state["step"], StreamState.from_json(state["stream"])


def remove_old(run: str, keep_last: int) -> None:
    """Delete all but the newest checkpoints."""
    for url in list(list_checkpoints(run).values())[:-keep_last]:
        storage.remove(url)
