"""Two AUROCs on the same cases compared by DeLong's variance, in the fast form.

DeLong, DeLong & Clarke-Pearson 1988 (Biometrics 44:837); by midranks as in Sun & Xu 2014 (IEEE SPL 21:1389).

Shape legend: N cases, P positive, M negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata

from fm.probes.bootstrap import Interval
from fm.probes.types import Bools, Floats


@dataclass(kw_only=True, slots=True)
class PairedAurocs:
    """Two AUROCs, their difference (first − second) with its interval, and the two-sided p-value of no difference."""

    first: float
    second: float
    difference: Interval
    p_value: float


def compare_aurocs(
    first_N: Floats, second_N: Floats, positive_N: Bools, patients: Sequence[str], confidence: float
) -> PairedAurocs:
    """Difference of two AUROCs on the same cases.

    Where the two scores order every pair alike, the variance is 0: the interval is a point and p is 1, or 0 where the
    AUROCs differ.

    Args:
        first_N: scores of one model.
        second_N: scores of the other.
        positive_N: which cases are positive.
        patients: (N,) patient of each case.
        confidence: of the interval, 0.95 as a rule.

    Raises:
        ValueError: a patient has several studies, which DeLong's variance takes for independent; or there are fewer
            than two cases of a class.
    """
    if len(set(patients)) < len(patients):
        raise ValueError("DeLong needs one study per patient; compare by the paired bootstrap of patients instead")
    if min(int(positive_N.sum()), int((~positive_N).sum())) < 2:
        raise ValueError("DeLong needs at least two cases of each class")
    a_P, a_M = _placements(first_N, positive_N)
    b_P, b_M = _placements(second_N, positive_N)
    first, second = float(a_P.mean()), float(b_P.mean())
    gap_P, gap_M = a_P - b_P, a_M - b_M
    error = float(np.sqrt(gap_P.var(ddof=1) / len(gap_P) + gap_M.var(ddof=1) / len(gap_M)))
    gap = first - second
    reach = float(norm.ppf((1 + confidence) / 2)) * error
    without_error = 1.0 if gap == 0 else 0.0
    p_value = float(2 * norm.sf(abs(gap) / error)) if error > 0 else without_error
    difference = Interval(value=gap, low=gap - reach, high=gap + reach)
    return PairedAurocs(first=first, second=second, difference=difference, p_value=p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of one family of comparisons, adjusted by Holm's step-down (Holm 1979), in the order given."""
    count = len(p_values)
    order = np.argsort(np.asarray(p_values, dtype=np.float64), kind="stable")
    steps = np.asarray(p_values, dtype=np.float64)[order] * (count - np.arange(count))
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(p) for p in adjusted]


def _placements(scores_N: Floats, positive_N: Bools) -> tuple[Floats, Floats]:
    """(P,) share of negatives below each positive and (M,) share of positives above each negative; a tie is half."""
    ranks = rankdata(scores_N)
    positives, negatives = scores_N[positive_N], scores_N[~positive_N]
    below: Floats = (ranks[positive_N] - rankdata(positives)) / len(negatives)
    above: Floats = 1 - (ranks[~positive_N] - rankdata(negatives)) / len(positives)
    return below, above
