import re
from itertools import pairwise
from xml.etree import ElementTree

from eval.report.charts import chart_files, series, step_chart, step_charts
from eval.report.contents import Table, contents


def _row(step, value, features="cls", run="run"):
    return {"task": "t", "data": "d", "protocol": "linear", "model": f"{run} step {step}", "features": features,
            "value": value, "low": value - 0.1, "high": value + 0.1, "step": step, "metric": "accuracy"}  # fmt: skip


def _series(rows):
    """Return the series of rows whose runs are what their models' names begin with."""
    models = [{"name": row["model"], "run_name": row["model"].split(" step")[0]} for row in rows]
    index = contents({"models": models, "data": [{"name": "d"}], "rows": rows})
    return series(index, Table(task="t", data="d", protocol="linear", rows=rows))


def test_a_series_is_a_run_with_one_kind_of_features():
    rows = [_row(20, 0.5), _row(10, 0.4), _row(10, 0.3, "mean"), _row(20, 0.4, "mean"), _row(5, 0.5, run="other")]
    rows.append(_row(1, 0.5, run="timm") | {"step": None})
    found = _series(rows)
    assert [one.name for one in found] == ["run, cls", "run, mean"]
    assert [row["step"] for row in found[0].rows] == [10, 20]


def test_runs_of_one_folder_name_are_two_series():
    rows = [_row(step, 0.5, run=run) for step in (1, 2) for run in ("jan/vitb", "feb/vitb")]
    assert [(one.name, len(one.rows)) for one in _series(rows)] == [("feb/vitb, cls", 2), ("jan/vitb, cls", 2)]


def test_many_curves_are_cut_to_the_chosen_features():
    rows = [
        _row(step, 0.5, features, run) | {"chosen": features == "b"}
        for step in (1, 2) for features in "abc" for run in ("r", "s", "t")
    ]  # fmt: skip
    assert [one.name for one in _series(rows)] == ["r, b", "s, b", "t, b"]


def test_places_go_by_step_and_value():
    found = _series([_row(0, 0.2), _row(500, 0.4), _row(1000, 0.6)])
    chart = step_chart("t", found, [_row(0, 0.2) | {"model": "floor:image_stats"}])
    x, y = zip(
        *[map(float, place) for place in re.findall(r'<circle class="dot0" cx="(.*?)" cy="(.*?)"', chart)], strict=True
    )
    assert abs((x[1] - x[0]) - (x[2] - x[1])) < 0.2
    assert abs((y[1] - y[0]) - (y[2] - y[1])) < 0.2
    assert y[0] > y[2]
    assert [float(at) for at in re.findall(r'class="level" d="M\d+ (.*?)H', chart)] == [y[0]]
    ticks = re.findall(r'text-anchor="(?:middle|end)">([\d,]+)</text>', chart)
    assert {"0", "200", "1,000"} <= set(ticks)


def test_names_of_close_floors_do_not_lie_on_each_other():
    floors = [_row(0, value) | {"model": f"floor:{value}"} for value in (0.300, 0.301, 0.302, 0.5)]
    chart = step_chart("t", _series([_row(0, 0.2), _row(1, 0.9)]), floors)
    heights = sorted(float(y) for y in re.findall(r'y="([\d.]+)" text-anchor="end">0\.', chart))
    assert len(heights) == 4
    assert min(b - a for a, b in pairwise(heights)) >= 11.9


def test_a_report_without_steps_has_no_chart(report):
    assert "<svg" in step_charts(contents(report))
    for row in report["rows"]:
        row["step"] = None
    assert step_charts(contents(report)) == ""


def test_files_hold_the_charts_of_the_page(report):
    page, found = step_charts(contents(report)), chart_files(contents(report))
    assert len(found) == page.count("<svg")
    for svg in found.values():
        places = re.findall(r'<path class="(curve curve\d|level)" d="(.*?)"', svg)
        assert places
        assert all(place in re.findall(r'<path class="(curve curve\d|level)" d="(.*?)"', page) for place in places)
        names = [each.text for each in ElementTree.fromstring(svg).iterfind("{*}text")]
        assert len(names) == 1 + svg.count('class="curve ')


def test_a_file_opens_in_a_browser(browser, report, tmp_path):
    for name, svg in chart_files(contents(report)).items():
        path = tmp_path / f"{name}.svg"
        path.write_text(svg)
        browser.get(path.as_uri())
        assert browser.get_log("browser") == []
        colour = browser.execute_script("return getComputedStyle(document.querySelector('.curve0')).stroke")
        assert colour in ("rgb(31, 111, 139)", "rgb(93, 179, 207)")
