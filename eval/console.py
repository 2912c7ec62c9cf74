"""What the command prints at its end: the table, the verdicts, where the report is, what to run next."""

from typing import Any

from rich.console import Console
from rich.table import Table

from eval.protocols import TITLES
from shards import storage


def print_summary(report: dict[str, Any], out: str, console: Console) -> None:
    """Print the best kind of features of each model and protocol, then verdicts and the way on."""
    table = Table("model", "features", title="Accuracy, % (95 % interval): each model's best kind of features")
    table.add_column("accuracy", justify="right", no_wrap=True)
    section = None
    for row in _best_features(report["rows"]):
        if section != (row["data"], row["protocol"]):
            section = (row["data"], row["protocol"])
            table.add_section()
            table.add_row(f"[bold]{row['data']}, {TITLES[row['protocol']]}[/]")
        figure = f"{100 * row['value']:.1f} ({100 * row['low']:.1f} … {100 * row['high']:.1f})"
        table.add_row(row["model"], row["features"], figure)
    console.print(table)
    for sentence in report["verdicts"]:
        console.print(sentence, highlight=False)
    for data in report["data"]:
        if data["rejected"]:
            console.print(f"{data['name']}: {len(data['rejected'])} unreadable images left out, listed in the report")
    console.print(f"report: {storage.join(out, 'report.html')} (also report.md, results.json, results.parquet)")
    console.print("next: open the report; add another export or data set to the same command and --out to compare")


def _best_features(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the highest row of each (data, protocol, model), best models first within a protocol."""
    best: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        key = (row["data"], row["protocol"], row["model"])
        if key not in best or row["value"] > best[key]["value"]:
            best[key] = row
    order = list(TITLES)
    return sorted(best.values(), key=lambda row: (row["data"], order.index(row["protocol"]), -row["value"]))
