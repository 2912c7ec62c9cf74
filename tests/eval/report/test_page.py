"""The page in a real browser: no error, pictures loaded, sorting works, the same figures as everywhere else."""

import json
import re
from pathlib import Path

import pytest

from eval.report.contents import percent
from eval.report.markdown import markdown
from eval.report.page import render, write_report

FIGURES = """return [...document.querySelectorAll("table.full")].flatMap(
  table => [...table.tBodies[0].rows].map(row => [...row.cells].slice(0, 4).map(cell => cell.textContent)))"""
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&$name ${body}"


def _figures(report):
    shown = ("model", "features")
    return sorted(
        [*(row[name] for name in shown), percent(row["value"]), f"{percent(row['low'])} … {percent(row['high'])}"]
        for row in report["rows"]
    )


def test_opens_without_a_console_message(opened):
    assert opened.get_log("browser") == []
    assert opened.title == "What the backbones are worth"


def test_console_messages_would_show(browser, tmp_path):
    # The logs of a page that asks for something outside, which the policy forbids.
    page = tmp_path / "page.html"
    page.write_text(
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'"><img src="http://a.test/">'
    )
    browser.get(page.as_uri())
    assert browser.get_log("browser")


def test_pictures_are_loaded(opened, report):
    widths = opened.execute_script("return [...document.images].map(image => image.complete && image.naturalWidth)")
    # Those of earlier steps are left out.
    assert len(widths) == len([each for each in report["pictures"] if "step 20000" not in each["model"]]) > 0
    assert all(widths)


def test_shows_the_figures_of_the_results(opened, report, tmp_path):
    assert sorted(opened.execute_script(FIGURES)) == _figures(report)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results == json.loads(json.dumps(report))
    lines = [line.strip("| ").split(" | ") for line in (tmp_path / "report.md").read_text().splitlines()]
    assert sorted(line[:4] for line in lines if len(line) > 3 and " … " in line[3]) == _figures(report)


def test_heads_sort_by_click_and_key(opened):
    from selenium.webdriver.common.keys import Keys

    table = next(each for each in opened.find_elements("css selector", "table.full") if each.is_displayed())
    model, features, value = table.find_elements("css selector", "th[data-sort]")
    rows = lambda place: opened.execute_script(  # noqa: E731
        "return [...arguments[0].tBodies[0].rows].map(row => row.cells[arguments[1]].textContent)", table, place
    )
    best_first = [float(text) for text in rows(2)]
    assert value.get_attribute("aria-sort") == "descending"
    assert best_first == sorted(best_first, reverse=True)
    value.click()
    assert value.get_attribute("aria-sort") == "ascending"
    assert [float(text) for text in rows(2)] == best_first[::-1]
    value.click()
    assert [float(text) for text in rows(2)] == best_first
    model.send_keys(Keys.ENTER)
    assert (model.get_attribute("aria-sort"), value.get_attribute("aria-sort")) == ("ascending", None)
    assert rows(0) == sorted(rows(0), key=str.lower)
    features.send_keys(Keys.SPACE)
    features.send_keys(Keys.SPACE)
    assert features.get_attribute("aria-sort") == "descending"
    assert rows(1) == sorted(rows(1), key=str.lower, reverse=True)


def test_what_has_no_figure_is_sorted_last(opened):
    table = next(each for each in opened.find_elements("css selector", "table.classes") if "–" in each.text)
    head = table.find_elements("css selector", "th.num")[0]
    for _ in range(2):
        head.click()
        last = opened.execute_script("return [...arguments[0].tBodies[0].rows].at(-1).cells[1].textContent", table)
        assert last == "–"


