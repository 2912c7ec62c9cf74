import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.pages.figures import told
from pretrain.pages.lines import line_chart, nice_ticks, thin

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


@given(values=st.lists(FINITE, min_size=1, max_size=200), max_points=st.integers(2, 60), data=st.data())
def test_thinning_keeps_order_extremes_and_the_mean(values, max_points, data):
    gaps = data.draw(st.lists(st.integers(1, 50), min_size=len(values), max_size=len(values)))
    steps = np.cumsum(gaps).tolist()
    curve = thin("loss", steps, values, max_points)
    assert 1 <= len(curve.steps) <= max_points or len(curve.steps) == len(values) <= max_points
    assert (np.diff(curve.steps) > 0).all()
    assert (curve.low <= curve.mean + 1e-6).all()
    assert (curve.mean <= curve.high + 1e-6).all()
    assert (curve.low.min(), curve.high.max()) == (min(values), max(values))


def test_a_bin_is_the_mean_of_its_rows():
    curve = thin("loss", [0, 1, 2, 3, 4, 10], [1.0, 3.0, 5.0, 1.0, 0.0, 7.0], max_points=2)
    assert curve.steps.tolist() == [2.0, 10.0]
    assert curve.mean.tolist() == [2.0, 7.0]
    assert curve.low.tolist() == [0.0, 7.0]
    assert curve.high.tolist() == [5.0, 7.0]


@given(low=FINITE, span=st.floats(1e-3, 1e6), at_most=st.integers(3, 8))
def test_ticks_are_few_and_within(low, span, at_most):
    ticks = nice_ticks(low, low + span, at_most)
    assert 1 <= len(ticks) <= at_most
    slack = 1e-6 * max(abs(low), span)
    assert all(low - slack <= tick <= low + span + slack for tick in ticks)


@pytest.mark.parametrize("values", [[5.0], [5.0, 5.0, 5.0], [0.0, 0.0], [-3.0, 2.0, 1.0], [1e-6, 10.0, 1e4]])
@pytest.mark.parametrize("limit", [None, ("ln 8 = 2.08", 2.08)])
@pytest.mark.parametrize("may_be_log", [False, True])
def test_all_is_drawn_within_the_picture(values, limit, may_be_log):
    steps = list(range(1, len(values) + 1))
    curve = thin("grad_norm", steps, values)
    picture = line_chart(
        "title", [curve], (steps[0], steps[-1]), epoch_at=lambda step: step / 3, told=told, limit=limit,
        may_be_log=may_be_log,
    )  # fmt: skip
    assert "nan" not in picture
    drawn = re.findall(r'class="curve curve0" d="M([^"]+)"|cx="([\d.]+)" cy="([\d.]+)"', picture)
    points = [pair.split() for path, *_ in drawn for pair in path.split("L") if pair] or [list(drawn[0][1:])]
    assert len(points) == len(values)
    assert all(0 <= float(x) <= 520 and 0 <= float(y) <= 220 for x, y in points)
    # What is higher stands higher.
    heights = [-float(y) for _, y in points]
    assert np.argsort(heights, kind="stable").tolist() == np.argsort(values, kind="stable").tolist()
    assert (limit is None) == ("ln 8" not in picture)


def test_the_pointer_is_told_the_values():
    curves = [thin("global_cls", [10, 20], [1.5, 2.5]), thin("local_cls", [20], [3.25])]
    picture = line_chart("title", curves, (10, 20), told=told)
    assert re.findall("<title>([^<]*)", picture) == [
        "step 10: global_cls 1.5, local_cls 3.25",
        "step 20: global_cls 2.5, local_cls 3.25",
    ]


def test_what_lies_across_may_be_no_steps():
    picture = line_chart("title", [thin("memory", [32, 64], [1.5, 2.5])], (32, 64), told=told, across="batch")
    assert ">batch<" in picture
    assert "<title>batch 64: memory 2.5" in picture
    assert "step" not in picture


def test_large_steps_are_short():
    picture = line_chart("title", [thin("loss", [1, 10**6], [1.0, 2.0])], (1, 10**6), told=told)
    assert ">200 k<" in picture
    assert ">1 M<" in picture
