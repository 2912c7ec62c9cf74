"""The curve page of a run: its metrics, configuration and origin as one self-contained HTML file.

A function of the run's own files: no clock. Costs the read of `metrics.jsonl` and about 50 µs a row; the page has
half a megabyte at most, however long the run was.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import yaml

from pretrain.pages.account import alarms, exports_table, facts, figures_table, lead, origin, run_commands, run_name
from pretrain.pages.figures import AXES, SECTIONS, Chart, Column, Rows, read_columns, told
from pretrain.pages.lines import MAX_POINTS, line_chart, thin
from pretrain.pages.page import commands, encoded, page
from pretrain.runs.exports import list_exports
from shards import cli, storage
from shards.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CurvesConfig:
    """Draw a run's metrics."""

    run: str
    """Folder or URL of the run; the page is written into it, as curves.html."""


def main(argv: list[str]) -> int:
    """Run `python -m pretrain curves`; see `shards.cli.exit_with` for the exit codes."""
    config = cli.parse_config("pretrain curves", "Draw a run's metrics as one HTML page.", CurvesConfig, argv)
    print(f"wrote {write_curves(config.run)}")
    return 0


def write_curves(run: str) -> str:
    """Write `curves.html` into a run and return its URL; an existing one is replaced.

    Raises:
        UserError: there is no run, it has no metrics yet, or the page cannot be written.
    """
    # With it comes torch, which `--help` need not wait for.
    from pretrain.runs.metrics import read_rows

    target = storage.join(run, "curves.html")
    with storage.user_errors(run):
        if not storage.exists(storage.join(run, "run.json")):
            raise UserError(f"{run} holds no run: give the folder that `python -m pretrain --run` wrote")
        record = json.loads(storage.read_bytes(storage.join(run, "run.json")))
        config = yaml.safe_load(storage.read_bytes(storage.join(run, "config.yaml")))
        rows = read_rows(run)
        if not rows:
            raise UserError(f"{run} has no metrics yet: it writes its first row after log_every steps")
        text = render(rows, config, record, run=run, exports=sorted(list_exports(run)))
        storage.write_bytes(target, encoded(text))
    return target


def render(
    rows: Rows,
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    *,
    run: str = "run",
    exports: Sequence[int] = (),
) -> str:
    """Return the page.

    Args:
        rows: of the metrics, ascending steps, one at least; keys that nobody knows are drawn too, and values that are
            no finite numbers are left out.
        config: the resolved configuration, as in `config.yaml`.
        record: what `run.json` says.
        run: its URL, as the commands name it.
        exports: steps of its exports, ascending.
    """
    columns = read_columns(rows)
    parts = [
        alarms(rows, config.get("head", {}).get("prototypes")),
        *[_section(title, charts, columns, config) for title, charts in _sections(columns).items()],
        "<h2>All figures</h2>",
        figures_table(columns),
        "<h2>Exports</h2>",
        exports_table(exports),
        "<h2>What to run</h2>",
        commands(run_commands(run, exports, config)),
        "<h2>What it was made from</h2>",
        origin(config, record),
    ]
    bands = " A point of a curve is the mean of several rows, the band their lowest and highest."
    sentence = lead(rows, config) + bands * (len(rows) > MAX_POINTS)
    return page(run_name(run), sentence, facts(rows, columns, config), "\n".join(parts))


def _sections(columns: Mapping[str, Column]) -> dict[str, tuple[Chart, ...]]:
    known = {name for charts in SECTIONS.values() for chart in charts for name in chart.names}
    others = [name for name in columns if name not in known and name not in AXES]
    return {**SECTIONS, "Others": tuple(Chart(title=name, names=(name,), is_told_if_constant=True) for name in others)}


def _section(title: str, charts: Sequence[Chart], columns: Mapping[str, Column], config: Mapping[str, Any]) -> str:
    drawn, same = [], []
    for chart in charts:
        present = {name: columns[name] for name in chart.names if name in columns}
        if chart.is_told_if_constant and all(column.is_constant for column in present.values()):
            same += [f"{escape(name)} {told(name, column.values[-1])}" for name, column in present.items()]
        elif present:
            drawn.append(_figure(chart, present, columns, config))
    sentence = f"<p>The same in all rows: {', '.join(same)}.</p>" if same else ""
    grid = f'<div class="charts">{"".join(drawn)}</div>' if drawn else ""
    return f"<h2>{escape(title)}</h2>{sentence}{grid}" if sentence or grid else ""


def _figure(
    chart: Chart, present: Mapping[str, Column], columns: Mapping[str, Column], config: Mapping[str, Any]
) -> str:
    steps = columns["step"].values
    picture = line_chart(
        chart.title,
        [thin(name, column.steps, column.values) for name, column in present.items()],
        (steps[0], steps[-1]),
        epoch_at=_epochs(columns),
        told=told,
        limit=_limit(chart, config),
        may_be_log=chart.may_be_log,
    )
    keys = [f'<span class="key key{n}"><b>{escape(name)}</b></span>' for n, name in enumerate(present)]
    caption = escape(chart.title) + "".join(keys if len(keys) > 1 else [])
    return f"<figure><figcaption>{caption}<small>{escape(chart.note)}</small></figcaption>{picture}</figure>"


def _limit(chart: Chart, config: Mapping[str, Any]) -> tuple[str, float] | None:
    prototypes = config.get("head", {}).get("prototypes")
    if "teacher_entropy" not in chart.names or not prototypes:
        return None
    return f"ln {prototypes:,} = {math.log(prototypes):.2f}", math.log(prototypes)


def _epochs(columns: Mapping[str, Column]) -> Callable[[float], float] | None:
    """Return a function from step to epoch, which grows with it; None where the rows do not tell."""
    if "epoch" not in columns:
        return None
    per_step = columns["epoch"].values[-1] / columns["epoch"].steps[-1]
    return lambda step: step * per_step
