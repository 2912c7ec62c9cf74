"""What the curve page says in words: what a run is, its last figures, alarms, exports, commands and origin."""

import shlex
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby, pairwise
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from pretrain.pages.figures import AXES, MEANINGS, Column, Rows, told
from pretrain.pages.page import table, values
from pretrain.training.alarm import symptoms
from pretrain.training.schedules import to_steps
from shards import storage

_EXPORT_FILES = {"model.safetensors": "Weights", "model.json": "What they are", "config.json": "For timm"}
SIGNS = {"global_cls", "local_cls", "teacher_entropy", "teacher_diversity", "feature_spread", "feature_rank"}
"""Figures that symptoms are looked up in."""
_MAX_ALARMS = 20
"""Of different alarms, to be told one by one."""


def run_name(run: str) -> str:
    """Return the last part of a run's URL."""
    path = str(storage.local_path(run).resolve()) if storage.is_local(run) else run
    return PurePosixPath(path.rstrip("/")).name or run


def lead(rows: Rows, config: Mapping[str, Any]) -> str:
    """Return what a run is in a sentence or two."""
    model = config.get("model", {})
    size = f"ViT {model.get('width')} × {model.get('depth')}, patch {model.get('patch_px')} px, on " if model else ""
    count = f"{len(rows):,} row{'' if len(rows) == 1 else 's'}"
    return f"PerA: {size}{config.get('data', 'a dataset')}. {count} of metrics, the last at step {rows[-1]['step']:,}."


def facts(rows: Rows, columns: Mapping[str, Column], config: Mapping[str, Any]) -> dict[str, str]:
    """Return what stands large at the top of the page; what the run does not tell is empty."""
    model, views = config.get("model", {}), config.get("views", {})
    crops = [
        f"{views[count]} × {side}²"
        for count, side in (("num_global", model.get("image_px")), ("num_local", views.get("local_px")))
        if views.get(count)
    ]
    last = {name: told(name, column.values[-1]) for name, column in columns.items()}
    middle = {name: told(name, float(np.median(column.values))) for name, column in columns.items()}
    prototypes = config.get("head", {}).get("prototypes")
    return {
        "Steps": last["step"] + _planned(columns, config),
        "Samples": last.get("samples", ""),
        "Epochs": last.get("epoch", ""),
        "Time of these steps": _duration(_seconds(rows)),
        "Samples/s, median": middle.get("samples_per_s", ""),
        "Waiting for data, median": middle.get("data_wait_share", ""),
        "Loss, last": last.get("loss", ""),
        "Divergence, last": last.get("divergence", ""),
        "Crops": " + ".join(crops),
        "Batch": str(config.get("loader", {}).get("batch", "")),
        "Prototypes": f"{prototypes:,}" if prototypes else "",
        "Precision, device": ", ".join(str(config[name]) for name in ("precision", "device") if name in config),
    }


def alarms(rows: Rows, num_prototypes: int | None) -> str:
    """Return a section of the rows that have an `alarm`; nothing where none has.

    Args:
        rows: their `alarm` is a number of symptoms, which are looked up, or a text of its own.
        num_prototypes: K; None where nobody knows it.
    """
    # Neighbouring rows with the same alarm are one.
    spans = [(name, list(group)) for name, group in groupby(rows, lambda row: _alarm(row, num_prototypes)[0]) if name]
    if not spans:
        return ""
    lines = []
    for _, group in spans[:_MAX_ALARMS]:
        first, last = group[0]["step"], group[-1]["step"]
        where = f"step {first:,}" if len(group) == 1 else f"steps {first:,} … {last:,}, {len(group):,} rows"
        lines.append(f"<p><b>{where}</b>: {escape(_alarm(group[-1], num_prototypes)[1])}</p>")
    if len(spans) > _MAX_ALARMS:
        lines.append(f"<p>{len(spans) - _MAX_ALARMS:,} more, the last at step {spans[-1][1][-1]['step']:,}</p>")
    return f'<h2>Alarms</h2><div class="alarm">{"".join(lines)}</div>'


def _alarm(row: Mapping[str, Any], num_prototypes: int | None) -> tuple[str, str]:
    """Return what names the alarm of a row, and its text, which may hold figures; empty where it has none."""
    alarm = row.get("alarm")
    if not alarm:
        return "", ""
    if isinstance(alarm, int | float):
        found = symptoms(row, num_prototypes) if num_prototypes and row.keys() >= SIGNS else {}
        return " ".join(found) or "alarm", "; ".join(found.values()) or f"{alarm:g} symptoms of a collapse"
    text = "; ".join(map(str, alarm)) if isinstance(alarm, list | tuple) else str(alarm)
    return text, text


