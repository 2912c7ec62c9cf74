import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.pages.figures import MEANINGS, SECTIONS, read_columns, scaled, told


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("data_wait_share", 0.1312, "13.1 %"),
        ("memory_bytes", 71.2e9, "71.2 GB"),
        ("bytes_used", 999_960, "1 MB"),
        ("bytes_used", 0, "0 B"),
        ("flops_per_s", 3.14e14, "314 T"),
        ("samples", 12800.0, "12,800"),
        ("lr", 0.0005, "0.0005"),
        ("loss", 5.331062, "5.331"),
        ("koleo", -0.5, "-0.5"),
    ],
)
def test_figures_have_their_units(name, value, text):
    assert told(name, value) == text


@given(value=st.floats(1.0, 1e17))
def test_scaled_is_the_value(value):
    number, _, sign = scaled(value, 3).partition(" ")
    assert math.isclose(float(number) * 1000.0 ** " kMGTP".index(sign or " "), value, rel_tol=0.0051)


def test_columns_hold_finite_numbers_only():
    rows = [
        {"step": 1, "loss": 2.0, "alarm": "text", "flag": True, "bad": math.nan},
        {"step": 2, "late": 1, "loss": None, "bad": math.inf},
        {"step": 3, "late": 1, "loss": 3},
    ]
    columns = read_columns(rows)
    assert {name: (column.steps, column.values) for name, column in columns.items()} == {
        "step": ([1, 2, 3], [1, 2, 3]),
        "loss": ([1, 3], [2, 3]),
        "late": ([2, 3], [1, 1]),
    }
    assert [columns[name].is_constant for name in ("loss", "late")] == [False, True]


def test_each_figure_stands_in_one_chart_and_has_a_meaning():
    names = [name for charts in SECTIONS.values() for chart in charts for name in chart.names]
    assert len(names) == len(set(names))
    assert set(names) <= MEANINGS.keys()
