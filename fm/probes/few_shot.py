"""Few-shot curves: how a linear probe does on a handful of labelled patients per class.

Shape legend: N training rows, M test rows, D features, L draws of labels, R rows of bootstrap weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fm.probes.linear import fit_linear
from fm.probes.metrics import macro_auroc
from fm.probes.types import Floats, Ints


@dataclass(kw_only=True, slots=True)
class FewShotPoint:
    """One point of a curve."""

    shots: int
    """Labelled patients per class."""
    values_R: Floats
    """Macro-AUROC averaged over label draws, then its resamplings; what :func:`fm.probes.bootstrap.interval` takes."""


def label_draws(labels_N: Ints, patients: Sequence[str], shots: int, draws: int, seed: int) -> list[Ints]:
    """Rows of `draws` random choices of `shots` patients per class, one study of each; none where a class has fewer.

    Equal seeds give equal rows whatever the features, so that systems are compared on the same labels.
    """
    patient_N = np.asarray(patients, dtype=str)
    chosen: list[Ints] = []
    for draw in range(draws):
        rng = np.random.default_rng([seed, shots, draw])
        rows: list[int] = []
        taken: set[str] = set()
        for k in np.unique(labels_N):
            mixed = rng.permutation(np.flatnonzero(labels_N == k))
            before = len(rows)
            for row in mixed:
                if len(rows) - before < shots and patient_N[row] not in taken:
                    rows.append(int(row))
                    taken.add(str(patient_N[row]))
            if len(rows) - before < shots:
                return []
        chosen.append(np.array(sorted(rows), dtype=np.int64))
    return chosen


def few_shot_curve(
    train_ND: Floats,
    labels_N: Ints,
    draws_by_shots: dict[int, list[Ints]],
    test_MD: Floats,
    labels_M: Ints,
    weights_RM: Ints,
    c: float,
    seed: int,
) -> list[FewShotPoint]:
    """Points of a curve, fewest labels first; the resamplings draw label sets and test patients together.

    The penalty is fixed: a few labels leave nothing to tune it on, and tuning it on the others would not be few-shot.

    Args:
        train_ND: frozen features to draw from.
        labels_N: their classes, 0 … K-1.
        draws_by_shots: rows of each draw by shots, from :func:`label_draws`; an empty list makes no point.
        test_MD: frozen features of the test rows.
        labels_M: their classes.
        weights_RM: of :func:`fm.probes.bootstrap.patient_weights`.
        c: inverse penalty of the probe.
        seed: of the resampling of label draws.
    """
    points = []
    for shots, draws in sorted(draws_by_shots.items()):
        if not draws:
            continue
        values_LR = np.array(
            [
                macro_auroc(fit_linear(train_ND[rows], labels_N[rows], [], [c]).scores(test_MD), labels_M, weights_RM)
                for rows in draws
            ]
        )
        count = len(draws)
        rng = np.random.default_rng([seed, shots])
        picks_RL = rng.multinomial(count, np.full(count, 1 / count), size=len(weights_RM) - 1)
        share_RL = np.concatenate([np.ones((1, count)), picks_RL]) / count
        points.append(FewShotPoint(shots=shots, values_R=(share_RL * values_LR.T).sum(axis=1)))
    return points
