"""The report: `results.json`, `report.md` and one self-contained `report.html`, all from the same figures.

Where a run has several exports, the curves are in `charts/DATA-PROTOCOL.svg`, too.

Functions from figures to text; `write_report` alone touches storage. The page refers to nothing outside itself and
works without its script, which sorts tables. It costs about 50 µs a row, and has 1 kB a row and the pictures' size.
"""

import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template

from eval.report.charts import chart_files, charts_style, step_charts
from eval.report.classes import class_figures, confusions
from eval.report.contents import Contents, Figures, contents, has_places, percent
from eval.report.markdown import markdown
from eval.report.markup import anchor, count, folded, section
from eval.report.origin import costs, data_sets, facts, models, provenance, training
from eval.report.pictures import shown
from eval.report.seeds import LEAD, seeds
from eval.report.tables import full_tables, short_table
from shards import storage

__all__ = ["Figures", "percent", "render", "write_report"]

_PAIRED = (
    "Paired bootstrap on the same test images: better or worse where the interval of the difference leaves out zero."
)
_MEANS = " Over seeds: the interval of the difference of two means, by Welch's t."
_CHOSEN = (
    "Percent. Bold is the best of a column, and each that a paired comparison does not tell from it. Of each model the "
    "kind of features that does best on validation images; of a run its newest export."
)
_BASELINE = (
    " Backbones are compared with {baseline} and with floors, not with each other: ▲ better, ▼ worse, = no difference."
)
_CONFUSION = (
    "Rows are true classes, columns predicted ones: counts of test images, or shares of a class's pixels. Of each run "
    "the newest export."
)
_COST = "Images/s: reading, decoding and the forward pass. Protocols: all fits and searches on the features."


def write_report(report: Figures, out: str) -> None:
    """Write the files below `out`, the page last.

    Args:
        report: what `eval.evaluate.evaluate` returns.
        out: folder or URL; existing files are replaced.
    """
    storage.write_bytes(storage.join(out, "results.json"), (json.dumps(report, indent=1) + "\n").encode())
    storage.write_bytes(storage.join(out, "report.md"), _encoded(markdown(report)))
    for name, chart in chart_files(contents(report)).items():
        storage.write_bytes(storage.join(out, "charts", f"{name}.svg"), _encoded(chart))
    storage.write_bytes(storage.join(out, "report.html"), _encoded(render(report)))


def _encoded(text: str) -> bytes:
    # Names that were no UTF-8 arrive as lone surrogates, which no page can hold.
    return text.encode("utf-8", "backslashreplace")


def render(report: Figures) -> str:
    """Return the page.

    Args:
        report: `models`, `data` and `rows` must be there, each row `chosen` or not; what else is missing is left out
            of the page.
    """
    index = contents(report)
    template = Template(files("eval.report").joinpath("page.html").read_text(encoding="utf-8"))
    parts = {
        "In words": (_verdicts(index), _PAIRED + _MEANS * bool(report.get("seeds"))),
        **_tasks(index),
        "Over seeds": (seeds(index), LEAD),
        "Metric against step": (step_charts(index), "Bands are 95 % intervals, broken lines floors."),
        "Confusion": (confusions(index), _CONFUSION),
        "Class by class": (class_figures(index), ""),
        "Pictures": (shown(index), ""),
        "Cost": (costs(index) + training(index), _COST),
        "Where the figures come from": (models(index) + data_sets(index) + provenance(index), ""),
    }
    body = "\n".join(section(title, html, lead=lead) for title, (html, lead) in parts.items() if html)
    return template.substitute(
        charts_style=charts_style(),
        lead=_lead(index),
        facts=_facts(index),
        body=body,
        links=_links(title for title in parts if parts[title][0]),
    )


def _links(titles: Iterable[str]) -> str:
    return "".join(f'<a href="#{anchor(title)}">{escape(title)}</a>' for title in titles)


def _lead(index: Contents) -> str:
    num_floors = len(index.floors)
    backbones = count(len(index.report["models"]) - num_floors, "backbone")
    return (
        f"{backbones} and {count(num_floors, 'floor')} on {count(len(index.report['data']), 'data set')}. "
        f"Every figure has a 95 % bootstrap interval over the test images{_over_places(index.report['data'])}."
    )


def _over_places(data: Sequence[Figures]) -> str:
    """Say of which data sets whole places are drawn."""
    told = [f"{each['name']}, over its {each['test_places']:,} test places" for each in data if has_places(each)]
    return f"; of {', of '.join(told)}" if told else ""


def _facts(index: Contents) -> str:
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in facts(index).items() if text
    )


def _verdicts(index: Contents) -> str:
    verdicts = index.report.get("verdicts", [])
    if not verdicts:
        return "<p>There is nothing to compare: add a backbone and a floor.</p>"
    # Names begin here after a space and end with a space, a colon or a full stop: step 20 is not meant by step 200. The
    # longest that fits is meant: vitb step 20 is not by jan/vitb step 20, nor by my vitb step 20.
    names = sorted((model["name"] for model in index.report["models"]), key=len, reverse=True)
    named = re.compile(rf"(?<= )(?:{'|'.join(map(re.escape, names))})(?=[ :.])")
    earlier = _earlier(index)
    is_old = [not earlier.isdisjoint(named.findall(each)) for each in verdicts]
    first, rest = ([each for each, old in zip(verdicts, is_old, strict=True) if old is told] for told in (False, True))
    more = folded("Earlier exports", _list(rest), is_open=not first) if rest else ""
    return (_list(first) if first else "") + more


def _earlier(index: Contents) -> set[str]:
    """Return the exports that a later one of their run overtakes."""
    return {model["name"] for model in index.report["models"]} - index.newest


def _list(texts: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def _tasks(index: Contents) -> dict[str, tuple[str, str]]:
    """Return HTML and lead of each task, by its title: its short table, then all rows by data set and protocol."""
    found = {}
    for task in dict.fromkeys(each.task for each in index.tables):
        tables = [each for each in index.tables if each.task == task]
        body = short_table(index, tables) + full_tables(index, tables)
        lead = _CHOSEN + (_BASELINE.format(baseline=index.baseline) if index.baseline else "")
        found[task[:1].upper() + task[1:] or "Figures"] = (body, lead)
    return found
