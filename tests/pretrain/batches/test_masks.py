import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.batches.masks import SetSizes, draw_patch_sets, set_sizes


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
    sets = draw_patch_sets(sizes, [(1, epoch, key), (1, epoch, "other")], "global", 2)
    parts = [sets.student_NP, sets.learnable_NP, sets.teacher_NP]
    assert [part.shape for part in parts] == [(4, sizes.student), (4, sizes.learnable), (4, sizes.teacher)]
    assert (np.sort(np.concatenate(parts, axis=1), axis=1) == np.arange(num_patches)).all()
    assert all((np.diff(part, axis=1) > 0).all() for part in parts)
    assert all(part.dtype == np.int64 for part in parts)


@pytest.mark.parametrize(("student", "teacher"), [(0.0, 0.6), (0.2, 0.0), (0.6, 0.6), (0.2, 1.0)])
def test_impossible_ratios_are_refused(student, teacher):
    with pytest.raises(ValueError, match=r"masks\.student"):
        set_sizes(36, student, teacher)


def test_every_part_of_the_key_matters():
    sizes = set_sizes(64, 0.2, 0.6)
    visits = [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b")]
    drawn = np.concatenate([draw_patch_sets(sizes, visits, size, 2).student_NP for size in ("global", "local")])
    assert len({row.tobytes() for row in drawn}) == 2 * len(visits) * 2


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 3))
def test_neither_other_samples_nor_later_views_matter(num_views, more, place):
    sizes = set_sizes(36, 0.2, 0.6)
    visits = [(5, 2, key) for key in "abcd"]
    together = draw_patch_sets(sizes, visits, "local", num_views + more)
    alone = draw_patch_sets(sizes, visits[place : place + 1], "local", num_views)
    for name, rows in vars(alone).items():
        assert (rows == getattr(together, name)[place :: len(visits)][:num_views]).all()


def test_each_patch_is_equally_likely():
    sizes, num_samples = set_sizes(36, 0.2, 0.6), 1500
    sets = draw_patch_sets(sizes, [(0, 0, str(i)) for i in range(num_samples)], "local", 2)
    for view in (0, 1):
        rows = slice(view * num_samples, (view + 1) * num_samples)
        for part in vars(sets).values():
            share = part.shape[1] / 36
            spread = (num_samples * share * (1 - share)) ** 0.5  # binomial
            counts = np.bincount(part[rows].ravel(), minlength=36)
            assert abs(counts - num_samples * share).max() < 5 * spread


def test_pairs_of_patches_are_equally_likely():
    # Chi-square over all ways to choose two of five: 10 cells, 9 degrees of freedom, mean 9, standard deviation 4.2.
    sizes = SetSizes(student=2, learnable=1, teacher=2)
    sets = draw_patch_sets(sizes, [(3, 0, str(i)) for i in range(4000)], "global", 1)
    for pairs_N2 in (sets.student_NP, sets.teacher_NP):
        counts = np.unique(pairs_N2 @ np.array([5, 1]), return_counts=True)[1]
        assert len(counts) == 10
        assert ((counts - 400) ** 2 / 400).sum() < 27.9  # exceeded by chance once in a thousand times
