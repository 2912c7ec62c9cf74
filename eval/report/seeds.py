"""Methods over their seeds: a small table for each leading protocol of each data set, on the page and in Markdown."""

from dataclasses import dataclass

from eval.report.contents import Contents, Figures, Table, leading, percent, points
from eval.report.markup import Cell, Column, number, section, table
from eval.report.tables import pair

LEAD = (
    "Runs that differ in nothing but their seed are one method. Intervals are of the difference of two means, "
    "by Welch's t: of training again with other seeds, on the same test images; what other images would do they leave "
    "out."
)


@dataclass(frozen=True, kw_only=True)
class MethodTable:
    """The methods under one protocol on one data set."""

    of: Table
    """The rows of the models that they are made of."""
    rows: list[Figures]
    """The best mean first."""

    @property
    def title(self) -> str:
        """Return the data set and what the report calls the protocol."""
        return f"{self.of.data}: {self.of.title}"

    @property
    def heads(self) -> list[str]:
        """Return the names of the columns; the last one only where methods are compared."""
        base = [f"against {row['against']['other']}, points" for row in self.rows if row["against"]][:1]
        return ["method", "seeds", "features", "mean, %", "SD", "lowest … highest", *base]

    def cells(self, row: Figures) -> list[str]:
        """Return the plain texts of a row."""
        several, against = row["num_seeds"] > 1, row["against"]
        spread = [percent(row["sd"]), f"{percent(row['lowest'])} … {percent(row['highest'])}"] if several else 2 * ["–"]
        texts = [row["method"], str(row["num_seeds"]), row["features"], percent(row["mean"]), *spread]
        return [*texts, _said(against) if against else ""][: len(self.heads)]


def _said(against: Figures) -> str:
    found = against["difference"]
    return f"{found['verdict']} ({points(found)})" if found else f"{100 * against['value']:+.1f}"


def method_tables(contents: Contents) -> list[MethodTable]:
    """Return the tables of the protocols that stand for their task; none where no method has several seeds."""
    found: dict[tuple[str, str], list[Figures]] = {}
    for figure in contents.report.get("seeds", []):
        found.setdefault((figure["data"], figure["protocol"]), []).append(figure)
    tasks = dict.fromkeys(each.task for each in contents.tables)
    shown = [each for task in tasks for each in leading(one for one in contents.tables if one.task == task)]
    return [
        MethodTable(of=each, rows=sorted(found[each.data, each.protocol], key=lambda row: -row["mean"]))
        for each in shown
        if (each.data, each.protocol) in found
    ]


def seeds(contents: Contents) -> str:
    """Return the tables as HTML."""
    return "\n".join(section(each.title, _table(each), level=3) for each in method_tables(contents))


def _table(each: MethodTable) -> str:
    method, num_seeds, features, mean, sd, span, *against = (head[:1].upper() + head[1:] for head in each.heads)
    columns = [
        Column(title=method), number(num_seeds), Column(title=features), number(mean, "descending"), number(sd),
        Column(title=span, kind="num", sort=""), *[Column(title=title, sort="") for title in against],
    ]  # fmt: skip
    return table(columns, [("", _cells(each, row)) for row in each.rows], "figures short")


def _cells(each: MethodTable, row: Figures) -> list[Cell | str]:
    method, num_seeds, features, mean, sd, span, *against = each.cells(row)
    difference = row["against"] and row["against"]["difference"]
    return [
        method, Cell(html=num_seeds, value=row["num_seeds"]), features, Cell(html=mean, value=row["mean"]),
        Cell(html=sd, value=row["sd"]), span, *[pair(difference) if difference else text for text in against],
    ]  # fmt: skip
