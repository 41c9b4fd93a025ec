"""Patient-level folds and the choice of one setting by them: the same for every probe and every kind of feature."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from fm.probes.metrics import macro_auroc
from fm.probes.types import Floats, Ints


def patient_folds(labels_N: Ints, patients: Sequence[str], folds: int, seed: int) -> list[tuple[Ints, Ints]]:
    """Stratified folds that never part a patient, as (train rows, held-out rows).

    Fewer folds are made where the rarest class has fewer patients; none where one class has a single patient.
    """
    patient_N = np.asarray(patients, dtype=str)
    rarest = min((len(np.unique(patient_N[labels_N == k])) for k in np.unique(labels_N)), default=0)
    count = min(folds, rarest)
    if count < 2:
        return []
    splitter = StratifiedGroupKFold(n_splits=count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer rows than folds is met above by patients; rows that share one are no fault.
        warnings.simplefilter("ignore", UserWarning)
        return list(splitter.split(np.zeros(len(labels_N)), labels_N, patient_N))


def best_setting(
    settings: int, score: Callable[[Ints, Ints], list[Floats]], labels_N: Ints, folds: Sequence[tuple[Ints, Ints]]
) -> int:
    """Index of the setting with the highest mean macro-AUROC over held-out patients; the first of equals.

    Args:
        settings: how many there are, the most cautious first.
        score: given (train rows, held-out rows), class scores (n, K) of the held-out rows under each setting.
        labels_N: (N,) class of each row, 0 … K-1.
        folds: from :func:`patient_folds`.

    Returns:
        The chosen index; the middle one where no fold can be scored.
    """
    totals = np.zeros(settings)
    scored = 0
    for train, held in folds:
        if len(np.unique(labels_N[train])) < 2:
            continue
        ones = np.ones((1, len(held)), dtype=np.int64)
        values = np.array([macro_auroc(scores, labels_N[held], ones)[0] for scores in score(train, held)])
        if np.isfinite(values).all():
            totals += values
            scored += 1
    return int(np.argmax(np.round(totals, 9))) if scored else settings // 2
