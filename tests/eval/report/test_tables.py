import pytest

from eval.report.contents import contents
from eval.report.tables import bar_span, full_tables, short_table

CHOICES = {"better": (0.02, 0.01, 0.03), "worse": (-0.02, -0.03, -0.01), "no difference": (0.001, -0.01, 0.01)}


def _index(verdicts, value=0.9, baseline=None):
    """Return a report of backbone a at 0.8 and b, which has been compared with a and with two floors."""
    rows = [
        {"task": "t", "data": "d", "protocol": "linear", "model": model, "features": "cls", "value": figure,
         "low": figure - 0.01, "high": figure + 0.01, "metric": "accuracy", "chosen": True}
        for model, figure in {"a": 0.8, "b": value, "floor:x": 0.3, "floor:y": 0.4}.items()
    ]  # fmt: skip
    compared = [
        {"data": "d", "protocol": "linear", "model": "b", "features": "cls", "other": other, "other_features": "cls",
         "verdict": verdict} | dict(zip(("value", "low", "high"), CHOICES[verdict], strict=True))
        for other, verdict in verdicts.items()
    ]  # fmt: skip
    models = [{"name": row["model"], "kind": "floor" if ":" in row["model"] else "export"} for row in rows]
    report = {"models": models, "data": [{"name": "d"}], "rows": rows, "comparisons": compared, "baseline": baseline}
    return contents(report)


def test_the_best_is_bold_with_what_shows_no_difference_from_it():
    index = _index({"a": "no difference"}, value=0.81)
    assert short_table(index, index.tables).count("<b>") == 2
    index = _index({"a": "better"})
    assert short_table(index, index.tables).count("<b>") == 1
    # Overlapping intervals without a comparison say nothing.
    index = _index({}, value=0.801)
    assert short_table(index, index.tables).count("<b>") == 1


def test_equal_verdicts_against_floors_are_one_line_with_the_nearest():
    index = _index({"floor:x": "better", "floor:y": "better"})
    assert "better <small>than all 2 +2.0 (+1.0 … +3.0)" in full_tables(index, index.tables)
    index = _index({"floor:x": "no difference", "floor:y": "no difference"})
    assert "no difference <small>from all 2" in full_tables(index, index.tables)
    index = _index({"floor:x": "better", "floor:y": "worse"})
    page = full_tables(index, index.tables)
    assert "better <small>x +2.0" in page
    assert "worse <small>y -2.0" in page


@pytest.mark.parametrize(("value", "sign"), [(0.9, "▲ better<small>+2.0"), (0.7, "▼ worse<small>-2.0")])
def test_backbones_are_shown_against_each_other(value, sign):
    index = _index({"a": "better"}, value)
    page = full_tables(index, index.tables)
    # The better one stands in the row: where b has the smaller figure, a's side of the comparison is shown.
    assert sign in page
    assert page.count('class="pairs"') == 1


@pytest.mark.parametrize(("verdict", "sign"), [("better", "▲"), ("worse", "▼"), ("no difference", "=")])
def test_backbones_are_shown_against_the_baseline(verdict, sign):
    index = _index({"a": verdict, "floor:x": "better"}, baseline="a")
    short = short_table(index, index.tables)
    assert short.count('class="sign') == 1, "of b alone: neither the baseline nor floors have one"
    assert f'aria-label="{verdict}, a ' in short
    assert f">{sign}</span>" in short
    full = full_tables(index, index.tables)
    assert f"{verdict} <small>baseline " in full
    pairs = full.partition('class="pairs"')[2]
    assert "against a, cls" in pairs
    assert "<td>b, cls</td>" in pairs
    assert f"{sign} {verdict}<small>" in pairs
    assert 'class="sign' not in short_table(_index({"a": verdict}), _index({"a": verdict}).tables)


@pytest.mark.parametrize(
    ("low", "high", "span"),
    [
        (0.42, 0.88, (40, 90)),
        (0.97, 0.99, (80, 100)),
        (0.0, 0.05, (0, 20)),
        (0.0, 1.0, (0, 100)),
        (0.51, 0.55, (50, 70)),
    ],
)
def test_bars_have_an_axis_of_tens(low, high, span):
    assert bar_span([{"low": low, "high": high, "value": (low + high) / 2}]) == span
