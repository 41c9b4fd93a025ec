"""L2-penalised logistic regression on frozen features, its penalty chosen by patient-level folds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from fm.probes.scaling import Scaler
from fm.probes.tuning import best_setting
from fm.probes.types import Floats, Ints


@dataclass(kw_only=True, slots=True)
class LinearProbe:
    """A fitted probe: standardisation, weights and the chosen inverse penalty."""

    scaler: Scaler
    weight_KD: Floats
    bias_K: Floats
    c: float

    def scores(self, features_MD: Floats) -> Floats:
        """(M, K) log-odds of each class up to a constant per row; two classes have scores (-z, z)."""
        return self.scaler.apply(features_MD) @ self.weight_KD.T + self.bias_K


def fit_linear(
    features_ND: Floats, labels_N: Ints, folds: Sequence[tuple[Ints, Ints]], c: Sequence[float]
) -> LinearProbe:
    """Choose the inverse penalty by patient-level folds, then fit on all rows.

    Classes are weighted by inverse frequency, so the decision threshold suits balanced accuracy.

    Args:
        features_ND: (N, D) frozen features; they are standardised.
        labels_N: (N,) class of each row, 0 … K-1, every class present.
        folds: patient-level, from :func:`fm.probes.tuning.patient_folds`.
        c: inverse penalties to choose from.
    """
    grid = sorted(set(c))
    classes = int(labels_N.max()) + 1

    def score(train: Ints, held: Ints) -> list[Floats]:
        scaler = Scaler.fit(features_ND[train])
        fits = _path(scaler.apply(features_ND[train]), labels_N[train], grid, classes)
        scaled = scaler.apply(features_ND[held])
        return [scaled @ weight.T + bias for weight, bias in fits]

    best = best_setting(len(grid), score, labels_N, folds)
    scaler = Scaler.fit(features_ND)
    weight, bias = _path(scaler.apply(features_ND), labels_N, [grid[best]], classes)[0]
    return LinearProbe(scaler=scaler, weight_KD=weight, bias_K=bias, c=grid[best])


def _path(scaled_ND: Floats, labels_N: Ints, grid: Sequence[float], classes: int) -> list[tuple[Floats, Floats]]:
    """Weights (K, D) and biases (K,) for each inverse penalty of an ascending grid."""
    # The penalty does not change under rotation, so the fit happens in the row space: exact, and cheap where D > N.
    left, singular, rotation = np.linalg.svd(scaled_ND, full_matrices=False)
    kept = singular > 1e-8 * max(float(singular[0]), 1e-30)
    rotated = left[:, kept] * singular[kept]
    if not kept.any():
        return [(np.zeros((classes, scaled_ND.shape[1])), np.zeros(classes)) for _ in grid]
    model = LogisticRegression(solver="lbfgs", class_weight="balanced", warm_start=True, max_iter=300, tol=1e-4)
    fits: list[tuple[Floats, Floats]] = []
    for c in grid:
        model.set_params(C=c)
        with warnings.catch_warnings(), config_context(assume_finite=True, skip_parameter_validation=True):
            # Weak penalties on separable rows converge slowly; the folds judge the fit as it is.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(rotated, labels_N)
        coef, bias = np.asarray(model.coef_), np.asarray(model.intercept_)
        if len(coef) == 1:
            coef, bias = np.concatenate([-coef, coef]), np.concatenate([-bias, bias])
        weight = np.zeros((classes, scaled_ND.shape[1]))
        full_bias = np.full(classes, -1e6)
        weight[model.classes_] = coef @ rotation[kept]
        full_bias[model.classes_] = bias
        fits.append((weight, full_bias))
    return fits
