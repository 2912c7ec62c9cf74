"""The report as Markdown: the same figures as the page, for a terminal, a wiki or a diff."""

from eval.report.contents import Contents, Figures, Table, contents, has_places, interval, percent, points
from eval.report.markup import count
from eval.report.seeds import LEAD, method_tables


def markdown(report: Figures) -> str:
    """Return verdicts, all tables, and where the figures come from."""
    index = contents(report)
    lines = ["# What the backbones are worth", "", *[f"- {_plain(text)}" for text in report.get("verdicts", [])], ""]
    for each in index.tables:
        lines += [*_table(index, each), ""]
    lines += _seeds(index)
    lines += ["## Where the figures come from", "", *_models(report), "", *_data(report), ""]
    if report.get("costs"):
        lines += [*_costs(report), ""]
    if training := _training(report):
        lines += [*training, ""]
    versions = ", ".join(f"{name} {version}" for name, version in report.get("versions", {}).items())
    closing = ", ".join(filter(None, (str(report.get(name, "")) for name in ("hardware", "started"))))
    return "\n".join([*lines, f"    {report.get('command', '')}", "", closing, "", versions, ""])


def _table(index: Contents, each: Table) -> list[str]:
    heads = ["model", "features", f"{each.metric.lower()}, %", "95 % interval", "floors"]
    heads += [f"against {_plain(index.baseline)}"] if index.baseline else []
    lines = [f"## {_plain(each.data)}: {each.title}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in each.rows:
        found = index.against(row)
        floors = "; ".join(
            f"{one['verdict']} ({_plain(one['other'])} {points(one)})" for one in found if one["other"] in index.floors
        )
        cells = [_plain(row["model"]), _plain(row["features"]), percent(row["value"]), interval(row), floors]
        if index.baseline:
            cells.append("; ".join(f"{o['verdict']} ({points(o)})" for o in found if o["other"] == index.baseline))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _seeds(index: Contents) -> list[str]:
    lines = ["## Over seeds", "", LEAD, ""]
    tables = method_tables(index)
    for each in tables:
        rows = [each.heads, *[each.cells(row) for row in each.rows]]
        head, *body = [f"| {' | '.join(map(_plain, row))} |" for row in rows]
        lines += [f"### {_plain(each.title)}", "", head, "|---" * len(each.heads) + "|", *body, ""]
    return lines if tables else []


def _models(report: Figures) -> list[str]:
    rows = [
        f"| {_plain(model['name'])} | {_plain(str(model.get('description', '')))} | {model.get('digest', '')} |"
        for model in report["models"]
    ]
    return ["| model | what it is | digest |", "|---|---|---|", *rows]


def _data(report: Figures) -> list[str]:
    return [f"Data {_plain(data['name'])}: {', '.join(_data_figures(data))}" for data in report["data"]]


def _data_figures(data: Figures) -> list[str]:
    unlisted, incomplete = (data.get(f"images_{name}") for name in ("in_no_part_of_the_split", "with_missing_values"))
    return [
        count(data.get("num_images", 0), "image"),
        f"{len(data.get('rejected') or [])} left out as unreadable",
        *([f"{unlisted:,} others in no part of the split that came with the data"] if unlisted else []),
        *([f"{incomplete:,} with values that are NaN or infinite"] if incomplete else []),
        *([f"intervals over its {data['test_places']:,} test places"] if has_places(data) else []),
        f"digest {data.get('digest', '')}",
        f"split {data.get('split_digest', '')}",
    ]


def _costs(report: Figures) -> list[str]:
    rows = [
        f"| {_plain(each['model'])} | {_plain(each['data'])} | {each.get('images_per_s') or 0:,.1f} | "
        f"{(each.get('memory_bytes') or 0) / 2**20:,.0f} |"
        for each in report["costs"]
    ]
    return ["| model | data | images/s | peak memory, MiB |", "|---|---|---|---|", *rows]


def _training(report: Figures) -> list[str]:
    told = [model for model in report["models"] if model.get("step") is not None or model.get("training")]
    rows = []
    for model in told:
        found = model.get("training") or {}
        rate, memory = found.get("samples_per_s"), found.get("memory_bytes")
        cells = [
            _plain(model["name"]),
            *["–" if number is None else f"{number:,}" for number in map(model.get, ("step", "samples_seen"))],
            "–" if rate is None else f"{rate:,.1f}",
            "–" if memory is None else f"{memory / 2**20:,.0f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    head = "| model | step | samples seen | training, samples/s | training, peak memory, MiB |"
    return [head, "|---|---|---|---|---|", *rows] if rows else []


def _plain(text: str) -> str:
    """Return a text that cannot end a table's cell or its line."""
    return " ".join(text.replace("|", "\\|").split())
