import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_ind

from eval.models.record import Record
from eval.results import Row
from eval.seeds import common_name, method_sentences, over_seeds, welch_difference
from eval.statistics import Evidence

FIGURES = st.lists(st.integers(0, 1000).map(lambda number: number / 1000), min_size=2, max_size=6)


def _row(model, value, features="cls", validation: float | None = 0.5, protocol="linear", step=9, data="d"):
    return Row(
        task="t", data=data, data_digest="0", split_digest="1", model=model, model_digest=model, normalisation="model",
        step=step, samples_seen=None, protocol=protocol, features=features, metric="accuracy", value=value, low=0.0,
        high=1.0, num_train=2, num_test=1, num_draws=1000, seed=0, seconds=1.0, detail={"validation": validation},
        predictions=None, evidence=Evidence(metric="accuracy", units=np.ones(1)),
    )  # fmt: skip


def _over_seeds(rows, baseline=None, **seeds):
    """Each model "NAME-SEED" is of method NAME, in a run of its own name; `seeds` says which seeds are others."""
    runs = {row.model: f"/runs/{row.model.partition(' step')[0]}" for row in rows if "-" in row.model}
    records = {
        model: Record(method=run.rpartition("/")[2].rpartition("-")[0], seed=seeds.get(run[-1], ord(run[-1])))
        for model, run in runs.items()
    }
    return over_seeds(rows, runs, records, baseline)


def _rows(**values):
    return [_row(f"{name}-{seed}", value) for name, found in values.items() for seed, value in enumerate(found)]


def test_a_method_has_the_mean_and_the_spread_of_its_runs():
    rows = [*_rows(base=[0.5, 0.75, 0.25], other=[0.75, 0.5], one=[0.5]), _row("floor:x", 0.1), _row("timm:y", 0.2)]
    base, other, one = _over_seeds(rows)
    assert (base.method, base.models, base.num_seeds) == ("base", ("base-0", "base-1", "base-2"), 3)
    assert (base.mean, base.sd, base.lowest, base.highest, base.against) == (0.5, 0.25, 0.25, 0.75, None)
    assert (other.method, other.num_seeds, other.against.other, other.against.other_seeds) == ("other", 2, "base", 3)
    assert other.against.value == other.against.difference.value == 0.125
    # One run has a figure and no interval.
    assert (one.method, one.mean, one.sd, one.against.value, one.against.difference) == ("one-0", 0.5, None, 0.0, None)


def test_nothing_is_told_where_no_method_has_several_seeds():
    assert _over_seeds(_rows(a=[0.5], b=[0.6])) == []
    assert _over_seeds([_row("timm:a", 0.5), _row("timm:b", 0.6)]) == []
    twice = [_row("a-0", 0.5), _row("a-1", 0.6)]
    assert _over_seeds(twice, **{"1": ord("0")}) == [], "the same seed twice is one seed"
    assert len(_over_seeds(twice)) == 1


@pytest.mark.parametrize(
    ("baseline", "other"), [(None, "b"), ("b-1", "b"), ("c-0", "c"), ("a-0", "a-0"), ("timm:x", None)]
)
def test_methods_are_compared_with_the_baseline_s_or_else_the_first_of_several_seeds(baseline, other):
    rows = [_row("timm:x", 0.5), *_rows(a=[0.5], b=[0.6, 0.7], c=[0.2, 0.3])]
    figures = _over_seeds(rows, baseline)
    assert {f.against.other for f in figures if f.against} == ({other} if other else set())
    assert len([f for f in figures if f.against is None]) == (1 if other else 3), "none with itself"


def test_features_are_of_one_kind_chosen_by_the_mean_on_validation_and_never_by_test():
    rows = [
        _row("a-0", 0.1, "cls", 0.9), _row("a-0", 0.8, "mean", 0.7), _row("a-0", 0.9, "both", 0.8),
        _row("a-1", 0.2, "cls", 0.5), _row("a-1", 0.9, "mean", 0.6), _row("a-1", 0.9, "both", 0.6),
    ]  # fmt: skip
    (figure,) = _over_seeds(rows)
    assert (figure.features, figure.lowest, figure.highest) == ("cls", 0.1, 0.2), "the first of equals"
    rows[3] = _row("a-1", 0.2, "cls", 0.4)
    assert _over_seeds(rows)[0].features == "both"
    rows[4:] = []
    assert _over_seeds(rows)[0].features == "cls", "what both runs have"
    bare = [_row(f"a-{seed}", 0.5, kind, None) for seed in (0, 1) for kind in ("mean", "cls")]
    assert _over_seeds(bare)[0].features == "mean"


