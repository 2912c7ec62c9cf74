"""Whether all ranks train the same thing: what each of them was given, compared before anything is built.

Another option on one machine, or another version of the data, would train on in silence, or hang in a collective that
not all ranks come to. Costs one exchange of a few kilobytes for each start.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pretrain.batches.sources import Sources
from pretrain.config import Config
from pretrain.runs.record import flatten
from pretrain.training.ranks import Ranks
from shards.errors import UserError

_OF_A_MACHINE = (
    "data",
    "version",
    "mix",
    "weight",
    "run",
    "device",
    "loader.workers",
    "loader.cache",
    "checkpoint.keep_last",
    "checkpoint.deadline_s",
)
"""Keys (or beginnings of keys) that may differ from machine to machine: where things lie there, and how much it has.
What they come to is compared: the datasets' digests and weights, and the kind of device."""


def account(config: Config, sources: Sources, device: torch.device, *, goes_on: bool) -> dict[str, Any]:
    """Return what a rank trains: plain values that must be the same on all ranks.

    Args:
        config: of the run.
        sources: its data, opened.
        device: of this rank.
        goes_on: whether this rank finds the run where it is said to lie.
    """
    options = {key: value for key, value in flatten(config).items() if not key.startswith(_OF_A_MACHINE)}
    return {
        "run": goes_on,
        "data": sources.digests,
        "weight": sources.weights,
        "device": device.type,
        **options,
    }


def require_alike(ranks: Ranks, own: Mapping[str, Any], run: str) -> None:
    """Make sure that all ranks train the same; all must call.

    Args:
        ranks: of the run.
        own: the account of this rank.
        run: URL of the run, for the message.

    Raises:
        UserError: they do not; on all ranks (see `Ranks.agree`), with the option.
    """
    accounts = ranks.collected(own)
    ranks.agree(lambda: _refuse(accounts, run))


def difference(accounts: Sequence[Mapping[str, Any]]) -> tuple[str, int] | None:
    """Return the first key whose value is not the first rank's, and whose it is; None where all are alike."""
    first = accounts[0]
    for key, value in first.items():
        for rank, other in enumerate(accounts):
            if other[key] != value:
                return key, rank
    return None


def _refuse(accounts: Sequence[Mapping[str, Any]], run: str) -> None:
    found = difference(accounts)
    if found is None:
        return
    key, rank = found
    first, other = accounts[0][key], accounts[rank][key]
    if key == "run":
        finds, misses = (rank, 0) if other else (0, rank)
        raise UserError(
            f"{run}: rank {finds} finds the run there, rank {misses} does not: all ranks must reach it, in a bucket or "
            "on a disk that they share"
        )
    if key == "data":
        raise UserError(
            f"data: rank {rank} has the digests {', '.join(other)}, rank 0 {', '.join(first)}: start again if a "
            "version was published meanwhile, or name one with version; else give all ranks the same data"
        )
    raise UserError(f"{key}: rank {rank} has {other}, rank 0 {first}: give all ranks the same options")
