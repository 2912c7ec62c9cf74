import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.training.schedules import cosine, linear, parse_duration, to_steps, warmup_cosine


@pytest.mark.parametrize(
    ("text", "steps"),
    [("2 epochs", 20), ("1 epoch", 10), ("7 steps", 7), ("1e3 samples", 10), ("25 %", 50), ("0.5 epochs", 5)],
)
def test_durations_become_steps(text, steps):
    assert to_steps(text, num_samples=1000, global_batch=100, length=200) == steps


@pytest.mark.parametrize("text", ["", "10", "ten epochs", "-1 epochs", "5 weeks", "1 epoch later"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="no duration"):
        parse_duration(text)


def test_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="length of the run"):
        to_steps("10 %", num_samples=10, global_batch=1)


@given(st.floats(-5, 5), st.floats(-5, 5), st.integers(2, 1000))
def test_cosine_meets_its_ends_and_stays_between(start, end, num_steps):
    values = [cosine(step, start, end, num_steps) for step in range(num_steps + 3)]
    assert values[0] == pytest.approx(start)
    assert values[num_steps - 1 :] == pytest.approx([end] * 4)
    assert all(min(start, end) - 1e-9 <= value <= max(start, end) + 1e-9 for value in values)


def test_warmup_rises_to_the_peak_and_falls_to_the_end():
    values = [warmup_cosine(step, 1.0, 0.1, 4, 10) for step in range(10)]
    assert values[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert values[4:] == sorted(values[4:], reverse=True)
    assert values[-1] == pytest.approx(0.1)


def test_linear_warms_up_then_stays():
    assert [linear(step, 0.03, 0.05, 4) for step in (0, 2, 4, 9)] == pytest.approx([0.03, 0.04, 0.05, 0.05])
    assert linear(0, 0.03, 0.05, 0) == 0.05
