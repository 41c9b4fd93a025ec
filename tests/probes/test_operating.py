from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from fm.probes.operating import sensitivity_at


@pytest.mark.parametrize("levels", [5, 1000])
@pytest.mark.parametrize("specificity", [0.0, 0.8, 0.9, 1.0])
def test_sensitivity_is_read_off_scikit_learns_roc_curve(levels: int, specificity: float) -> None:
    rng = np.random.default_rng(levels)
    positive = rng.random(80) < 0.4
    scores = rng.integers(levels, size=80) + 0.3 * levels * positive
    weights = rng.integers(0, 3, size=(4, 80))
    got = sensitivity_at(scores, positive, weights, specificity)
    for row in range(4):
        false, true, _ = roc_curve(positive, scores, sample_weight=weights[row], drop_intermediate=False)
        assert got[row] == pytest.approx(true[false <= 1 - specificity + 1e-9].max())


def test_specificity_at_a_sensitivity_is_the_mirrored_question() -> None:
    scores = np.array([0.1, 0.4, 0.35, 0.8, 0.9])
    positive = np.array([False, False, True, True, True])
    once = np.ones((1, 5), dtype=np.int64)
    assert sensitivity_at(scores, positive, once, 1.0)[0] == pytest.approx(2 / 3)
    assert sensitivity_at(-scores, ~positive, once, 1.0)[0] == pytest.approx(1 / 2)


def test_a_draw_without_a_class_has_no_operating_point() -> None:
    positive = np.array([True, False])
    assert np.isnan(sensitivity_at(np.arange(2.0), positive, np.array([[1, 0], [0, 1]]), 0.9)).all()
