import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.masks import SetSizes, draw_patch_sets, set_sizes


@pytest.mark.parametrize(
    ("num_patches", "student", "learnable", "teacher"),
    [(784, 157, 157, 470), (36, 7, 7, 22), (9, 2, 2, 5), (64, 13, 13, 38)],
)
def test_sizes_are_the_published_ones(num_patches, student, learnable, teacher):
    expected = SetSizes(student=student, learnable=learnable, teacher=teacher)
    assert set_sizes(num_patches, 0.2, 0.6) == expected


@given(st.integers(4, 900), st.floats(0.05, 0.5), st.floats(0.05, 0.9), st.integers(0, 9), st.text(max_size=8))
def test_sets_are_disjoint_and_cover_all(num_patches, student, teacher, epoch, key):
    try:
        sizes = set_sizes(num_patches, student, teacher)
    except ValueError:
        assert round(num_patches * student) < 1 or student + teacher > 0.5 or num_patches * teacher < 1.5
        return
    sets = draw_patch_sets(sizes, 1, epoch, key, "global0")
    parts = [sets.student, sets.learnable, sets.teacher]
    assert [len(part) for part in parts] == [sizes.student, sizes.learnable, sizes.teacher]
    assert sorted(np.concatenate(parts).tolist()) == list(range(num_patches))
    assert all((np.diff(part) > 0).all() for part in parts)


@pytest.mark.parametrize(("student", "teacher"), [(0.0, 0.6), (0.2, 0.0), (0.6, 0.6), (0.2, 1.0)])
def test_impossible_ratios_are_refused(student, teacher):
    with pytest.raises(ValueError, match=r"masks\.student"):
        set_sizes(36, student, teacher)


def test_every_part_of_the_key_matters():
    sizes = set_sizes(64, 0.2, 0.6)
    keys = [(0, 0, "a", "global0"), (1, 0, "a", "global0"), (0, 1, "a", "global0"), (0, 0, "b", "global0")]
    keys.append((0, 0, "a", "global1"))
    drawn = {draw_patch_sets(sizes, *key).student.tobytes() for key in keys}
    assert len(drawn) == len(keys)
    assert draw_patch_sets(sizes, *keys[0]).student.tobytes() in drawn


def test_each_patch_is_equally_likely():
    sizes = set_sizes(36, 0.2, 0.6)
    counts = np.zeros(36)
    for i in range(3000):
        counts[draw_patch_sets(sizes, 0, 0, str(i), "local0").student] += 1
    # Binomial: mean 583, standard deviation 21.
    assert abs(counts - 3000 * 7 / 36).max() < 5 * 21.7
