"""What the report shows, out of the report's own figures: groups, choices and names. Pure.

Costs one pass over the rows and one over the comparisons.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from eval.protocols import TITLES

Figures = dict[str, Any]
"""A part of the report as it is written to results.json."""

METRICS = {
    "accuracy": "Accuracy",
    "average_precision": "mAP",
    "precision_at_10": "Precision@10",
    "miou": "Mean IoU",
    "iou": "IoU",
    "f1": "F1",
}
"""Name of a metric in the results → how the report calls it."""
LEADING = (
    "knn_20", "linear", "few_shot_linear_5", "knn_20_over_scales", "retrieval_map", "fine_tune",
    "segment_linear", "segment_conv", "change_difference_f1", "change_concat_f1",
)  # fmt: skip
"""Protocols of the short tables, in their order; a task with none of them shows its first two."""
_ORDER = tuple(TITLES)


@dataclass(frozen=True, kw_only=True)
class Table:
    """All rows of one protocol on one data set."""

    task: str
    data: str
    protocol: str
    rows: list[Figures]
    """The best figure first."""

    @property
    def title(self) -> str:
        """Return what the report calls the protocol."""
        return title_of(self.protocol)

    @property
    def metric(self) -> str:
        """Return what the report calls the metric."""
        return metric_name(self.rows[0].get("metric", "accuracy"))

    def chosen(self) -> dict[str, Figures]:
        """Return each model's row with its chosen kind of features, by model, the best figure first."""
        return {row["model"]: row for row in self.rows if row["chosen"]}


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The report's figures, sorted and indexed."""

    report: Figures
    tables: list[Table]
    """By task, data set and protocol, in the order of the report."""
    floors: frozenset[str]
    """Models that are floors."""
    runs: Mapping[str, str]
    """Name of each exported model → that of its run, which no other run has."""
    newest: frozenset[str]
    """Models but those that a later step of the same run overtakes; the baseline always."""
    baseline: str | None
    """The model that all other backbones are compared with, if there is one."""
    _against: Mapping[tuple[str, ...], list[Figures]] = field(repr=False)

    def against(self, row: Figures) -> list[Figures]:
        """Return the comparisons of a row with others."""
        return self._against.get(tuple(row[name] for name in ("data", "protocol", "model", "features")), [])

    def between(self, row: Figures, other: Figures) -> Figures | None:
        """Return the comparison of two rows of a table, turned round where it was made the other way; None: none."""
        for first, second, sign in ((row, other, 1), (other, row, -1)):
            for found in self.against(first):
                if (found["other"], found.get("other_features")) == (second["model"], second["features"]):
                    return found if sign > 0 else _turned(found)
        return None


def contents(report: Figures) -> Contents:
    """Sort and index a report.

    Args:
        report: what `eval.evaluate.evaluate` returns.
    """
    against: dict[tuple[str, ...], list[Figures]] = {}
    for found in report.get("comparisons", []):
        against.setdefault(tuple(found[name] for name in ("data", "protocol", "model", "features")), []).append(found)
    runs = {model["name"]: model["run_name"] for model in report["models"] if model.get("run_name") is not None}
    return Contents(
        report=report,
        tables=_tables(report),
        floors=frozenset(model["name"] for model in report["models"] if model.get("kind") == "floor"),
        runs=runs,
        newest=_newest(report["models"], runs) | frozenset(filter(None, [report.get("baseline")])),
        baseline=report.get("baseline"),
        _against=against,
    )


def _tables(report: Figures) -> list[Table]:
    groups: dict[tuple[str, str, str], list[Figures]] = {}
    for row in report["rows"]:
        groups.setdefault((row.get("task", ""), row["data"], row["protocol"]), []).append(row)
    tasks = list(dict.fromkeys(task for task, _, _ in groups))
    data = [each["name"] for each in report["data"]]

    def place(key: tuple[str, str, str]) -> tuple[int, int, int]:
        return tasks.index(key[0]), data.index(key[1]), _place(key[2])

    return [
        Table(task=task, data=name, protocol=protocol, rows=sorted(groups[key], key=lambda row: -row["value"]))
        for key in sorted(groups, key=place)
        for task, name, protocol in [key]
    ]


def _place(protocol: str) -> int:
    return _ORDER.index(protocol) if protocol in _ORDER else len(_ORDER)


def _newest(models: Iterable[Figures], runs: Mapping[str, str]) -> frozenset[str]:
    by_step = sorted(models, key=lambda model: model.get("step") or 0)
    return frozenset({runs.get(model["name"], model["name"]): model["name"] for model in by_step}.values())


def _turned(found: Figures) -> Figures:
    verdict = {"better": "worse", "worse": "better"}.get(found["verdict"], found["verdict"])
    turned = {"value": -found["value"], "low": -found["high"], "high": -found["low"], "verdict": verdict}
    return found | turned | {"model": found["other"], "other": found["model"]}


def has_places(data: Figures) -> bool:
    """Say whether the intervals of a data set are over places; one place says nothing of others."""
    return (data.get("test_places") or 0) > 1


def title_of(protocol: str) -> str:
    """Return what the report calls a protocol."""
    return TITLES.get(protocol, protocol)


def metric_name(metric: str) -> str:
    """Return what the report calls a metric."""
    return METRICS.get(metric, metric)


def percent(value: float) -> str:
    """Return a share 0…1 as the reports write it, in percent with one decimal."""
    return f"{100 * value:.1f}"


def interval(row: Figures) -> str:
    """Return the 95 % interval of a row as the reports write it, in percent."""
    return f"{percent(row['low'])} … {percent(row['high'])}"


def points(found: Figures) -> str:
    """Return the difference of a comparison with its interval, in points."""
    return f"{100 * found['value']:+.1f} ({100 * found['low']:+.1f} … {100 * found['high']:+.1f})"


def leading(tables: Iterable[Table]) -> list[Table]:
    """Return the tables that stand for their task: of the protocols in LEADING, or else the first two of each data."""
    found = list(tables)
    chosen = [table for table in found if table.protocol in LEADING]
    return chosen or [table for name in _names(found) for table in [t for t in found if t.data == name][:2]]


def _names(tables: Iterable[Table]) -> Iterator[str]:
    yield from dict.fromkeys(table.data for table in tables)
