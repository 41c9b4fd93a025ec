"""Ridge map from any features into a text space, tuned by how well it retrieves: the matcher that baselines use.

Headers and pixel statistics have no text tower; a map learned on the training studies gives them one, so that they
can be asked the same retrieval questions as a trained encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import GroupKFold

from fm.probes.retrieval import worst_ranks
from fm.probes.scaling import Scaler
from fm.probes.types import Floats


@dataclass(kw_only=True, slots=True)
class RidgeMap:
    """Standardisation, weights (D, T) and the mean training text (T,)."""

    scaler: Scaler
    weight_DT: Floats
    mean_T: Floats
    penalty: float

    def match(self, features_MD: Floats, texts_GT: Floats) -> Floats:
        """(M, G) cosine between predicted and true texts, both taken from the mean training text."""
        return _cosine(self.scaler.apply(features_MD) @ self.weight_DT, texts_GT - self.mean_T)


def fit_ridge(
    features_ND: Floats,
    texts_NT: Floats,
    relevance_N: Sequence[str],
    patients: Sequence[str],
    penalties: Sequence[float],
    folds: int,
) -> RidgeMap:
    """Choose the penalty by the mean reciprocal rank among held-out patients, then fit on all rows.

    Args:
        features_ND: (N, D) features of the training studies; they are standardised.
        texts_NT: (N, T) their texts as vectors.
        relevance_N: (N,) rows with equal words are relevant to each other.
        patients: (N,) patient of each row; folds never part one.
        penalties: to choose from.
        folds: of the choice.
    """
    grid = sorted(set(penalties), reverse=True)
    group_N = np.unique(np.asarray(relevance_N, dtype=str), return_inverse=True)[1]
    count = min(folds, len(set(patients)))
    totals = np.zeros(len(grid))
    if count > 1:
        for train, held in GroupKFold(n_splits=count).split(features_ND, groups=np.asarray(patients, dtype=str)):
            relevant = group_N[held][:, None] == group_N[held][None, :]
            for place, fitted in enumerate(_path(features_ND[train], texts_NT[train], grid)):
                ranks = worst_ranks(fitted.match(features_ND[held], texts_NT[held]), relevant)
                totals[place] += float((1 / ranks).sum())
    best = int(np.argmax(np.round(totals, 9))) if count > 1 else len(grid) // 2
    return _path(features_ND, texts_NT, [grid[best]])[0]


def _path(features_ND: Floats, texts_NT: Floats, penalties: Sequence[float]) -> list[RidgeMap]:
    scaler = Scaler.fit(features_ND)
    mean = texts_NT.mean(axis=0)
    left, singular, right = np.linalg.svd(scaler.apply(features_ND), full_matrices=False)
    projected = left.T @ (texts_NT - mean)
    return [
        RidgeMap(
            scaler=scaler,
            weight_DT=right.T @ ((singular / (singular**2 + penalty))[:, None] * projected),
            mean_T=mean,
            penalty=penalty,
        )
        for penalty in penalties
    ]


def _cosine(a_ND: Floats, b_MD: Floats) -> Floats:
    a = a_ND / np.maximum(np.linalg.norm(a_ND, axis=1, keepdims=True), 1e-12)
    b = b_MD / np.maximum(np.linalg.norm(b_MD, axis=1, keepdims=True), 1e-12)
    cosine: Floats = a @ b.T
    return cosine
