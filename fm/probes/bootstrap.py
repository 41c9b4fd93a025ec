"""Intervals by resampling patients.

Studies of one patient are not independent, so a draw takes whole patients with replacement. A draw is a row of
weights: how often each row of the data occurs in it. Row 0 is always the data as it is, so that a metric that takes
weights returns the estimate and all its draws at once, and the difference of two metrics under the *same* weights is
the paired bootstrap.

Shape legend: N rows of data, R rows of weights (1 + draws).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fm.probes.types import Floats, Ints


@dataclass(kw_only=True, slots=True)
class Interval:
    """An estimate and its bootstrap interval; `low` and `high` are None where too few draws could be scored."""

    value: float
    low: float | None
    high: float | None


def patient_weights(patients: Sequence[str], draws: int, seed: int) -> Ints:
    """Weights of `draws` resamplings of patients, after a first row of ones.

    Args:
        patients: (N,) patient of each row.
        draws: number of resamplings.
        seed: equal seeds and equal patients give equal weights, whatever else is measured.

    Returns:
        (1 + draws, N) how often each row occurs in each draw.
    """
    names, patient_N = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    count = len(names)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(count, np.full(count, 1 / max(count, 1)), size=draws) if count else np.zeros((draws, 0))
    first = np.ones((1, len(patient_N)), dtype=np.int64)
    return np.concatenate([first, counts.astype(np.int64)[:, patient_N]])


def interval(values_R: Floats, confidence: float) -> Interval:
    """Percentile interval of a metric's values under the rows of :func:`patient_weights`.

    A draw that cannot be scored (one class is missing from it) is left out; with fewer than half of the draws left
    there is no interval.

    Args:
        values_R: (1 + draws,) the estimate, then the draws; NaN where not scorable.
        confidence: share of the draws inside, 0.95 as a rule.

    Raises:
        ValueError: the estimate itself is not finite.
    """
    value = float(values_R[0])
    if not np.isfinite(value):
        raise ValueError("the estimate is not finite: nothing to put an interval around")
    draws = values_R[1:][np.isfinite(values_R[1:])]
    if len(draws) * 2 < len(values_R) - 1 or not len(draws):
        return Interval(value=value, low=None, high=None)
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(value=value, low=float(low), high=float(high))