def figures_table(columns: Mapping[str, Column]) -> str:
    """Return all figures: the last, first, lowest and highest value, and what it is."""
    names = [*[name for name in AXES if name in columns], *[name for name in columns if name not in AXES]]
    end = columns["step"].values[-1]
    cells = []
    for name in names:
        steps, found = columns[name].steps, columns[name].values
        late = "" if steps[-1] == end else f" <small>at step {steps[-1]:,.0f}</small>"
        others = [told(name, value) for value in (found[0], min(found), max(found))]
        cells.append([f"<code>{escape(name)}</code>", f"<b>{told(name, found[-1])}</b>{late}", *others,
                      escape(MEANINGS.get(name, ""))])  # fmt: skip
    return table(["Figure", "Last", "First", "Lowest", "Highest", "What it is"], cells, numeric=(1, 2, 3, 4))


def exports_table(exports: Sequence[int]) -> str:
    """Return links to the files of exports, relative to a page in the run's folder."""
    if not exports:
        return "<p>None yet: every checkpoint has one.</p>"
    rows = []
    for step in exports:
        folder = f"exports/step_{step:08d}"
        links = [f'<a href="{folder}/{file}">{file}</a>' for file in _EXPORT_FILES]
        rows.append([f"{step:,}", f"<code>{folder}</code>", *links])
    return table(["Step", "Folder", *_EXPORT_FILES.values()], rows, numeric=(0,), narrow=True)


def run_commands(run: str, exports: Sequence[int], config: Mapping[str, Any]) -> dict[str, str]:
    """Return what can be done with a run, as commands."""
    place, is_local = shlex.quote(run), storage.is_local(run)
    file = shlex.quote(storage.join(run, "config.yaml")) if is_local else "<a copy of its config.yaml>"
    further = " --max_steps null" if config.get("max_steps") else ""
    items = {
        "Go on, where steps are left": f"python -m pretrain --config {file}{further}",
        "Draw this page again": f"python -m pretrain curves --run {place}",
        "See what it is trained on, and what it makes of it": f"python -m pretrain show --run {place} --out show.html",
        "Make a folder that can be shared, with a card": f"python -m pretrain export --run {place} --out backbone",
        # Make would expand a dollar sign of its own.
        "Say what the backbone is worth": f"make eval RUN={place.replace('$', '$$')} DATA=name=<class folder>",
    }
    if exports and is_local:
        name = f"local-dir:{storage.join(run, f'exports/step_{exports[-1]:08d}')}"
        items["Load the newest export, in Python"] = f"timm.create_model({name!r}, pretrained=True)"
    return items


def origin(config: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """Return datasets with their digests, the configuration, normalisation and versions."""
    digests = record.get("digests") or [record.get("dataset_digest", "")]
    numbers = record.get("dataset_versions") or [""] * len(digests)
    urls = [config.get("data", ""), *[each["data"] for each in config.get("mix") or ()]]
    data = [
        [f"<code>{escape(str(url))}</code>", escape(str(number)), f"<code>{escape(str(digest))}</code>"]
        for url, number, digest in zip(urls, numbers, digests, strict=False)
    ]
    normalisation = {f"{name}, per band": record[name] for name in ("mean", "std") if name in record}
    return "".join(
        [
            f"<section><h3>Data</h3>{table(['Dataset', 'Version', 'Digest'], data)}</section>",
            values("Configuration", _flatten(config)),
            values("Normalisation, as shares of the value range", normalisation),
            values("Versions", record.get("versions") or {}),
        ]
    )


def _planned(columns: Mapping[str, Column], config: Mapping[str, Any]) -> str:
    """Return how many steps the schedule has, where the configuration tells."""
    length, batch = config.get("schedule", {}).get("length"), config.get("loader", {}).get("batch")
    if not (length and batch and {"samples", "epoch"} <= columns.keys()):
        return ""
    epoch_samples = round(columns["samples"].values[-1] / columns["epoch"].values[-1])
    return f" of {to_steps(length, num_samples=epoch_samples, global_batch=batch):,}"


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _seconds(rows: Rows) -> float:
    """Return the time of all steps: each row tells the rate since the row before."""
    seconds = 0.0
    for before, row in pairwise([{"samples": 0}, *rows]):
        if row.get("samples_per_s") and "samples" in before and "samples" in row:
            seconds += (row["samples"] - before["samples"]) / row["samples_per_s"]
    return seconds


def _duration(seconds: float) -> str:
    for unit, size_s in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size_s:
            return f"{seconds / size_s:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else ""
