"""Retrieval of relevant items from a gallery: ranks that no tie can flatter, and chance as it exactly is.

Shape legend: Q queries, G gallery items, R rows of bootstrap weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

from fm.probes.metrics import ratio
from fm.probes.types import Bools, Floats, Ints


def worst_ranks(scores_QG: Floats, relevant_QG: Bools) -> Ints:
    """Rank, from 1, of the first relevant item of each query; every tie with an irrelevant item counts against it.

    A score that is not finite ranks last. So a collapsed encoder, whose scores are all equal, finds its first
    relevant item behind every irrelevant one.

    Loop form: 1 + the number of irrelevant items whose score is at least the best score of a relevant item.

    Raises:
        ValueError: a query has no relevant item.
    """
    if not relevant_QG.any(axis=1).all():
        raise ValueError("a query without a relevant item in the gallery cannot be ranked")
    scores = np.where(np.isfinite(scores_QG), scores_QG, -np.inf)
    best = np.where(relevant_QG, scores, -np.inf).max(axis=1, keepdims=True)
    ranks: Ints = 1 + (~relevant_QG & (scores >= best)).sum(axis=1)
    return ranks


@dataclass(kw_only=True, slots=True)
class Chance:
    """What a random order of the gallery reaches, mean over queries."""

    recall: dict[int, float]
    median_rank: float
    mrr: float


def chance(relevant_Q: Ints, gallery: int, ks: Sequence[int]) -> Chance:
    """Exact retrieval figures of a uniformly random order.

    With r relevant items among G, a random order has its first relevant item at rank j with probability
    C(G-j, r-1) / C(G, r); a hit within k is one minus the hypergeometric chance of drawing none.

    Args:
        relevant_Q: (Q,) number of relevant items of each query, at least 1.
        gallery: G.
        ks: cut-offs of recall.
    """
    ranks = np.arange(1, gallery + 1)
    relevant, inverse = np.unique(relevant_Q, return_inverse=True)
    first = np.stack([_first_rank(int(r), gallery) for r in relevant])
    mean = np.bincount(inverse, minlength=len(relevant)) / len(relevant_Q) @ first
    cumulative = np.cumsum(mean)
    return Chance(
        recall={k: float(cumulative[min(k, gallery) - 1]) for k in ks},
        median_rank=float(ranks[np.searchsorted(cumulative, 0.5 - 1e-12)]),
        mrr=float((mean / ranks).sum()),
    )


def recall(ranks_Q: Ints, k: int, weights_RQ: Ints) -> Floats:
    """(R,) weighted share of queries whose first relevant item ranks within k; NaN for an empty draw."""
    return _weighted_mean((ranks_Q <= k).astype(np.float64), weights_RQ)


def mean_reciprocal_rank(ranks_Q: Ints, weights_RQ: Ints) -> Floats:
    """(R,) weighted mean of 1 / rank; NaN for an empty draw."""
    return _weighted_mean(1.0 / ranks_Q, weights_RQ)


def median_rank(ranks_Q: Ints, weights_RQ: Ints) -> Floats:
    """(R,) weighted median rank, the lower one of two; NaN for an empty draw."""
    order = np.argsort(ranks_Q, kind="stable")
    cumulative = np.cumsum(weights_RQ[:, order], axis=1)
    total = cumulative[:, -1]
    place = (cumulative * 2 >= total[:, None]).argmax(axis=1)
    return np.where(total > 0, ranks_Q[order][place].astype(np.float64), np.nan)


def _weighted_mean(values_Q: Floats, weights_RQ: Ints) -> Floats:
    return ratio(weights_RQ @ values_Q, weights_RQ.sum(axis=1).astype(np.float64))


def _first_rank(relevant: int, gallery: int) -> Floats:
    """(G,) probability that the first of `relevant` items among `gallery` comes at rank 1, 2, …"""
    ranks = np.arange(1, gallery + 1)
    possible = gallery - ranks >= relevant - 1
    after = np.where(possible, gallery - ranks, relevant - 1)
    log = _log_choose(after, relevant - 1) - _log_choose(np.array(gallery), relevant)
    return np.where(possible, np.exp(log), 0.0)


def _log_choose(n: Ints, k: int) -> Floats:
    values: Floats = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return values
