"""What the command prints at its end: the table, the verdicts, where the report is, what to run next."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eval.protocols import TITLES
from shards import storage


def print_summary(report: dict[str, Any], out: str, console: Console) -> None:
    """Print each model's chosen features under each protocol, then verdicts and the way on."""
    table = Table("model", "features", title="%, 95 % interval: each model's features that were best on validation")
    table.add_column("figure", justify="right", no_wrap=True)
    section = None
    for row in _chosen(report["rows"]):
        if section != (row["data"], row["protocol"]):
            section = (row["data"], row["protocol"])
            table.add_section()
            title = escape(f"{row['data']}, {TITLES[row['protocol']]}")
            table.add_row(f"[bold]{title}[/]", "", row["metric"].replace("_", " "))
        figure = f"{100 * row['value']:.1f} ({100 * row['low']:.1f} … {100 * row['high']:.1f})"
        table.add_row(escape(row["model"]), row["features"], figure)
    console.print(table)
    for sentence in report["verdicts"]:
        console.print(sentence, highlight=False, markup=False)
    for data in report["data"]:
        if data["rejected"]:
            console.print(
                f"{data['name']}: {len(data['rejected'])} unreadable images left out, see the report", markup=False
            )
    console.print(
        f"report: {storage.join(out, 'report.html')} (also report.md, results.json, results.parquet)", markup=False
    )
    console.print("next: open the report; add another export or data set to the same command and --out to compare")


def _chosen(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the chosen row of each (data, protocol, model), the highest figures first within a protocol."""
    order = list(TITLES)
    kept = [row for row in rows if row["chosen"]]
    return sorted(kept, key=lambda row: (row["data"], order.index(row["protocol"]), -row["value"]))
