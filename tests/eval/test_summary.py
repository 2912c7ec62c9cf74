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
        task="t", data="d", data_digest="0", split_digest="1", model=model, model_digest=model, step=None,
        samples_seen=None, protocol=protocol, features=features, metric="accuracy", value=float(scores.mean()),
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
