"""Classification metrics under many bootstrap weights at once.

Shape legend: N rows, K classes, R rows of weights (see :mod:`fm.probes.bootstrap`). Every metric returns (R,), NaN
where a draw holds too few classes to be scored.
"""

from __future__ import annotations

import numpy as np

from fm.probes.types import Bools, Floats, Ints


def auroc(scores_N: Floats, positive_N: Bools, weights_RN: Ints) -> Floats:
    """Area under the ROC curve: the chance that a positive scores above a negative, a tie counting one half.

    Loop form, for one row of weights w: sum over positives p and negatives n of w[p] w[n] (s[p] > s[n]) + ½ (s[p] ==
    s[n]), over sum of w[p] w[n].
    """
    order = np.argsort(scores_N, kind="stable")
    sorted_scores = scores_N[order]
    starts = np.flatnonzero(np.concatenate([[True], sorted_scores[1:] != sorted_scores[:-1]]))
    weights = weights_RN[:, order].astype(np.float64)
    positive = positive_N[order]
    # One column per distinct score.
    up = np.add.reduceat(weights * positive, starts, axis=1)
    down = np.add.reduceat(weights * ~positive, starts, axis=1)
    below = np.cumsum(down, axis=1) - down
    pairs = up.sum(axis=1) * down.sum(axis=1)
    wins = (up * (below + down / 2)).sum(axis=1)
    return ratio(wins, pairs)


def macro_auroc(scores_NK: Floats, labels_N: Ints, weights_RN: Ints) -> Floats:
    """Mean over classes of the one-against-the-rest :func:`auroc`; classes that a draw lacks are left out of its
    mean.
    """
    per_class = np.stack([auroc(scores_NK[:, k], labels_N == k, weights_RN) for k in range(scores_NK.shape[1])])
    scored = np.isfinite(per_class)
    count = scored.sum(axis=0)
    total = np.where(scored, per_class, 0.0).sum(axis=0)
    return ratio(total, count)


def balanced_accuracy(predicted_N: Ints, labels_N: Ints, weights_RN: Ints) -> Floats:
    """Mean over the true classes of a draw of the share that was recognised; NaN for a draw with one class only."""
    weights = weights_RN.astype(np.float64)
    right = predicted_N == labels_N
    total = np.zeros(len(weights))
    count = np.zeros(len(weights))
    for k in np.unique(labels_N):
        of_class = labels_N == k
        size = weights[:, of_class].sum(axis=1)
        hits = weights[:, of_class & right].sum(axis=1)
        total += np.divide(hits, size, out=np.zeros_like(size), where=size > 0)
        count += size > 0
    return np.where(count > 1, ratio(total, count), np.nan)


def ratio(top_R: Floats, bottom_R: Floats) -> Floats:
    """(R,) quotient; NaN where the divisor is not positive."""
    out: Floats = np.full(len(bottom_R), np.nan)
    np.divide(top_R, bottom_R, out=out, where=bottom_R > 0)
    return out


def roc_points(scores_N: Floats, positive_N: Bools) -> list[tuple[float, float]]:
    """Corners (false positive rate, true positive rate) of the ROC curve, from (0, 0) to (1, 1)."""
    order = np.argsort(-scores_N, kind="stable")
    ends = np.flatnonzero(np.concatenate([np.diff(scores_N[order]) != 0, [True]]))
    true = np.cumsum(positive_N[order])[ends] / max(int(positive_N.sum()), 1)
    false = np.cumsum(~positive_N[order])[ends] / max(int((~positive_N).sum()), 1)
    return [(0.0, 0.0), *((float(f), float(t)) for f, t in zip(false, true, strict=True))]
