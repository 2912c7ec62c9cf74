from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity

from eval.data.split import TEST
from eval.protocols import knn
from eval.protocols.retrieval import RETRIEVAL, average_precision, gallery, retrieve
from eval.protocols.task import standardised


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10**6), st.integers(1, 80), st.booleans())
def test_average_precision_is_scikit_learn_s_also_in_ties(seed, num_archive, whole_numbers):
    draw = np.random.default_rng(seed)
    similarities = draw.integers(-3, 3, num_archive) / 3 if whole_numbers else draw.normal(size=num_archive)
    similarities = similarities.astype(np.float32)
    relevant = draw.random(num_archive) < 0.3
    relevant[draw.integers(num_archive)] = True
    expected = average_precision_score(relevant, similarities)
    assert average_precision(similarities, relevant) == pytest.approx(expected, abs=1e-12)


def test_nothing_relevant_is_zero():
    assert average_precision(np.ones(4, np.float32), np.zeros(4, bool)) == 0


@pytest.mark.parametrize("standardise", [False, True])
def test_figures_are_scikit_learn_s_on_real_features(eurosat_task, standardise):
    task = replace(eurosat_task, standardise=standardise)
    outcomes = RETRIEVAL.run(task)
    (bank, labels), (queries, truth) = task.bank, task.test
    if standardise:
        bank, queries = standardised(bank, queries)
    similarities = cosine_similarity(queries, bank)
    expected = [average_precision_score(labels == own, row) for own, row in zip(truth, similarities, strict=True)]
    mean = outcomes["retrieval_map"]
    assert mean.metric == mean.evidence.metric == "average_precision"
    np.testing.assert_allclose(mean.evidence.units, expected, atol=2e-3)
    assert mean.evidence.units.mean() == pytest.approx(np.mean(expected), abs=1e-5)
    first = np.argsort(-similarities, axis=1)[:, :10]
    precision = (labels[first] == truth[:, None]).mean(axis=1)
    differing = outcomes["retrieval_precision_10"].evidence.units != precision
    assert differing.mean() <= 0.01, "rounding may swap the tenth and the eleventh"
    assert mean.detail["validation"] == pytest.approx(np.mean(expected), abs=0.1)


def test_gallery_has_queries_of_different_classes_and_their_nearest(classes_task):
    task = classes_task(num_classes=8, noise=0.1)
    shown = RETRIEVAL.run(task)["retrieval_map"].detail["gallery"]
    assert len(shown) == 6
    label_of = dict(zip(task.bank_places.tolist(), task.bank[1].tolist(), strict=True))
    query_label_of = dict(zip(task.places[TEST].tolist(), task.test[1].tolist(), strict=True))
    assert len({query_label_of[row[0]] for row in shown}) == 6
    for query, *nearest in shown:
        assert len(set(nearest)) == 8
        assert {label_of[place] for place in nearest} == {query_label_of[query]}


def test_gallery_queries_are_the_same_for_all_models(classes_task):
    first, second = classes_task(noise=0.5), classes_task(noise=0.5)
    second = replace(second, test=(np.random.default_rng(0).normal(size=second.test[0].shape), second.test[1]))
    shown = [gallery(task, retrieve(task.bank, task.test).first) for task in (first, second)]
    assert [row[0] for row in shown[0]] == [row[0] for row in shown[1]]
    assert shown[0] != shown[1]


def test_an_archive_below_ten_images_is_ranked_whole(classes_task):
    task = classes_task()
    archive = (task.train[0][:4], task.train[1][:4])
    ranking = retrieve(archive, task.test)
    assert ranking.first.shape == (len(task.test[1]), 4)
    expected = [(archive[1] == own).mean() for own in task.test[1]]
    np.testing.assert_allclose(ranking.precision, expected)


def test_chunks_do_not_change_the_ranking(classes_task, monkeypatch: pytest.MonkeyPatch):
    task = classes_task()
    whole = retrieve(task.bank, task.test)
    monkeypatch.setattr(knn, "_MAX_SIMILARITIES", 13 * len(task.bank[1]))
    parted = retrieve(task.bank, task.test)
    np.testing.assert_allclose(parted.average_precision, whole.average_precision, atol=1e-6)
    np.testing.assert_array_equal(parted.first, whole.first)
