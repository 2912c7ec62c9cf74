"""results.parquet, results.json, report.md and report.html of a real evaluation tell the same figures."""

import json
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from eval.__main__ import main
from eval.report.contents import title_of


class _Tables(HTMLParser):
    """The cells of a page's tables, by the table's class and by heading; data-value where a cell has one."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[str, str, str, list[str]]] = []
        self._kind, self._titles, self._cells, self._text = "", {"h3": "", "h4": ""}, [], None

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self._kind = dict(attributes).get("class") or ""
        elif tag == "tr":
            self._cells = []
        elif tag in ("td", "h3", "h4"):
            self._text = []
        elif tag == "small" and self._text is not None:
            self._text.append("\n")

    def handle_endtag(self, tag):
        if tag in ("h3", "h4") and self._text is not None:
            self._titles[tag] = "".join(self._text).strip().split("\n")[0].strip()
        elif tag == "td" and self._text is not None:
            self._cells.append("".join(self._text).strip())
        elif tag == "tr" and self._cells:
            self.rows.append((self._kind, self._titles["h3"], self._titles["h4"], self._cells))
        if tag in ("td", "h3", "h4"):
            self._text = None

    def handle_data(self, data):
        if self._text is not None:
            self._text.append(data)


@pytest.fixture
def out(tmp_path: Path, write_export, write_classes, write_masks) -> Path:
    """An evaluation of two backbones and a floor on data of two kinds, one class with a damaged image."""
    classes = write_classes(tmp_path / "classes", num_images=40)
    (classes / "class_1" / "image_5.png").write_bytes(b"no image")
    models = [write_export(tmp_path / "a|b"), write_export(tmp_path / "c", step=7), "floor:image_stats"]
    data = [f"classes={classes}", f"masks={write_masks(tmp_path / 'masks', num_images=8)}"]
    flags = ["--floors", "false", "--protocols", "knn", "segmentation", "--baseline", str(models[0])]
    assert main(["--models", *map(str, models), "--data", *data, "--out", str(tmp_path / "out"), *flags]) == 0
    return tmp_path / "out"


def _figures(rows):
    """Return {(data, title, model, features): (percent, interval)} as the reports write them."""
    return {
        (row["data"], title_of(row["protocol"]), row["model"], row["features"]): (
            f"{100 * row['value']:.1f}", f"{100 * row['low']:.1f} … {100 * row['high']:.1f}",
        )
        for row in rows
    }  # fmt: skip


def _of_markdown(text: str):
    found, data, title = {}, "", ""
    for line in text.splitlines():
        if line.startswith("## ") and ": " in line:
            data, title = line.removeprefix("## ").split(": ", 1)
        cells = [cell.strip().replace("\\|", "|") for cell in line.replace("\\|", "\0").split("|")][1:-1]
        cells = [cell.replace("\0", "|") for cell in cells]
        if len(cells) == 6 and " … " in cells[3]:
            found[data, title, cells[0], cells[1]] = (cells[2], cells[3])
    return found


def test_all_four_tell_the_same(out: Path):
    report = json.loads((out / "results.json").read_text())
    table = pq.read_table(out / "results.parquet").to_pylist()
    text, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    _check_rows(report, table)
    _check_tables(table, text, page)
    _check_comparisons(report, text, page)
    (rejected,) = report["data"][0]["rejected"]
    assert rejected["path"] in page
    assert rejected["reason"] in unescape(page)


def _check_rows(report, table):
    by_key = {(row["data"], row["model"], row["protocol"], row["features"]): row for row in report["rows"]}
    assert len(by_key) == len(table) == len(report["rows"]) == 2 * (3 * 3 + 2) + 3 + 2
    for row in table:
        told = by_key[row["data"], row["model"], row["protocol"], row["features"]]
        assert json.loads(row["detail"]) == told["detail"]
        for name in set(row) - {"detail", "predictions", "evidence"}:
            assert row[name] == told[name], name


def _check_tables(table, text: str, page: str):
    expected = _figures(table)
    assert _of_markdown(text) == expected
    tables = _Tables()
    tables.feed(page)
    full = {(data, title, *cells[:2]): tuple(cells[2:4]) for kind, data, title, cells in tables.rows if "full" in kind}
    assert full == expected


def _check_comparisons(report, text: str, page: str):
    assert report["baseline"] == "a|b step 100"
    assert {one["other"] for one in report["comparisons"]} == {"a|b step 100", "floor:image_stats"}
    assert report["verdicts"]
    for sentence in report["verdicts"]:
        assert f"- {sentence}".replace("|", "\\|") in text
        assert sentence in page
    for one in report["comparisons"]:
        points = f"{100 * one['value']:+.1f} ({100 * one['low']:+.1f} … {100 * one['high']:+.1f})"
        assert points in text
