"""What the first rank writes into the run folder and shows: metrics, alarms, checkpoints, exports, curves."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pretrain.batches.colour import Colour
from pretrain.config import Config
from pretrain.pages.curves import write_curves
from pretrain.runs.checkpoint import Checkpoint, Position
from pretrain.runs.export import Origin, describe, describe_mixture, set_aside_later, write_export
from pretrain.runs.exports import export_url
from pretrain.runs.metrics import Metrics, Row
from pretrain.runs.refusals import refusals_told
from pretrain.runs.saver import Saved, Saver
from pretrain.training.alarm import ROWS, Alarm
from pretrain.training.plan import Plan
from shards.errors import UserError
from shards.progress import Progress
from shards.storage.retry import StorageError
from shards.streaming.state import StreamState
from shards.streaming.stream import Replacement

_TEACHER = "teacher.backbone."


class Writer:
    """Write and show what a run tells; `writing` makes one."""

    def __init__(
        self, config: Config, plan: Plan, origin: Origin, colour: Colour, position: Position, progress: Progress
    ) -> None:
        self._config, self._origin, self._colour, self._first_step = config, origin, colour, position.step
        self._metrics = Metrics(config.run, position)
        self._alarm = Alarm(config.head.prototypes, first_step=plan.lr_warmup_steps)
        self._alarm.recall(self._metrics.last_rows(ROWS + 1))
        self._progress = progress
        self._saver = Saver(
            config.run,
            keep_last=config.checkpoint.keep_last,
            keep_every_steps=plan.keep_steps,
            first_step=position.step,
        )

    def tell(self, row: Row, replaced: Sequence[Replacement]) -> None:
        """Add a row to the metrics and bad samples to their list; say it where training collapses.

        Raises:
            StorageError: a disk is full, or a store kept failing, in a write that was begun before.
            UserError: that write was refused.
        """
        row["alarm"], texts = self._alarm.look(row)
        for text in texts:
            print(f"pretrain: alarm at step {row['step']}: {text}", file=sys.stderr, flush=True)
        self._add(row, replaced)
        if self._metrics.is_due:
            self._saver.beside(self._flush)

    def tell_stop(self, row: Row, replaced: Sequence[Replacement]) -> None:
        """Add the last row of a start that a fault ends: it is written when the writer is left."""
        self._add(row, replaced)

    def _add(self, row: Row, replaced: Sequence[Replacement]) -> None:
        # In this order: a row never counts a bad sample that is not listed.
        self._metrics.add_bad(replaced)
        self._metrics.append(row)

    def _flush(self) -> None:
        with refusals_told(self._config.run):
            self._metrics.flush()

    def show(self, step: int, row: Row) -> None:
        """Show how many steps are made, and figures of the last row; raise what has befallen a save since.

        Raises:
            StorageError: a disk is full, or a store kept failing.
            UserError: a write was refused.
        """
        self._saver.check()
        self._progress.update(step, line_figures(row) if row else "")

    def prepare(self, checkpoint: Checkpoint) -> None:
        """Find memory for copies of a state like this."""
        self._saver.prepare(checkpoint)

    def save(self, checkpoint: Checkpoint, samples: int) -> None:
        """Write a checkpoint and its export beside training, once the state is copied.

        Args:
            checkpoint: the state.
            samples: consumed so far.
        """
        position = Position(step=checkpoint.step, samples=samples)
        colour = self._colour
        description = describe(self._config.model, self._origin, position, mean=colour.mean, std=colour.std)
        description |= describe_mixture(StreamState.from_json(checkpoint.stream))

        def export(snapshot: Checkpoint) -> str:
            # Before the checkpoint appears, after which nobody makes these rows again.
            self._metrics.flush()
            url = export_url(self._config.run, position.step)
            names = [name for name in snapshot.model if name.startswith(_TEACHER)]
            write_export(url, {name.removeprefix(_TEACHER): snapshot.model[name] for name in names}, description)
            return url

        self._saver.save(checkpoint, export)

    @property
    def saved(self) -> Saved | None:
        """The last save that was finished."""
        return self._saver.saved

    @property
    def num_bad(self) -> int:
        """Bad samples of the run so far."""
        return self._metrics.num_bad

    def finish(self) -> None:
        """Draw the curves: when nothing hurries, and all rows are read into memory."""
        self._saver.wait()
        self._flush()
        with refusals_told(self._config.run):
            write_curves(self._config.run)

    def _set_exports_aside(self) -> None:
        with refusals_told(self._config.run):
            steps = set_aside_later(self._config.run, self._first_step)
        if steps:
            listed = ", ".join(map(str, steps))
            print(
                f"pretrain: going on from step {self._first_step}: exports of step {listed} are set aside "
                "(their model.json is model.json.old now)",
                file=sys.stderr,
                flush=True,
            )

    @contextmanager
    def open(self) -> Iterator[None]:
        """Finish a save that runs and write what was told, whatever comes."""
        self._set_exports_aside()
        try:
            with self._saver:
                yield
        except BaseException:
            try:
                self._flush()
            except (StorageError, UserError) as failure:
                print(f"pretrain: besides, the metrics were not written: {failure}", file=sys.stderr, flush=True)
            raise
        self._flush()


@contextmanager
def writing(config: Config, plan: Plan, origin: Origin, colour: Colour, position: Position) -> Iterator[Writer]:
    """Yield the writer of a run that goes on from a position."""
    with Progress("pretrain", plan.stop_step, "steps", done=position.step) as progress:
        writer = Writer(config, plan, origin, colour, position, progress)
        with writer.open():
            yield writer


def line_figures(row: Row) -> str:
    """Return what the progress line shows of a row."""
    # The loss holds the teacher's own entropy, which grows on the way: the divergence is the part that falls.
    return (
        f"loss {row['loss']:.3f} (divergence {row['divergence']:.3f}) · {row['samples_per_s']:.0f} samples/s · "
        f"waiting for data {row['data_wait_share']:.0%}"
    )
