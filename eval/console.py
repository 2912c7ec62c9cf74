"""What the command prints at its end: the table, the verdicts, where the report is, what to run next."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eval.report.contents import contents, interval, percent
from shards import storage


def print_summary(report: dict[str, Any], out: str, console: Console) -> None:
    """Print each model's chosen features under each protocol, then verdicts and the way on."""
    table = Table("model", "features", title="%, 95 % interval: each model's features that were best on validation")
    table.add_column("figure", justify="right", no_wrap=True)
    for each in contents(report).tables:
        table.add_section()
        table.add_row(f"[bold]{escape(f'{each.data}, {each.title}')}[/]", "", each.metric)
        for row in each.chosen().values():
            table.add_row(escape(row["model"]), row["features"], f"{percent(row['value'])} ({interval(row)})")
    console.print(table)
    for sentence in report["verdicts"]:
        console.print(sentence, highlight=False, markup=False)
    for data in report["data"]:
        if data["rejected"]:
            console.print(
                f"{data['name']}: {len(data['rejected'])} unreadable images left out, see the report", markup=False
            )
        if unlisted := data.get("images_in_no_part_of_the_split"):
            console.print(
                f"{data['name']}: {unlisted} images are in no part of the split that came with the data, and were left "
                "out",
                markup=False,
            )
        if data.get("images_with_missing_values"):
            console.print(
                f"{data['name']}: in {data['images_with_missing_values']} images some values are NaN or infinite, and "
                "models saw the mean of the band instead",
                markup=False,
            )
    console.print(
        f"report: {storage.join(out, 'report.html')} (also report.md, results.json, results.parquet)", markup=False
    )
    console.print("next: open the report; add another export or data set to the same command and --out to compare")
