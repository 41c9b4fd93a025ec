"""Whether a probability means what it says: reliability bins, calibration error, temperature scaling.

Guo et al. 2017 (arXiv:1706.04599).

Shape legend: N rows, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from fm.probes.linear import fit_linear
from fm.probes.types import Floats, Ints

LOG_REACH = 5.0
"""Temperatures are sought from e^-5 to e^5: beyond it a probe says either nothing or everything."""


@dataclass(kw_only=True, slots=True)
class ReliabilityBin:
    """Rows whose highest probability lies in (low, high]: how many, how sure on average, and how often right."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def reliability(probabilities_NK: Floats, labels_N: Ints, bins: int) -> list[ReliabilityBin]:
    """Bins of equal width between 0 and 1 that hold a row, in ascending order."""
    sure_N = probabilities_NK.max(axis=1)
    right_N = probabilities_NK.argmax(axis=1) == labels_N
    edges = np.linspace(0, 1, bins + 1)
    place_N = np.clip(np.searchsorted(edges, sure_N, side="left") - 1, 0, bins - 1)
    found = []
    for place in np.unique(place_N):
        inside = place_N == place
        found.append(
            ReliabilityBin(
                low=float(edges[place]),
                high=float(edges[place + 1]),
                n=int(inside.sum()),
                confidence=float(sure_N[inside].mean()),
                accuracy=float(right_N[inside].mean()),
            )
        )
    return found


def expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Mean distance of confidence and accuracy, bins weighted by their rows; NaN without a row."""
    total = sum(entry.n for entry in bins)
    if not total:
        return float("nan")
    return sum(entry.n * abs(entry.confidence - entry.accuracy) for entry in bins) / total


def fit_temperature(logits_NK: Floats, labels_N: Ints) -> float:
    """Temperature that minimises the log loss of softmax(logits / T).

    The logits have to be of rows that the probe was not fitted on (see :func:`held_out_logits`), else the probe's own
    overconfidence on them is taken for knowledge.
    """
    rows = np.arange(len(labels_N))

    def loss(log_t: float) -> float:
        return -float(log_softmax(logits_NK / np.exp(log_t), axis=1)[rows, labels_N].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-LOG_REACH, LOG_REACH), method="bounded").x))


def scaled_probabilities(logits_NK: Floats, temperature: float) -> Floats:
    """(N, K) softmax(logits / temperature)."""
    probabilities: Floats = softmax(logits_NK / temperature, axis=1)
    return probabilities


def held_out_logits(
    features_ND: Floats, labels_N: Ints, folds: Sequence[tuple[Ints, Ints]], c: float
) -> tuple[Floats, Ints]:
    """Logits of training rows, each from a linear probe that saw no study of its patient, and the labels of these rows.

    A fold whose training rows lack a class is left out.

    Args:
        features_ND: (N, D) frozen features of the training rows.
        labels_N: (N,) class of each row, 0 … K-1, every class present.
        folds: patient-level, from :func:`fm.probes.tuning.patient_folds`.
        c: inverse penalty.
    """
    every = np.unique(labels_N)
    logits, labels = [np.zeros((0, len(every)))], [np.zeros(0, dtype=np.int64)]
    for train, held in folds:
        if len(np.unique(labels_N[train])) == len(every):
            probe = fit_linear(features_ND[train], labels_N[train], [], [c])
            logits.append(probe.scores(features_ND[held]))
            labels.append(labels_N[held])
    return np.concatenate(logits), np.concatenate(labels)
