import re

import numpy as np

from eval.results import Row
from eval.statistics import Evidence
from eval.summary import chosen_rows, compare_all, confusions, sentences
from shards.keyed import generator

N = 400
TRUTH = np.arange(N) % 2


def _row(model, features="cls", right=0.8, validation: float | None = 0.5, protocol="linear"):
    draw = generator("test", model, features)
    predictions = np.where(draw.random(N) < right, TRUTH, 1 - TRUTH)
    scores = (predictions == TRUTH).astype(float)
    return Row(
        task="t", data="d", data_digest="0", split_digest="1", model=model, model_digest=model,
        normalisation="model", step=None, samples_seen=None,
        protocol=protocol, features=features, metric="accuracy", value=float(scores.mean()),
        low=0.0, high=1.0, num_train=2, num_test=N, num_draws=1000, seed=0, seconds=1.0,
        detail={"validation": validation}, predictions=predictions, evidence=Evidence(metric="accuracy", units=scores),
    )  # fmt: skip


def test_features_are_chosen_by_validation_and_never_by_test():
    rows = [
        _row("a", "cls", right=0.6, validation=0.9),
        _row("a", "patch_mean", right=0.95, validation=0.7),
        _row("b", "cls", validation=None),
        _row("b", "patch_mean", right=0.99, validation=None),
    ]
    assert [(row.model, row.features) for row in chosen_rows(rows)] == [("a", "cls"), ("b", "cls")]


def test_comparisons_are_with_the_other_s_chosen_features_and_sentences_of_the_chosen():
    rows = [
        _row("a", "cls", right=0.9, validation=0.6),
        _row("a", "patch_mean", right=0.9, validation=0.8),
        _row("floor:x", "stats", right=0.6),
    ]
    comparisons = compare_all(rows, {"floor:x"}, {})
    assert [(c.features, c.other, c.other_features, c.chosen) for c in comparisons] == [
        ("cls", "floor:x", "stats", False), ("patch_mean", "floor:x", "stats", True),
    ]  # fmt: skip
    (sentence,) = sentences(comparisons)
    assert sentence.startswith("On d, a is better than floor:x: +")
    assert sentence.endswith("linear probe on patch_mean against stats features.")


def test_exports_of_a_run_are_compared_in_a_chain():
    """The number of comparisons grows with that of the exports, not with its square."""
    models = ["other", *(f"run step {step}" for step in range(4)), "floor:x"]
    runs = dict.fromkeys(models[1:5], "run")
    comparisons = compare_all([_row(model) for model in models], {"floor:x"}, runs)
    pairs = [(c.model, c.other) for c in comparisons]
    assert pairs == [
        ("other", "floor:x"),
        ("run step 0", "floor:x"),
        ("run step 1", "floor:x"), ("run step 1", "run step 0"),
        ("run step 2", "floor:x"), ("run step 2", "run step 1"),
        ("run step 3", "floor:x"), ("run step 3", "other"), ("run step 3", "run step 2"),
    ]  # fmt: skip


def _pairs(models, runs, baseline):
    comparisons = compare_all([_row(model) for model in models], {"floor:x"}, runs, baseline)
    return [(c.model, c.other) for c in comparisons if c.other != "floor:x"]


def test_with_a_baseline_all_others_are_compared_with_it_alone():
    models = ["a", "b", "c", "floor:x"]
    assert _pairs(models, {}, None) == [("b", "a"), ("c", "a"), ("c", "b")]
    assert _pairs(models, {}, "b") == [("a", "b"), ("c", "b")]
    comparisons = compare_all([_row(model) for model in models], {"floor:x"}, {}, "b")
    assert [c.model for c in comparisons if c.other_is_floor] == ["a", "b", "c"], "floors as without one"


def test_earlier_exports_stay_compared_with_the_one_before_under_a_baseline():
    exports = [f"run step {step}" for step in range(4)]
    runs = dict.fromkeys(exports, "run")
    chain = [("run step 1", "run step 0"), ("run step 2", "run step 1"), ("run step 3", "run step 2")]
    assert _pairs(["other", *exports, "floor:x"], runs, "other") == [*chain[:2], ("run step 3", "other"), chain[2]]
    assert _pairs([*exports, "other", "floor:x"], runs, "run step 3") == [*chain, ("other", "run step 3")]
    # An export that is not the last may be the baseline, too.
    assert _pairs([*exports, "other", "floor:x"], runs, "run step 1") == [
        *chain[:2], ("run step 3", "run step 1"), chain[2], ("other", "run step 1"),
    ]  # fmt: skip


def test_floors_are_told_in_one_sentence_for_each_protocol():
    rows = [_row("a", right=0.9), *(_row(f"floor:{name}", "stats", right=0.6) for name in "xyz")]
    rows += [_row("a", right=0.9, protocol="knn_20"), _row("floor:x", "stats", right=0.6, protocol="knn_20")]
    comparisons = compare_all(rows, {"floor:x", "floor:y", "floor:z"}, {})
    linear, knn = sentences(comparisons)
    nearest = min((c for c in comparisons if c.protocol == "linear"), key=lambda c: c.difference.value)
    d = nearest.difference
    assert linear == (
        f"On d, a is better than all 3 floors, nearest {nearest.other}: {100 * d.value:+.1f} points "
        f"({100 * d.low:+.1f} … {100 * d.high:+.1f}); linear probe on cls features."
    )
    assert knn.startswith("On d, a is better than floor:x: +")


def test_floors_of_several_verdicts_are_named_by_verdict():
    rows = [_row("a", right=0.8), _row("floor:x", "stats", right=0.6)]
    rows += [_row("floor:y", "stats", right=0.95), _row("floor:z", "stats", right=0.61)]
    (sentence,) = sentences(compare_all(rows, {"floor:x", "floor:y", "floor:z"}, {}))
    number = r"[+-]\d+\.\d"
    span = rf"\({number} … {number}\)"
    assert re.fullmatch(
        rf"On d, a is better than floor:x: {number} points {span}, floor:z: {number} {span}, and is worse than "
        rf"floor:y: {number} points {span}; linear probe on cls features\.",
        sentence,
    )


def test_sentences_come_in_the_order_of_the_models():
    rows = [_row(model) for model in ("run step 1000", "run step 20", "a", "floor:x")]
    said = sentences(compare_all(rows, {"floor:x"}, {}))
    assert [text.split(",")[1].split(" is ")[0].split(" shows ")[0] for text in said] == [
        " run step 1000", *2 * [" run step 20"], *3 * [" a"],
    ]  # fmt: skip


def test_confusions_are_of_the_chosen_features_under_the_first_headline():
    rows = [
        _row("a", protocol="knn_20"),
        _row("a", "cls", validation=0.9),
        _row("a", "patch_mean", right=1.0, validation=0.1),
        _row("floor:x", "stats"),
    ]
    (found,) = confusions(rows, {"d": TRUTH}, {"d": ("no", "yes")}, {"floor:x"})
    assert (found.model, found.protocol, found.features) == ("a", "linear", "cls")
    assert np.trace(found.counts) == rows[1].value * N
    (alone,) = confusions(rows[3:], {"d": TRUTH}, {"d": ("no", "yes")}, {"floor:x"})
    assert alone.figures()["counts"] == alone.counts.tolist()
