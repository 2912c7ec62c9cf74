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
    expected = SetSizes(patches=num_patches, student=student, learnable=learnable, teacher=teacher)
    assert set_sizes(num_patches, 0.2, 0.6) == expected


@given(st.integers(4, 900), st.floats(0.05, 0.5), st.floats(0.05, 0.9), st.integers(0, 9), st.text(max_size=8))
def test_sets_are_disjoint_and_cover_all(num_patches, student, teacher, epoch, key):
    try:
        sizes = set_sizes(num_patches, student, teacher)
    except ValueError:
        assert round(num_patches * student) < 1 or student + teacher > 0.5
        return
    sets = draw_patch_sets(sizes, [(1, epoch, key), (1, epoch, "other")], "global", 2)
    parts = [sets.student_NP, sets.learnable_NP, sets.teacher_NP]
    assert [part.shape for part in parts] == [(4, sizes.student), (4, sizes.learnable), (4, sizes.teacher)]
    assert (np.sort(np.concatenate(parts, axis=1), axis=1) == np.arange(num_patches)).all()
    assert all((np.diff(part, axis=1) > 0).all() for part in parts)
    assert all(part.dtype == np.int64 for part in parts)


@pytest.mark.parametrize(("student", "teacher"), [(0.0, 0.6), (0.6, 0.6), (0.2, 1.0), (0.2, 1.1)])
def test_impossible_ratios_are_refused(student, teacher):
    with pytest.raises(ValueError, match=r"masks\.student"):
        set_sizes(36, student, teacher)


@pytest.mark.parametrize("learnable", [-0.1, 0.3, 0.9])
def test_what_is_predicted_must_fit_beside_the_others(learnable):
    with pytest.raises(ValueError, match=r"masks\.learnable"):
        set_sizes(64, 0.2, 0.6, learnable)


@pytest.mark.parametrize(
    ("teacher", "learnable", "expected"), [(0.6, 0.0, (13, 0, 38)), (0.3, 0.2, (13, 13, 19)), (0.6, 0.2, (13, 13, 38))]
)
def test_some_patches_may_go_to_nobody(teacher, learnable, expected):
    sizes = set_sizes(64, 0.2, teacher, learnable)
    assert (sizes.student, sizes.learnable, sizes.teacher) == expected
    sets = draw_patch_sets(sizes, [(0, 0, "a")], "global", 1)
    drawn = np.concatenate(list(vars(sets).values()), axis=1)
    assert len(np.unique(drawn)) == drawn.size == sum(expected)


def test_independent_sets_overlap_by_chance_alone():
    disjoint, independent = set_sizes(64, 0.2, 0.6), set_sizes(64, 0.2, 0.6, independent=True)
    visits = [(0, 0, str(i)) for i in range(3000)]
    ours, theirs = (draw_patch_sets(sizes, visits, "global", 1) for sizes in (disjoint, independent))
    # The student is given the same, so that two runs differ in nothing but the teacher's patches.
    assert (ours.student_NP == theirs.student_NP).all()
    assert (ours.learnable_NP == theirs.learnable_NP).all()
    assert ours.teacher_NP.shape == theirs.teacher_NP.shape
    common = [len(np.intersect1d(*pair)) for pair in zip(theirs.student_NP, theirs.teacher_NP, strict=True)]
    # Hypergeometric: mean 13 · 38 / 64, variance 13 · 38/64 · 26/64 · 51/63.
    assert abs(np.mean(common) - 13 * 38 / 64) < 5 * (13 * 38 / 64 * 26 / 64 * 51 / 63 / 3000) ** 0.5


def test_independent_teacher_may_see_all():
    sizes = set_sizes(64, 0.2, 1.0, 0.2, independent=True)
    assert (draw_patch_sets(sizes, [(0, 0, "a")], "global", 2).teacher_NP == np.arange(64)).all()
    with pytest.raises(ValueError, match=r"masks\.learnable"):
        set_sizes(64, 0.2, 1.0, independent=True)


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
    sizes = SetSizes(patches=5, student=2, learnable=1, teacher=2)
    sets = draw_patch_sets(sizes, [(3, 0, str(i)) for i in range(4000)], "global", 1)
    for pairs_N2 in (sets.student_NP, sets.teacher_NP):
        counts = np.unique(pairs_N2 @ np.array([5, 1]), return_counts=True)[1]
        assert len(counts) == 10
        assert ((counts - 400) ** 2 / 400).sum() < 27.9  # exceeded by chance once in a thousand times
