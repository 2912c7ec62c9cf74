"""The report: `results.json`, `report.md` and one self-contained `report.html`, all from the same figures.

Functions from figures to text; `write_report` alone touches storage.
"""

import json
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from eval.protocols import TITLES
from shards import storage

Figures = dict[str, Any]


def write_report(report: Figures, out: str) -> None:
    """Write the three files below `out`, the page last."""
    storage.write_bytes(storage.join(out, "results.json"), (json.dumps(report, indent=1) + "\n").encode())
    storage.write_bytes(storage.join(out, "report.md"), markdown(report).encode())
    storage.write_bytes(storage.join(out, "report.html"), html(report).encode())


def percent(value: float) -> str:
    """Return a share 0…1 as the reports write it, in percent with one decimal."""
    return f"{100 * value:.1f}"


def sections(report: Figures) -> list[tuple[str, str, list[Figures]]]:
    """Return (data, protocol, rows) of each table of the report, best rows first."""
    groups: dict[tuple[str, str], list[Figures]] = {}
    for row in report["rows"]:
        groups.setdefault((row["data"], row["protocol"]), []).append(row)
    order = list(TITLES)
    names = [data["name"] for data in report["data"]]
    keys = sorted(groups, key=lambda key: (names.index(key[0]), -order.index(key[1])))
    return [(data, protocol, sorted(groups[data, protocol], key=lambda row: -row["value"])) for data, protocol in keys]


def floor_verdicts(report: Figures, row: Figures) -> list[Figures]:
    """Return the comparisons of a row's model and features with the floors."""
    names = ("data", "protocol", "model", "features")
    return [c for c in report["comparisons"] if c["other_is_floor"] and all(c[name] == row[name] for name in names)]


def markdown(report: Figures) -> str:
    """Return the tables and verdicts as Markdown."""
    lines = ["# What the backbones are worth", "", *[f"- {sentence}" for sentence in report["verdicts"]], ""]
    for data, protocol, rows in sections(report):
        lines += [f"## {data}: {TITLES[protocol]}", "", "| model | features | accuracy, % | 95 % interval | floors |",
                  "|---|---|---|---|---|"]  # fmt: skip
        for row in rows:
            verdicts = "; ".join(f"{c['verdict']} ({c['other']})" for c in floor_verdicts(report, row))
            interval = f"{percent(row['low'])} … {percent(row['high'])}"
            lines.append(f"| {row['model']} | {row['features']} | {percent(row['value'])} | {interval} | {verdicts} |")
        lines.append("")
    for data in report["data"]:
        lines += [f"Data {data['name']}: {data['num_images']} images, {len(data['rejected'])} left out, "
                  f"digest {data['digest']}, split {data['split_digest']}", ""]  # fmt: skip
    return "\n".join([*lines, f"`{report['command']}`", "", f"{report['hardware']}, {report['started']}", ""])


def html(report: Figures) -> str:
    """Return the page; it refers to nothing outside itself."""
    template = Template(files("eval").joinpath("report.html").read_text(encoding="utf-8"))
    kinds = {model["name"]: model["kind"] for model in report["models"]}
    return template.substitute(
        lead=_lead(report),
        verdicts=_verdicts(report),
        tables="\n".join(_table(report, kinds, *section) for section in sections(report)),
        confusions="\n".join(_confusion(confusion) for confusion in report["confusions"]),
        models=_models(report),
        data="\n".join(_data(data) for data in report["data"]),
        command=escape(report["command"]),
        hardware=escape(report["hardware"]),
        started=escape(report["started"]),
        seconds=f"{report['seconds']:.0f}",
        versions=escape(", ".join(f"{name} {version}" for name, version in report["versions"].items())),
        draws=f"{report['config']['num_draws']:,}",
    )


def _lead(report: Figures) -> str:
    floors = sum(model["kind"] == "floor" for model in report["models"])
    backbones, data = len(report["models"]) - floors, len(report["data"])
    return (
        f"{_count(backbones, 'backbone')} and {_count(floors, 'floor')} on {_count(data, 'data set')}, "
        f"{len(report['rows'])} figures"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _verdicts(report: Figures) -> str:
    if not report["verdicts"]:
        return "<p>Only floors were evaluated: add a backbone to compare.</p>"
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in report["verdicts"]) + "</ul>"


