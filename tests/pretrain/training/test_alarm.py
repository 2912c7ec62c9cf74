import pytest

from pretrain.training.alarm import ROWS, Alarm, symptoms

HEALTHY = {
    "step": 100,
    "global_cls": 2.0,
    "local_cls": 3.0,
    "teacher_entropy": 3.0,
    "teacher_diversity": 4.0,
    "feature_spread": 0.7,
    "feature_rank": 30.0,
}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"teacher_entropy": 6.93}, "teacher_uniform"),
        ({"global_cls": 2.9, "local_cls": 4.02}, "student_uniform"),
        ({"teacher_diversity": 0.01}, "teacher_constant"),
        ({"feature_spread": 0.001}, "features_alike"),
        ({"feature_rank": 1.1}, "features_alike"),
    ],
)
def test_each_symptom_is_named_with_its_figure_and_a_remedy(changes, name):
    assert symptoms(HEALTHY, 1024) == {}
    found = symptoms({**HEALTHY, **changes}, 1024)
    assert list(found) == [name]
    assert any(f"{value:.3f}" in found[name] or f"{value:.1f}" in found[name] for value in changes.values()) or (
        "6.920" in found[name]
    )
    assert "schedule." in found[name]


def test_what_lasts_is_told_once_and_again_when_it_comes_back():
    alarm = Alarm(1024, first_step=100)
    sick = {**HEALTHY, "feature_rank": 1.0}
    looks = [alarm.look(sick) for _ in range(ROWS + 3)]
    assert [count for count, _ in looks] == [0] * (ROWS - 1) + [1] * 4
    assert [len(texts) for _, texts in looks] == [0] * (ROWS - 1) + [1, 0, 0, 0]
    assert alarm.look(HEALTHY) == (0, [])
    assert [len(alarm.look(sick)[1]) for _ in range(ROWS)] == [0] * (ROWS - 1) + [1]


def test_the_warm_up_is_left_in_peace():
    alarm = Alarm(1024, first_step=101)
    assert [alarm.look({**HEALTHY, "feature_rank": 1.0}) for _ in range(2 * ROWS)] == [(0, [])] * 2 * ROWS
