"""Evaluate new exports of runs as they come, until the runs are complete.

Waits and looks; the report is written again whenever there is something new. Ctrl-C ends it, and loses nothing.
"""

import time
from collections.abc import Callable

from rich.console import Console

from eval.evaluate import Evaluation
from eval.models.exports import read_export
from eval.models.resolve import export_candidate
from eval.models.runs import export_folders, is_complete
from eval.models.training import read_training_log
from shards.errors import UserError


def watch(evaluation: Evaluation, write: Callable[[], None], console: Console, sleep: Callable[[float], None]) -> None:
    """Add every export that comes to the evaluation and write the report each time, until all runs are complete.

    Args:
        evaluation: with the models that were there at the start.
        write: writes the report.
        console: is told what happens.
        sleep: waits for some seconds.

    Raises:
        UserError: a run's files are damaged.
    """
    runs = list(dict.fromkeys(c.run for c in evaluation.candidates if c.run is not None))
    newest = {run: max((c.step or 0 for c in evaluation.candidates if c.run == run), default=0) for run in runs}
    wait_s, open_runs = evaluation.config.poll_s, runs
    while open_runs := [run for run in open_runs if not _look(evaluation, run, newest, write, console)]:
        console.print(f"watching {', '.join(open_runs)}; again in {wait_s:g} s, Ctrl-C ends it", markup=False)
        sleep(wait_s)


def _look(
    evaluation: Evaluation, run: str, newest: dict[str, int], write: Callable[[], None], console: Console
) -> bool:
    """Evaluate what is new in a run; return whether nothing more will come."""
    # Asked before the listing: what a complete run has, the listing shows.
    complete = is_complete(run)
    for folder, step in export_folders(run).items():
        if step <= newest[run]:
            continue
        newest[run] = step
        started, log = time.monotonic(), read_training_log(run)
        first = next(c for c in evaluation.candidates if c.run == run)
        # A run keeps the name that its exports have in the report already.
        assert first.run_name is not None
        try:
            candidate = export_candidate(
                read_export(folder), evaluation.device, log, first.record, origin=first.run_name, lazy=False
            )
            evaluation.check(candidate)
            evaluation.add(candidate)
        except UserError as error:
            console.print(f"passed over: {error}", markup=False)
            continue
        write()
        console.print(
            f"{candidate.name} is in the report, {time.monotonic() - started:.0f} s after it was seen", markup=False
        )
    return complete
