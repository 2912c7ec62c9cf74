"""Where the figures come from and what they cost: models, data, speed, memory, versions and the command."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from eval.report.contents import Contents, Figures
from eval.report.markup import Cell, Column, count, number, section, table, values

_MAX_REJECTED = 100
"""Images that were left out, named on the page; results.json names all."""
_NOTHING = Cell(html="–")
_TRAINING = (
    "Samples/s over all ranks, the median of the run's metrics up to the export's step; peak memory of a rank until "
    "then: of the GPU, on a CPU of the process."
)


def facts(contents: Contents) -> dict[str, str]:
    """Return what stands large at the top of the page; what the report does not tell is empty."""
    report = contents.report
    draws, seconds = report.get("config", {}).get("num_draws"), report.get("seconds")
    return {
        "Data sets": ", ".join(data["name"] for data in report["data"]),
        "Figures": f"{len(report['rows']):,}",
        "Baseline": contents.baseline or "",
        "Bootstrap draws": f"{draws:,}" if draws else "",
        "Started": str(report.get("started", "")).replace("T", " ").replace("Z", " UTC"),
        "Time": _duration(seconds) if seconds is not None else "",
        "Hardware": str(report.get("hardware", "")),
    }


def _duration(seconds: float) -> str:
    for unit, size_s in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size_s:
            return f"{seconds / size_s:.1f} {unit}"
    return f"{seconds:.0f} s"


def costs(contents: Contents) -> str:
    """Return speed and memory of each model on each data set."""
    found = contents.report.get("costs", [])
    # Rows that a protocol computes together have its whole time each: it counts once.
    spent: dict[tuple[str, str], set[tuple[str, float]]] = {}
    for row in contents.report["rows"]:
        spent.setdefault((row["model"], row["data"]), set()).add((row["features"], row.get("seconds") or 0.0))
    seconds = {key: sum(time for _, time in times) for key, times in spent.items()}
    columns = [Column(title="Model"), Column(title="Data"), number("Images/s"), number("Peak memory, MiB"),
               number("Protocols, s")]  # fmt: skip
    rows = [("", _cost(each, seconds.get((each["model"], each["data"]), 0.0))) for each in found]
    return table(columns, rows, "costs") if found else ""


def _cost(each: Figures, seconds: float) -> Sequence[Cell | str]:
    rate, memory = each.get("images_per_s"), each.get("memory_bytes")
    shown = [
        Cell(html=_plain_number(rate), value=rate) if rate else _NOTHING,
        Cell(html=_plain_number(memory / 2**20), value=memory) if memory else _NOTHING,
        Cell(html=_plain_number(seconds), value=seconds),
    ]
    return [each["model"], each["data"], *shown]


def training(contents: Contents) -> str:
    """Return what the training of each export had cost by its step; nothing where no model tells its step or cost."""
    told = [model for model in contents.report["models"] if model.get("step") is not None or model.get("training")]
    columns = [Column(title="Model"), number("Step"), number("Samples seen"), number("Samples/s"),
               number("Peak memory, MiB")]  # fmt: skip
    rows = [("", _training_cells(model)) for model in told]
    return section("Training", table(columns, rows, "costs"), level=3, lead=_TRAINING) if told else ""


def _training_cells(model: Figures) -> Sequence[Cell | str]:
    found = model.get("training") or {}
    rate, memory = found.get("samples_per_s"), found.get("memory_bytes")
    counts = [_NOTHING if n is None else Cell(html=f"{n:,}", value=n) for n in map(model.get, ("step", "samples_seen"))]
    costs = [
        _NOTHING if rate is None else Cell(html=_plain_number(rate), value=rate),
        _NOTHING if memory is None else Cell(html=_plain_number(memory / 2**20), value=memory),
    ]
    return [model["name"], *counts, *costs]


def _plain_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def models(contents: Contents) -> str:
    """Return what each model is, with its digest."""
    columns = [Column(title="Model"), Column(title="What it is", sort=""), number("Input, px"),
               Column(title="Normalisation", sort=""), Column(title="Digest", sort="")]  # fmt: skip
    rows = [
        (
            "floor" if model["name"] in contents.floors else "",
            [
                model["name"],
                str(model.get("description", "")),
                Cell(html=escape(str(model.get("image_px") or "as it is")), value=model.get("image_px") or 0),
                _normalisation(contents, model),
                Cell(html=f"<code>{escape(str(model.get('digest', '')))}</code>"),
            ],
        )
        for model in contents.report["models"]
    ]
    return section("Models", table(columns, rows, "origin"), level=3)


def _normalisation(contents: Contents, model: Figures) -> str:
    """Return by what a model's input is normalised, band by band."""
    if model.get("mean") is None or model.get("std") is None:
        return "none"
    if contents.report.get("config", {}).get("normalisation") == "dataset":
        return "by the data"
    mean, std = (", ".join(f"{value:.3g}" for value in model[name]) for name in ("mean", "std"))
    return f"mean {mean}; std {std}"


def data_sets(contents: Contents) -> str:
    """Return what each data set is, with its digests and what was left out of it."""
    return section("Data", "\n".join(map(_data_set, contents.report["data"])), level=3)


def _data_set(data: Figures) -> str:
    rejected, classes, bands = (data.get(name) or [] for name in ("rejected", "classes", "bands"))
    items = {
        "From": str(data.get("url", "")),
        "Images": f"{data.get('num_images', 0):,}",
        "Classes": f"{len(classes)}: {', '.join(classes)}",
        "Bands": f"{', '.join(bands)} ({data.get('dtype', '')})",
        "Digest of the content": str(data.get("digest", "")),
        "Digest of the split": str(data.get("split_digest", "")),
    }
    known = ("name", "num_images", "classes", "bands", "dtype", "url", "digest", "split_digest", "rejected")
    others = {name.replace("_", " ").capitalize(): _text(value) for name, value in data.items() if name not in known}
    return f"<section><h4>{escape(data['name'])}</h4>{values(items | others)}{_rejected(rejected)}</section>"


def _rejected(rejected: Sequence[Figures]) -> str:
    if not rejected:
        return ""
    items = "".join(
        f"<li><code>{escape(item['path'])}</code>: {escape(item['reason'])}</li>" for item in rejected[:_MAX_REJECTED]
    )
    more = len(rejected) - _MAX_REJECTED
    rest = f"<li>and {more:,} more, in results.json</li>" if more > 0 else ""
    return f"<p>{count(len(rejected), 'image')} left out:</p><ul>{items}{rest}</ul>"


def provenance(contents: Contents) -> str:
    """Return versions, options and the command."""
    report = contents.report
    versions = {name: _text(value) for name, value in report.get("versions", {}).items()}
    command = str(report.get("command", ""))
    return "".join(
        [
            section("Versions", values(versions), level=3),
            section("Options", values(_flat(report.get("config", {}))), level=3),
            section("Command", f"<pre><code>{escape(command)}</code></pre>" if command else "", level=3),
        ]
    )


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in options.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: _text(value)}
    return flat


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