def test_the_newest_export_stands_for_a_run_and_a_run_that_is_behind_is_apart():
    rows = [_row(f"a-{seed} step {step}", step / 100, step=step) for seed in (0, 1) for step in (10, 20)]
    (figure,) = _over_seeds(rows, "a-0 step 10")
    assert (figure.models, figure.mean) == (("a-0 step 20", "a-1 step 20"), 0.2)
    whole, behind = _over_seeds([*rows, _row("a-2 step 10", 0.1, step=10)])
    assert (whole.method, whole.num_seeds, behind.method, behind.num_seeds) == ("a", 2, "a-2", 1)
    rows += [_row(f"a-{seed} step 10", 0.1, step=10) for seed in (2, 3)]
    assert [f.method for f in _over_seeds(rows)] == ["a-0 step 20", "a-2 step 10"], "names stay apart"


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["jan/vitb-0", "jan/vitb-1", "feb/vitb-0", "feb/vitb-1"], ["jan/vitb", "feb/vitb"]),
        (["0/vitb", "1/vitb", "0/cnn", "1/cnn"], ["vitb", "cnn"]),
        (["base/0", "base/1", "wide/0", "wide/1"], ["base", "wide"]),
        (["base/seed0/vitb", "base/seed1/vitb", "wide/seed0/vitb", "wide/seed1/vitb"], ["base", "wide"]),
        (["jan/vitb", "jun/vitb", "mar/vitb", "may/vitb"], ["jan/vitb", "mar/vitb"]),
        (["x/jan/vitb", "x/jun/vitb", "x/mar/vitb", "x/may/vitb"], ["jan/vitb", "mar/vitb"]),
        (["x/a/1/vitb", "x/a/2/vitb", "y/a/1/vitb", "y/a/2/vitb"], ["x/a", "y/a"]),
    ],
)
def test_methods_whose_runs_have_one_folder_name_are_told_apart(paths, names):
    """Two methods of two seeds each."""
    rows = [_row(f"{path} step 9", place / 10) for place, path in enumerate(paths)]
    runs = {row.model: f"s3://bucket/runs/{path}" for row, path in zip(rows, paths, strict=True)}
    records = {row.model: Record(method="ab"[place // 2], seed=place % 2) for place, row in enumerate(rows)}
    figures = over_seeds(rows, runs, records)
    assert [(figure.method, figure.num_seeds) for figure in figures] == [(name, 2) for name in names]
    assert [figure.models for figure in figures] == [tuple(r.model for r in rows[:2]), tuple(r.model for r in rows[2:])]


def test_every_protocol_and_data_set_has_its_own_figures():
    rows = [
        _row(f"a-{seed}", 0.5 + seed / 10 + place / 4, protocol=protocol, data=data)
        for seed in (0, 1) for place, (data, protocol) in enumerate((("d", "linear"), ("d", "knn_20"), ("e", "linear")))
    ]  # fmt: skip
    assert [(f.data, f.protocol, round(f.lowest, 9)) for f in _over_seeds(rows)] == [
        ("d", "linear", 0.5), ("d", "knn_20", 0.75), ("e", "linear", 1.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("runs", "name"),
    [
        (["default-0", "default-1"], "default"),
        (["base-9", "base-10", "base-11"], "base"),
        (["base-10", "base-11"], "base"),
        (["vit16_seed_0", "vit16_seed_1"], "vit16"),
        (["a.seed1", "a.seed2"], "a"),
        (["seed1", "seed2"], "seed1"),
        (["first", "second"], "first"),
        (["alone-3"], "alone-3"),
    ],
)
def test_a_method_is_called_what_its_runs_names_begin_with(runs, name):
    assert common_name(runs) == name


@pytest.mark.filterwarnings("ignore:Precision loss:RuntimeWarning")
@given(FIGURES, FIGURES)
def test_the_interval_is_welch_s(first, second):
    found = welch_difference(first, second)
    if len(set(first)) == len(set(second)) == 1:
        assert found is None
        return
    expected = ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-9)
    assert found.low <= found.value <= found.high
    assert found.verdict == ("better" if found.low > 0 else "worse" if found.high < 0 else "no difference")


def test_where_nothing_varies_there_is_no_interval():
    assert welch_difference([0.1, 0.1, 0.1], [0.3, 0.3]) is None
    assert welch_difference([0.1], [0.3, 0.4]) is None
    assert welch_difference([0.3, 0.4], [0.1]) is None
    assert welch_difference([0.1, 0.1], [0.3, 0.4]) is not None


@given(FIGURES, FIGURES, st.randoms())
def test_the_order_of_runs_does_not_matter(first, second, draw):
    rows = _rows(a=first, b=second)
    figures = {f.method: f for f in _over_seeds(rows, "a-0")}
    draw.shuffle(rows)
    for f in _over_seeds(rows, "a-0"):
        before = figures[f.method]
        assert sorted(f.models) == sorted(before.models)
        for name in ("method", "num_seeds", "mean", "sd", "lowest", "highest", "against"):
            assert getattr(f, name) == getattr(before, name)


@given(FIGURES, FIGURES, st.integers(-1000, 1000).map(lambda number: number / 1000))
def test_a_shift_of_all_figures_of_a_method_shifts_its_difference_alone(first, second, shift):
    before, after = (_over_seeds(_rows(a=first, b=[v + by for v in second]))[1].against for by in (0.0, shift))
    assert after.value == pytest.approx(before.value + shift)
    # What did not vary may do so in the last bit, shifted.
    if before.difference is not None and len(set(second)) > 1:
        width = before.difference.high - before.difference.low
        assert after.difference.high - after.difference.low == pytest.approx(width)


def test_sentences_are_of_headlines_and_need_an_interval():
    rows = [*_rows(base=[0.5, 0.51], good=[0.7, 0.71], like=[0.5, 0.52, 0.51], one=[0.9])]
    rows += [_row(row.model, row.value, protocol="knn_5") for row in rows]
    said = method_sentences(_over_seeds(rows))
    difference = welch_difference([0.7, 0.71], [0.5, 0.51])
    span = f"({100 * difference.low:+.1f} … {100 * difference.high:+.1f})"
    assert len(said) == 2
    assert said[0] == f"On d, over 2 seeds each, good is better than base: +20.0 points {span}, linear probe."
    assert said[1].startswith("On d, over 3 and 2 seeds, like shows no difference from base: +0.5 points (-")
