"""Methods over their seeds: on the page and in Markdown, and nowhere without several seeds."""

import pytest

from eval.report.contents import contents
from eval.report.markdown import markdown
from eval.report.page import render
from eval.report.seeds import method_tables


def _figure(method, mean, against=None, data="eurosat", protocol="linear", num_seeds=3):
    several = num_seeds > 1
    return {
        "data": data, "protocol": protocol, "method": method, "models": [], "features": "cls", "num_seeds": num_seeds,
        "mean": mean, "sd": 0.0123 if several else None, "lowest": mean - 0.02 * several,
        "highest": mean + 0.01 * several, "against": against,
    }  # fmt: skip


def _against(value, verdict):
    found = {"value": value, "low": value - 0.01, "high": value + 0.01, "verdict": verdict} if verdict else None
    return {"other": "base", "other_seeds": 3, "value": value, "difference": found}


@pytest.fixture
def told(report):
    report["seeds"] = [
        _figure("base", 0.8),
        _figure("pip|ed <b>", 0.85, _against(0.05, "better")),
        _figure("once", 0.7, _against(-0.1, None), num_seeds=1),
    ]
    return report


def test_markdown_has_the_figures_the_best_first(told):
    section = markdown(told).partition("## Over seeds\n")[2].partition("\n## ")[0]
    assert section.partition("### eurosat: linear probe\n\n")[2].strip().splitlines() == [
        "| method | seeds | features | mean, % | SD | lowest … highest | against base, points |",
        "|---|---|---|---|---|---|---|",
        "| pip\\|ed <b> | 3 | cls | 85.0 | 1.2 | 83.0 … 86.0 | better (+5.0 (+4.0 … +6.0)) |",
        "| base | 3 | cls | 80.0 | 1.2 | 78.0 … 81.0 |  |",
        "| once | 1 | cls | 70.0 | – | – | -10.0 |",
    ]
    assert "of training again with other seeds" in section


def test_the_page_has_the_same_between_tables_and_confusions(told):
    page = render(told)
    before, section = page.split('<h2 id="over-seeds">')
    assert '<h2 id="confusion">' not in before
    assert '<h2 id="semantic-segmentation">' in before
    table = section.partition("</table>")[0]
    assert "eurosat: linear probe" in table
    assert "Against base, points" in table
    assert "<td>pip|ed &lt;b&gt;</td>" in table
    for shown in ("85.0</td>", "1.2</td>", "83.0 … 86.0</td>", "▲ better<small>+5.0 (+4.0 … +6.0)", "<td>-10.0</td>"):
        assert shown in table, shown
    assert table.index("pip|ed") < table.index(">base<") < table.index(">once<")
    assert "by Welch&#x27;s t" in before, "the sentences tell where their intervals come from"


def test_without_a_method_to_compare_with_there_is_no_such_column(report):
    report["seeds"] = [_figure("base", 0.8), _figure("other", 0.7)]
    (table,) = method_tables(contents(report))
    assert table.heads[-1] == "lowest … highest"
    assert table.cells(table.rows[1]) == ["other", "3", "cls", "70.0", "1.2", "68.0 … 71.0"]
    assert "Against" not in render(report).partition('<h2 id="over-seeds">')[2].partition("</table>")[0]


def test_tables_are_of_leading_protocols_in_the_order_of_the_report(report):
    places = [("levir", "change_concat_f1"), ("resisc45", "linear"), ("eurosat", "knn_5"), ("eurosat", "linear"),
              ("eurosat", "knn_20")]  # fmt: skip
    report["seeds"] = [_figure("base", 0.8, data=data, protocol=protocol) for data, protocol in places]
    assert [each.title for each in method_tables(contents(report))] == [
        "eurosat: k-NN, k = 20", "eurosat: linear probe", "resisc45: linear probe",
        f"levir: {contents(report).tables[-1].title}",
    ]  # fmt: skip


@pytest.mark.parametrize("more", [{}, {"seeds": []}])
def test_nothing_is_there_without_several_seeds(report, more):
    for text in (render(report | more), markdown(report | more)):
        assert "Over seeds" not in text
        assert "Welch" not in text
