from __future__ import annotations

import itertools

import numpy as np
import pytest

from fm.probes.retrieval import chance, mean_reciprocal_rank, median_rank, recall, worst_ranks
from fm.probes.ridge import fit_ridge


def relevance(words: list[str]) -> np.ndarray:
    return np.array(words)[:, None] == np.array(words)[None, :]


def test_ranks_are_the_plain_loop_with_ties_against_the_query() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(5, size=(12, 12)).astype(float)
    relevant = relevance([str(i % 4) for i in range(12)])
    got = worst_ranks(scores, relevant)
    for q in range(12):
        # Order by score, irrelevant before relevant where equal.
        order = sorted(range(12), key=lambda g, q=q: (-scores[q, g], relevant[q, g]))
        assert got[q] == 1 + next(place for place, g in enumerate(order) if relevant[q, g])


def test_a_collapsed_encoder_reaches_the_worst_rank_everywhere() -> None:
    relevant = relevance(["a"] * 3 + ["b"] * 5 + ["c"])
    ranks = worst_ranks(np.full((9, 9), 0.3), relevant)
    assert ranks.tolist() == [7] * 3 + [5] * 5 + [9]
    ones = np.ones((1, 9), dtype=np.int64)
    assert recall(ranks, 5, ones)[0] == pytest.approx(5 / 9)
    assert recall(worst_ranks(np.zeros((60, 60)), np.eye(60, dtype=bool)), 5, np.ones((1, 60), dtype=np.int64))[0] == 0


def test_scores_that_are_not_numbers_rank_last() -> None:
    scores = np.array([[np.nan, 0.1, 0.2], [0.5, 0.9, np.inf], [0.0, 0.0, 1.0]])
    assert worst_ranks(scores, np.eye(3, dtype=bool)).tolist() == [3, 1, 1]


def test_a_query_without_a_relevant_item_is_refused() -> None:
    with pytest.raises(ValueError, match="relevant"):
        worst_ranks(np.zeros((2, 2)), np.array([[True, False], [False, False]]))


def test_chance_is_what_all_orders_of_a_small_gallery_give() -> None:
    counts = [1, 2, 2, 4]
    gallery = 6
    first: list[float] = []
    for r in counts:
        for order in itertools.permutations(range(gallery)):
            first.append(1 + min(order.index(i) for i in range(r)))
    got = chance(np.array(counts), gallery, (1, 3, 5, 10))
    for k in (1, 3, 5, 10):
        assert got.recall[k] == pytest.approx(np.mean(np.array(first) <= k))
    assert got.mrr == pytest.approx(np.mean(1 / np.array(first)))
    assert got.median_rank == np.sort(first)[(len(first) - 1) // 2]


def test_chance_is_what_random_scores_reach_in_a_large_gallery() -> None:
    rng = np.random.default_rng(0)
    relevant = relevance([str(v) for v in rng.integers(40, size=120)])
    ranks = np.concatenate([worst_ranks(rng.random((120, 120)), relevant) for _ in range(200)])
    got = chance(relevant.sum(axis=1), 120, (1, 5, 10))
    for k in (1, 5, 10):
        assert got.recall[k] == pytest.approx(np.mean(ranks <= k), abs=0.01)
    assert got.mrr == pytest.approx(np.mean(1 / ranks), abs=0.005)
    assert got.median_rank == pytest.approx(np.median(ranks), abs=1)


def test_metrics_under_weights_are_those_of_the_repeated_queries() -> None:
    ranks = np.array([1, 4, 6, 20])
    weights = np.array([[1, 1, 1, 1], [3, 0, 2, 0], [0, 0, 0, 0]])
    repeated = np.array([1, 1, 1, 6, 6])
    assert recall(ranks, 5, weights)[:2].tolist() == [0.5, 0.6]
    assert mean_reciprocal_rank(ranks, weights)[1] == pytest.approx((1 / repeated).mean())
    assert median_rank(ranks, weights)[:2].tolist() == [4.0, 1.0]
    assert np.isnan(recall(ranks, 5, weights)[2]) and np.isnan(median_rank(ranks, weights)[2])


def test_ridge_map_is_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    features, texts = rng.normal(3, 5, size=(30, 4)), rng.random((30, 6))
    words, patients = [str(i % 5) for i in range(30)], [str(i) for i in range(30)]
    fitted = fit_ridge(features, texts, words, patients, [10.0], 3)
    x = (features - features.mean(axis=0)) / features.std(axis=0)
    expected = np.linalg.solve(x.T @ x + 10 * np.eye(4), x.T @ (texts - texts.mean(axis=0)))
    assert fitted.weight_DT == pytest.approx(expected)


def test_ridge_map_retrieves_what_its_features_say_and_no_more() -> None:
    rng = np.random.default_rng(1)
    kinds = rng.integers(8, size=200)
    texts = np.eye(8)[kinds] + 0.05 * rng.random((200, 8))
    telling = np.eye(8)[kinds] @ rng.normal(size=(8, 20)) + 0.1 * rng.normal(size=(200, 20))
    blind = rng.normal(size=(200, 20))
    words, patients = [str(k) for k in kinds], [str(i // 2) for i in range(200)]
    relevant = relevance(words[140:])
    ones = np.ones((1, 60), dtype=np.int64)
    reached = {}
    for name, features in (("telling", telling), ("blind", blind)):
        fitted = fit_ridge(features[:140], texts[:140], words[:140], patients[:140], [1.0, 100.0], 5)
        reached[name] = recall(worst_ranks(fitted.match(features[140:], texts[140:]), relevant), 1, ones)[0]
    assert reached["telling"] > 0.95
    assert reached["blind"] < 0.4
