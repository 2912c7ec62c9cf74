"""Saving beside training: the training thread pays for one copy of the state, a thread of its own for all the rest.

One save at a time, in this order: export, checkpoint, removal of old checkpoints. So where there is a checkpoint there
is its export, and `keep_last` whole ones are there at any moment, one more while a save runs.

Cost: a second copy of the state in memory for as long as the saver lives. For ViT-B with the paper's heads (2.4 GB) the
copy into memory used before took 0.2 to 0.6 s on two idle cores, and 1.7 s where six times as many processes wanted
them; into fresh memory up to 13 s on the idle ones, hence `Saver.prepare`.
"""

import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from pretrain.runs.checkpoint import FIELDS, Checkpoint, checkpoints_url, later, remove_outdated, write_checkpoint
from pretrain.runs.refusals import refusals_told
from shards import storage


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a save has written."""

    step: int
    export_url: str
    checkpoint_url: str


class Saver:
    """Write checkpoints of a run in a thread of its own; use as a context manager, in one process of the run.

    An error of that thread is raised in the training thread by the next call, or on leaving; after it the run must end,
    as its checkpoints are not what was promised. On leaving, a save that runs is finished, also when an error is
    what ends the training: then the save's own error is printed beside it.

    A failed removal of an old checkpoint is printed and tried again with the next save: it costs space, no progress,
    and where the space runs out the next save says so and stops the run.

    Args:
        run: URL of the run.
        keep_last: newest checkpoints to keep.
        first_step: that the run goes on from. Checkpoints of later ones are damaged: the first save removes them.
        keep_every_steps: those at multiples of so many steps are kept, too; None: none of them.
    """

    saved: Saved | None = None
    """The last save that was finished."""

    def __init__(self, run: str, *, keep_last: int, first_step: int, keep_every_steps: int | None = None) -> None:
        self._run, self._keep_last, self._keep_every_steps = run, keep_last, keep_every_steps
        self._first_step = first_step
        self._damaged: frozenset[str] = frozenset()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._running: Future[None] | None = None
        self._room: Checkpoint | None = None

    def __enter__(self) -> "Saver":
        """Remove what a killed process left of its last save, and see which checkpoints are damaged.

        Raises:
            UserError: no permission, or credentials that do not hold.
            StorageError: the disk is out of order, or the store kept failing.
        """
        with refusals_told(self._run):
            remove_left_over(self._run)
            self._damaged = later(self._run, self._first_step)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            print(f"pretrain: besides, the last save failed: {failure}", file=sys.stderr, flush=True)
        finally:
            self._pool.shutdown()

    def prepare(self, state: Checkpoint) -> None:
        """Find memory for snapshots of a state like this, beside training; once, when the optimiser has made a step.

        Without it the first save does so, and training waits for it.
        """
        self.wait()
        self._running = self._pool.submit(self._prepare, state)

    def _prepare(self, state: Checkpoint) -> None:
        self._room = reserve_snapshot(state)

    def save(self, state: Checkpoint, export: Callable[[Checkpoint], str]) -> None:
        """Copy a state as it is now, and write it beside training; first waits for the save before, if that still runs.

        Args:
            state: tensors on any device; they may change as soon as this returns.
            export: writes the export of the copy it is given and returns its URL; runs in the saver's thread.

        Raises:
            StorageError: the save before met a full disk, or a store that kept failing.
            UserError: it was refused.
        """
        self.wait()
        self._room = take_snapshot(state, into=self._room)
        self._running = self._pool.submit(self._write, self._room, export)

    def beside(self, write: Callable[[], None]) -> None:
        """Let a function write beside training, unless something is written at the moment; then it may come later.

        Args:
            write: is called in the saver's thread.

        Raises:
            StorageError: what was written before met a full disk, or a store that kept failing.
            UserError: it was refused.
        """
        self.check()
        if self._running is None:
            self._running = self._pool.submit(write)

    def check(self) -> None:
        """Raise the error of a save that has failed since; never waits."""
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being saved, and raise the error of a save that has failed."""
        if self._running is None:
            return
        try:
            self._running.result()
        finally:
            # Else it was this thread that was interrupted: what comes of the save is told later.
            if self._running.done():
                self._running = None

    def _write(self, snapshot: Checkpoint, export: Callable[[Checkpoint], str]) -> None:
        with refusals_told(self._run):
            export_url = export(snapshot)
            checkpoint_url = write_checkpoint(self._run, snapshot)
        # The same bytes made again have the same name.
        self._damaged -= {checkpoint_url}
        self.saved = Saved(step=snapshot.step, export_url=export_url, checkpoint_url=checkpoint_url)
        try:
            remove_outdated(
                self._run,
                checkpoint_url,
                keep_last=self._keep_last,
                keep_every_steps=self._keep_every_steps,
                damaged=self._damaged,
            )
        except OSError as error:
            told = f"pretrain: an old checkpoint was not removed, the next save tries again: {error}"
            print(told, file=sys.stderr, flush=True)


def remove_left_over(run: str) -> None:
    """Remove the temporary files that a killed process left, in the run's folder and in those below it.

    Raises:
        StorageError: the store kept failing.
    """
    # Of a bucket that is all.
    storage.remove_unfinished(run)
    if storage.is_local(run):
        exports = sorted(storage.local_path(storage.join(run, "exports")).glob("*/"))
        for folder in (checkpoints_url(run), storage.join(run, "tensorboard"), *map(str, exports)):
            storage.remove_unfinished(folder)


def take_snapshot(checkpoint: Checkpoint, into: Checkpoint | None = None) -> Checkpoint:
    """Copy all tensors to the CPU, so that training may go on while they are written.

    Args:
        checkpoint: tensors on any device.
        into: an earlier snapshot whose memory is used again, and whose content is lost. Fresh memory may cost more than
            ten times the copy: the system must find and clear it.
    """
    return _with_tensors(checkpoint, into, _copied)


def reserve_snapshot(checkpoint: Checkpoint) -> Checkpoint:
    """Return room for a snapshot of a state like this: memory is found and cleared, no tensor is read."""
    return _with_tensors(checkpoint, None, lambda tensor, room: torch.empty_like(tensor, device="cpu").zero_())


def _copied(tensor: Tensor, room: Any) -> Tensor:
    if isinstance(room, Tensor) and (room.shape, room.dtype) == (tensor.shape, tensor.dtype):
        return room.copy_(tensor)
    return tensor.to("cpu", copy=True)


def _with_tensors(checkpoint: Checkpoint, room: Checkpoint | None, make: Callable[[Tensor, Any], Tensor]) -> Checkpoint:
    """Replace each tensor by what is made of it and of what stands at its place in `room`, which may be anything."""

    def walk(value: Any, room: Any) -> Any:
        if isinstance(value, Tensor):
            return make(value.detach(), room)
        if isinstance(value, dict):
            rooms = room if isinstance(room, dict) else {}
            return {key: walk(item, rooms.get(key)) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(walk(item, None) for item in value)
        return value

    return Checkpoint(**{name: walk(getattr(checkpoint, name), getattr(room, name, None)) for name in FIELDS})