def test_folded_tables_are_open_on_paper(opened):
    closed = "return [...document.querySelectorAll('details:not([open]) table')].map(table => table.checkVisibility())"
    assert set(opened.execute_script(closed)) == {False}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    on_paper = opened.execute_script(closed)
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert set(on_paper) == {True}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_both_schemes(opened, scheme):
    opened.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    script = """const style = getComputedStyle(arguments[0]); return [style.color, style.backgroundColor]"""
    ink, paper = opened.execute_script(script, opened.find_element("css selector", "body"))
    ink, paper = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper))
    assert (paper > 600 > 200 > ink) if scheme == "light" else (ink > 600 > 200 > paper)


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_sticks_out_of_the_window(opened, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wide = opened.execute_script("return document.documentElement.scrollWidth")
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide <= width


def test_links_lead_to_their_sections(opened):
    links = [link.get_attribute("href").partition("#")[2] for link in opened.find_elements("css selector", "nav a")]
    assert {"scene-classification", "metric-against-step", "pictures", "cost"} <= set(links)
    assert all(len(opened.find_elements("id", link)) == 1 for link in links)


def test_refers_to_nothing_outside_itself(report):
    page = render(report)
    assert not re.search(r"https?://|<link|@import|url\(", page)
    assert set(re.findall(r'src="(.{11})', page)) == {"data:image/"}


def test_is_safe_with_hostile_names(browser, make_report, tmp_path):
    report = make_report(HOSTILE)
    write_report(report, str(tmp_path))
    browser.get((tmp_path / "report.html").as_uri())
    assert browser.get_log("browser") == []
    assert len(browser.find_elements("css selector", "script")) == 1
    assert sorted(browser.execute_script(FIGURES)) == _figures(report)


def test_takes_a_report_with_the_least_that_is_needed():
    row = {"data": "d", "model": "m", "protocol": "linear", "features": "cls", "value": 0.5, "low": 0.4, "high": 0.6,
           "chosen": True}  # fmt: skip
    page = render({"models": [{"name": "m"}], "data": [{"name": "d"}], "rows": [row]})
    assert "40.0 … 60.0" in page
    assert "Pictures" not in page


def test_names_that_are_no_unicode_are_written(report, tmp_path: Path):
    report["data"][0]["rejected"][0]["path"] = "bad\udcff.png"
    write_report(report, str(tmp_path))
    assert "bad\\udcff.png" in (tmp_path / "report.html").read_text()


def test_tells_cost_and_origin(report):
    page = render(report)
    for told in ("900", "ab" * 32, "cd" * 32, "Forest/bad.png", "truncated", report["command"], "2.9.1", "split.kind"):
        assert told in page, told
    for model in report["models"]:
        assert model["digest"] in page


def test_tells_what_training_cost(report):
    page, text = render(report), markdown(report)
    assert "<h3>Training</h3>" in page
    training = re.findall(r"pera-s step 40000</td>(.*?)</tr>", page.partition("<h3>Training</h3>")[2])[0]
    assert re.findall(r'data-value="([\d.]+)"', training) == ["40000", "20480000", "1234.5", str(40777 << 20)]
    assert "| pera-s step 40000 | 40,000 | 20,480,000 | 1,234.5 | 40,777 |" in text
    for model in report["models"]:
        model["training"] = None
    assert "| pera-s step 40000 | 40,000 | 20,480,000 | – | – |" in markdown(report)
    assert "Samples seen" in render(report)
    for model in report["models"]:
        model["step"] = None
    assert "Samples seen" not in render(report)
    assert "samples seen" not in markdown(report)


def test_tells_by_what_inputs_are_normalised(report):
    assert "mean 0.485, 0.456, 0.406; std 0.229, 0.224, 0.225" in render(report)
    report["config"]["normalisation"] = "dataset"
    report["data"][0]["training_mean"] = [0.25, 0.5, 0.125]
    page = render(report)
    assert "mean 0.485" not in page
    assert "<td>by the data</td>" in page
    assert "[0.25, 0.5, 0.125]" in page


def test_time_of_rows_that_were_made_together_counts_once(report):
    for row in report["rows"]:
        row["seconds"] = 7.25 if row["protocol"].startswith("knn") else 20.0
    report["costs"] = [{"model": "floor:image_stats", "data": "eurosat", "images_per_s": 100.0}]
    assert '<td class="num" data-value="27.25">27</td>' in render(report)


def test_verdicts_on_earlier_exports_are_folded_away(report):
    report["verdicts"] = [
        "On d, pera-s step 40000 is better than timm:vit_small: x",
        "On d, pera-s step 20000 is worse",
    ]
    report["verdicts"].append("On d, pera-s step 40000 is better than pera-s step 10000: y")
    before, after = render(report).split("Earlier exports")
    assert report["verdicts"][0] in before
    assert all(text in after for text in report["verdicts"][1:])


def test_a_verdict_is_on_an_earlier_export_by_its_whole_name(report):
    """Whether its name ends, or begins, as another does."""
    said = "On d, {} is better than floor:image_stats: x"
    names = [("vitb", 20), ("vitb", 200), ("jan/vitb", 20), ("my vitb", 20)]
    report["models"] = [{"name": f"{run} step {step}", "run_name": run, "step": step} for run, step in names]
    report["verdicts"] = [said.format(model["name"]) for model in report["models"]]
    before, after = render(report).split("Earlier exports")
    assert [text in before for text in report["verdicts"]] == [False, True, True, True]
    assert report["verdicts"][0] in after