def _table(report: Figures, kinds: dict[str, str], data: str, protocol: str, rows: list[Figures]) -> str:
    body = "\n".join(_row(report, kinds[row["model"]], row) for row in rows)
    num = f"{rows[0]['num_train']:,} training and {rows[0]['num_test']:,} test images"
    return f"""<section><h3>{escape(TITLES[protocol])} <small>{escape(data)}, {num}</small></h3>
<div class="scroll"><table class="figures"><thead><tr><th>Model</th><th>Features</th><th class="num">Accuracy, %</th>
<th class="num">95 % interval</th><th class="bar"><span>0</span><span>50</span><span>100</span></th>
<th>Against floors</th></tr></thead>
<tbody>{body}</tbody></table></div></section>"""


def _row(report: Figures, kind: str, row: Figures) -> str:
    low, high, value = (100 * row[name] for name in ("low", "high", "value"))
    chips = " ".join(_chip(comparison) for comparison in floor_verdicts(report, row))
    bar = f'<i style="left:{low:.2f}%;width:{high - low:.2f}%"></i><b style="left:{value:.2f}%"></b>'
    return (
        f'<tr class="{kind}"><td>{escape(row["model"])}</td><td>{escape(row["features"])}</td>'
        f'<td class="num">{percent(row["value"])}</td>'
        f'<td class="num">{percent(row["low"])} … {percent(row["high"])}</td>'
        f'<td class="bar"><div>{bar}</div></td><td>{chips}</td></tr>'
    )


def _chip(comparison: Figures) -> str:
    signs = {"better": "▲", "worse": "▼", "no difference": "="}
    floor = comparison["other"].removeprefix("floor:").partition("=")[0]
    detail = f"{100 * comparison['value']:+.1f} ({100 * comparison['low']:+.1f} … {100 * comparison['high']:+.1f})"
    return (
        f'<span class="chip {comparison["verdict"].partition(" ")[0]}" title="{detail} points">'
        f"{signs[comparison['verdict']]} {escape(comparison['verdict'])} <small>{escape(floor)} {detail}</small></span>"
    )


def _confusion(confusion: Figures) -> str:
    classes = confusion["classes"]
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in classes)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(_cell(n, sum(row), i == j) for j, n in enumerate(row))}</tr>'
        for i, (name, row) in enumerate(zip(classes, confusion["counts"], strict=True))
    )
    title = f"{confusion['model']} on {confusion['data']}: {TITLES[confusion['protocol']]}, {confusion['features']}"
    return (
        f"<section><h3>{escape(title)}</h3>"
        f'<div class="scroll"><table class="confusion"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></section>"
    )


def _cell(count: int, total: int, right: bool) -> str:
    share = count / total if total else 0.0
    kind = "hit" if right else "miss"
    strong = " strong" if share > 0.55 else ""
    return f'<td class="{kind}{strong}" style="--share:{100 * share:.0f}%">{count or ""}</td>'


def _models(report: Figures) -> str:
    rates: dict[str, list[str]] = {}
    for cost in report["costs"]:
        rates.setdefault(cost["model"], []).append(f"{cost['images_per_s']:,.0f} ({escape(cost['data'])})")
    return "".join(
        f"<tr><td>{escape(m['name'])}</td><td>{escape(m['description'])}</td>"
        f'<td class="num">{m["image_px"] or "as it is"}</td><td class="num">{"<br>".join(rates[m["name"]])}</td>'
        f"<td><code>{m['digest'][:16]}</code></td></tr>"
        for m in report["models"]
    )


def _data(data: Figures) -> str:
    rejected = "".join(
        f"<li><code>{escape(item['path'])}</code>: {escape(item['reason'])}</li>" for item in data["rejected"]
    )
    left_out = f"<details open><summary>{len(data['rejected'])} left out</summary><ul>{rejected}</ul></details>"
    return (
        f"<dt>{escape(data['name'])}</dt><dd>{data['num_images']:,} images, {len(data['classes'])} classes, "
        f"{escape(data['dtype'])} {escape(', '.join(data['bands']))}; from <code>{escape(data['url'])}</code><br>"
        f"content <code>{data['digest']}</code><br>split <code>{data['split_digest']}</code>"
        f"{left_out if rejected else ''}</dd>"
    )
