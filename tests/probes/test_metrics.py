from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from fm.probes.metrics import auroc, balanced_accuracy, macro_auroc, roc_points


def ones(n: int) -> np.ndarray:
    return np.ones((1, n), dtype=np.int64)


def loop_auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float:
    wins = pairs = 0.0
    for p in np.flatnonzero(positive):
        for n in np.flatnonzero(~positive):
            weight = weights[p] * weights[n]
            pairs += weight
            wins += weight * (float(scores[p] > scores[n]) + 0.5 * float(scores[p] == scores[n]))
    return wins / pairs


@pytest.mark.parametrize("levels", [3, 1000])
def test_auroc_is_the_loop_and_scikit_learn_under_any_weights(levels: int) -> None:
    rng = np.random.default_rng(levels)
    scores = rng.integers(levels, size=60).astype(float)
    positive = rng.random(60) < 0.4
    weights = rng.integers(0, 4, size=(5, 60))
    got = auroc(scores, positive, weights)
    for row in range(5):
        assert got[row] == pytest.approx(loop_auroc(scores, positive, weights[row]))
        assert got[row] == pytest.approx(roc_auc_score(positive, scores, sample_weight=weights[row]))


def test_auroc_of_constant_scores_is_one_half_and_of_one_class_not_a_number() -> None:
    positive = np.array([True, False, False, True])
    assert auroc(np.zeros(4), positive, ones(4))[0] == 0.5
    only_negatives = np.array([[0, 1, 1, 0]])
    assert np.isnan(auroc(np.arange(4.0), positive, only_negatives)[0])


def test_auroc_finds_the_overlap_of_two_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    # Means one standard deviation apart: AUROC = Phi(1 / sqrt 2) = 0.7602.
    scores = np.concatenate([rng.normal(0, 1, 40_000), rng.normal(1, 1, 40_000)])
    positive = np.arange(80_000) >= 40_000
    assert auroc(scores, positive, ones(80_000))[0] == pytest.approx(0.7602, abs=0.005)


def test_macro_auroc_is_scikit_learns_one_against_the_rest() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(4, size=80)
    scores = rng.random((80, 4))
    scores /= scores.sum(axis=1, keepdims=True)
    expected = roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    assert macro_auroc(scores, labels, ones(80))[0] == pytest.approx(expected)


def test_macro_auroc_leaves_out_a_class_that_a_draw_lacks() -> None:
    labels = np.array([0, 0, 1, 1, 2])
    scores = np.eye(3)[labels]
    scores[0] = [0.0, 1.0, 0.0]
    weights = np.array([[1, 1, 1, 1, 0]])
    # Class 0 has ranks (0.0, 1.0) against (0, 0): 3/4; class 1 ties one of two negatives: 3/4; class 2 is not there.
    assert macro_auroc(scores, labels, weights)[0] == pytest.approx(0.75)


def test_balanced_accuracy_is_scikit_learns_and_needs_two_classes() -> None:
    rng = np.random.default_rng(2)
    labels, predicted = rng.integers(3, size=70), rng.integers(3, size=70)
    weights = rng.integers(1, 4, size=(3, 70))
    got = balanced_accuracy(predicted, labels, weights)
    for row in range(3):
        expected = balanced_accuracy_score(labels, predicted, sample_weight=weights[row])
        assert got[row] == pytest.approx(expected)
    assert np.isnan(balanced_accuracy(predicted, labels, (labels == 0).astype(np.int64)[None])[0])


def test_roc_points_bound_the_area_that_auroc_gives() -> None:
    rng = np.random.default_rng(3)
    scores, positive = rng.integers(6, size=50).astype(float), rng.random(50) < 0.5
    points = np.array(roc_points(scores, positive))
    assert points[0].tolist() == [0.0, 0.0] and points[-1].tolist() == [1.0, 1.0]
    area = np.trapezoid(points[:, 1], points[:, 0])
    assert area == pytest.approx(auroc(scores, positive, ones(50))[0])
