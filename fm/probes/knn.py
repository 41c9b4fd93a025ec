"""k nearest neighbours on frozen features, as DINO scores them (Caron et al. 2021, arXiv:2104.14294, appendix)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fm.probes.scaling import Scaler
from fm.probes.tuning import best_setting
from fm.probes.types import Floats, Ints

TEMPERATURE = 0.07
"""Of the neighbours' votes: exp(cosine / temperature), as in DINO."""


@dataclass(kw_only=True, slots=True)
class KnnProbe:
    """Training features and the chosen number of neighbours."""

    scaler: Scaler
    bank_ND: Floats
    labels_N: Ints
    neighbours: int
    classes: int

    def scores(self, features_MD: Floats) -> Floats:
        """(M, K) share of the votes for each class; a class's votes are divided by its size in training."""
        return votes(self.scaler.unit(features_MD), self.bank_ND, self.labels_N, self.classes, [self.neighbours])[0]


def fit_knn(
    features_ND: Floats, labels_N: Ints, folds: Sequence[tuple[Ints, Ints]], neighbours: Sequence[int]
) -> KnnProbe:
    """Choose the number of neighbours by patient-level folds of the training rows and keep them as the bank.

    Args:
        features_ND: (N, D) frozen features; they are standardised, then scaled to unit length.
        labels_N: (N,) class of each row, 0 … K-1, every class present.
        folds: patient-level, from :func:`fm.probes.tuning.patient_folds`.
        neighbours: counts to choose from.
    """
    classes = int(labels_N.max()) + 1
    # More neighbours is the more cautious choice, so it comes first.
    counts = sorted(set(neighbours), reverse=True)

    def score(train: Ints, held: Ints) -> list[Floats]:
        scaler = Scaler.fit(features_ND[train])
        bank, query = scaler.unit(features_ND[train]), scaler.unit(features_ND[held])
        return votes(query, bank, labels_N[train], classes, counts)

    best = best_setting(len(counts), score, labels_N, folds)
    scaler = Scaler.fit(features_ND)
    return KnnProbe(
        scaler=scaler,
        bank_ND=scaler.unit(features_ND),
        labels_N=labels_N,
        neighbours=counts[best],
        classes=classes,
    )


def votes(query_MD: Floats, bank_ND: Floats, labels_N: Ints, classes: int, counts: Sequence[int]) -> list[Floats]:
    """(M, K) share of the votes for each class, for each number of neighbours.

    Args:
        query_MD: (M, D) unit features to judge.
        bank_ND: (N, D) unit features of known class.
        labels_N: (N,) class of each row of the bank, 0 … K-1; a class's votes are divided by its size.
        classes: K.
        counts: numbers of neighbours.
    """
    similarity = query_MD @ bank_ND.T
    order = np.argsort(-similarity, axis=1, kind="stable")
    weight = np.exp((np.take_along_axis(similarity, order, axis=1) - 1) / TEMPERATURE)
    size = np.maximum(np.bincount(labels_N, minlength=classes), 1)
    one_hot = np.eye(classes)[labels_N[order]] / size
    votes = np.cumsum(weight[:, :, None] * one_hot, axis=1)
    chosen = [votes[:, min(count, votes.shape[1]) - 1] for count in counts]
    return [v / np.maximum(v.sum(axis=1, keepdims=True), 1e-300) for v in chosen]
