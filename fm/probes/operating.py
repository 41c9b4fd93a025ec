"""Operating points: what a score is worth at the threshold a clinic would choose."""

from __future__ import annotations

import numpy as np

from fm.probes.types import Bools, Floats, Ints


def sensitivity_at(scores_N: Floats, positive_N: Bools, weights_RN: Ints, specificity: float) -> Floats:
    """(R,) highest sensitivity of a threshold whose specificity is at least the one given.

    The threshold is chosen anew under each row of weights, so an interval holds the doubt about it as well. NaN where
    a draw lacks a class. Specificity at a given sensitivity is the same question with the scores negated and the
    classes exchanged.

    Args:
        scores_N: higher means positive; equal scores fall on the same side of a threshold.
        positive_N: which rows are positive.
        weights_RN: bootstrap weights, see :mod:`fm.probes.bootstrap`.
        specificity: from 0 to 1.
    """
    order = np.argsort(-scores_N, kind="stable")
    ends = np.flatnonzero(np.concatenate([np.diff(scores_N[order]) != 0, [True]]))
    weights, positive = weights_RN[:, order], positive_N[order]
    true_RE = np.cumsum(weights * positive, axis=1)[:, ends]
    false_RE = np.cumsum(weights * ~positive, axis=1)[:, ends]
    positives, negatives = true_RE[:, -1], false_RE[:, -1]
    # In counts, not rates: 1 - specificity of 0.9 is not exactly a tenth.
    allowed = np.floor((1 - specificity) * negatives + 1e-9)
    best = np.where(false_RE <= allowed[:, None], true_RE, 0).max(axis=1)
    scorable = (positives > 0) & (negatives > 0)
    return np.where(scorable, best / np.maximum(positives, 1), np.nan)
