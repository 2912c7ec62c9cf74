"""This process among those of the run, as torchrun starts them, and what they say to each other.

Without torchrun a run has one rank, and nothing here talks to anybody. gloo joins CPUs, NCCL GPUs; what is not a
tensor goes over gloo in both cases.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
from torch import Tensor

from shards.errors import UserError
from shards.storage.retry import StorageError

T = TypeVar("T")
_LOST = re.compile(r"connection (closed|reset) by peer|timed out waiting|broken pipe|pair closure", re.IGNORECASE)
_TIMEOUT = timedelta(minutes=10)
"""That a rank waits for the others, who may be waiting for data: a store that stalls is retried for minutes."""


class LostRankError(RuntimeError):
    """Another rank is gone; what befell it, it says itself."""


class ToldElsewhereError(Exception):
    """What the first rank tells of, raised on all others.

    Attributes:
        is_users: whether it is a UserError there.
    """

    def __init__(self, message: str, *, is_users: bool) -> None:
        super().__init__(message)
        self.is_users = is_users


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This rank's place; all ranks must make the same calls in the same order."""

    rank: int = 0
    world: int = 1
    """Number of ranks."""

    @property
    def is_first(self) -> bool:
        """Say whether this rank writes and prints."""
        return self.rank == 0

    def mean_(self, x: Tensor) -> Tensor:
        """Replace a tensor by its mean over the ranks, and return it."""
        if self.world > 1:
            torch.distributed.all_reduce(x)
            x /= self.world
        return x

    def concatenated(self, x: Tensor, dim: int) -> Tensor:
        """Return the tensors of all ranks, of one shape, one after another along a dimension; without a gradient."""
        if self.world == 1:
            return x.detach()
        x = x.detach().contiguous()
        parts = [torch.empty_like(x) for _ in range(self.world)]
        torch.distributed.all_gather(parts, x)
        return torch.cat(parts, dim)

    def collected(self, value: T) -> list[T]:
        """Return the values of all ranks, by rank; they are pickled."""
        if self.world == 1:
            return [value]
        values: list[T | None] = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values  # type: ignore[return-value]  # all are filled in

    def first(self, value: T) -> T:
        """Return the first rank's value; it is pickled."""
        if self.world == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def agree(self, prepare: Callable[[], T]) -> T:
        """Return what a function returns that talks to no other rank, once it has gone well on all of them.

        Raises:
            UserError: a rank had it. All ranks leave, so that none waits for it, and the first one tells.
            StorageError: likewise.
            ToldElsewhereError: one of these, on all ranks but the first.
        """
        result, problem = None, None
        try:
            result = prepare()
        except (UserError, StorageError) as error:
            if self.world == 1:
                raise
            problem = error
        for rank, found in enumerate(self.collected(problem)):
            if found is not None:
                self._leave(found, rank)
        return result  # type: ignore[return-value]  # with no problem there is a result

    def _leave(self, problem: UserError | StorageError, rank: int) -> NoReturn:
        text = f"rank {rank}: {problem}" if rank else str(problem)
        if not self.is_first:
            raise ToldElsewhereError(text, is_users=isinstance(problem, UserError))
        if isinstance(problem, StorageError):
            raise StorageError(text, problem.kind)
        raise UserError(text)


@contextmanager
def joined(kind: str) -> Iterator[Ranks]:
    """Join the other ranks that torchrun started, if it did, and leave them at the end.

    Args:
        kind: of device to train on: "cpu", "cuda", or "auto".

    Raises:
        UserError: the ranks do not find each other.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    backend = "cpu:gloo,cuda:nccl" if kind != "cpu" and torch.cuda.is_available() else "gloo"
    try:
        torch.distributed.init_process_group(backend, timeout=_TIMEOUT)
    except (ValueError, torch.distributed.DistError) as error:
        raise UserError(f"rank {os.environ.get('RANK')} of {world} does not find the others: {error}") from error
    ranks = Ranks(rank=torch.distributed.get_rank(), world=world)
    try:
        yield ranks
    except RuntimeError as error:
        # torch has no type of its own for all that it says when a peer's connection ends.
        if isinstance(error, torch.distributed.DistError) or _LOST.search(str(error)):
            raise LostRankError(f"rank {ranks.rank}: another rank is gone, see what it said") from error
        raise
    # Not after an error: others may be waiting for this rank, and would make it wait for them.
    torch.distributed.destroy_process_group()


def local_rank() -> int:
    """Return the number of this rank on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world() -> int:
    """Return how many ranks share the cores of this one."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def node_world() -> int:
    """Return how many ranks this machine has: they share its disk, though each may have been given its own cores."""
    return int(os.environ.get("NODE_RANKS") or local_world())
