from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from fm.probes.knn import TEMPERATURE, fit_knn
from fm.probes.linear import fit_linear
from fm.probes.metrics import auroc
from fm.probes.tuning import best_setting, patient_folds


def data(n: int, d: int, signal: float, classes: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    labels[:classes] = np.arange(classes)
    features = rng.normal(size=(n, d)) * rng.uniform(0.1, 30, d) + 5
    features[:, 0] += 30 * signal * labels
    return features, labels, [f"p{i // 2}" for i in range(n)]


def test_folds_never_part_a_patient_and_hold_every_row_once() -> None:
    _, labels, patients = data(60, 2, 0)
    folds = patient_folds(labels, patients, 5, seed=0)
    assert len(folds) == 5
    assert sorted(np.concatenate([held for _, held in folds]).tolist()) == list(range(60))
    for train, held in folds:
        assert not {patients[i] for i in train} & {patients[i] for i in held}


def test_folds_shrink_with_the_rarest_class() -> None:
    labels = np.array([0] * 10 + [1] * 4)
    patients = [str(i) for i in range(10)] + ["x", "x", "y", "z"]
    assert len(patient_folds(labels, patients, 5, seed=0)) == 3
    assert patient_folds(labels, ["x"] * 14, 5, seed=0) == []


@pytest.mark.parametrize(("n", "d", "classes"), [(80, 6, 2), (40, 70, 2), (90, 5, 3)])
def test_linear_probe_is_scikit_learns_on_standardised_features(n: int, d: int, classes: int) -> None:
    features, labels, patients = data(n, d, 1.0, classes)
    probe = fit_linear(features, labels, patient_folds(labels, patients, 4, 0), [0.1])
    scaler = StandardScaler().fit(features)
    reference = LogisticRegression(C=0.1, class_weight="balanced", max_iter=5000, tol=1e-8)
    reference.fit(scaler.transform(features), labels)
    expected = reference.decision_function(scaler.transform(features))
    got = probe.scores(features)
    if classes == 2:
        got, expected = got[:, 1], np.asarray(expected)
    else:
        got, expected = got - got.mean(axis=1, keepdims=True), expected - expected.mean(axis=1, keepdims=True)
    assert np.abs(got - expected).max() < 0.02 * np.abs(expected).max()


def test_linear_probe_chooses_the_penalty_that_serves_unseen_patients() -> None:
    # 300 features of noise beside one weak one: a strong penalty generalises better than none.
    features, labels, patients = data(120, 300, 1.2, seed=1)
    folds = patient_folds(labels, patients, 5, 0)
    grid = [1e-4, 1e-2, 1.0, 100.0]
    chosen = fit_linear(features, labels, folds, grid)
    scores = []
    for c in grid:
        held = []
        for train, test in folds:
            probe = fit_linear(features[train], labels[train], [], [c])
            ones = np.ones((1, len(test)), dtype=np.int64)
            held.append(auroc(probe.scores(features[test])[:, 1], labels[test] == 1, ones)[0])
        scores.append(np.mean(held))
    assert chosen.c == grid[int(np.argmax(scores))]


def test_linear_probe_survives_constant_features_and_a_fold_without_a_class() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    probe = fit_linear(np.ones((6, 3)), labels, [(np.array([0, 1, 3]), np.array([2, 4, 5]))], [0.1, 1.0])
    assert np.isfinite(probe.scores(np.ones((2, 3)))).all()
    features = np.arange(9.0)[:, None]
    three = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    folds = [(np.arange(6), np.arange(6, 9)), (np.arange(3, 9), np.arange(3))]
    assert np.isfinite(fit_linear(features, three, folds, [0.1, 1.0]).scores(features)).all()


def test_knn_is_the_plain_loop() -> None:
    features, labels, patients = data(50, 4, 0.5, 3)
    queries = data(20, 4, 0.5, 3, seed=9)[0]
    probe = fit_knn(features, labels, patient_folds(labels, patients, 3, 0), [7])
    mean, std = features.mean(axis=0), features.std(axis=0)
    bank = [(row - mean) / std for row in features]
    got = probe.scores(queries)
    for q, query in enumerate(queries):
        unit = (query - mean) / std
        cosine = np.array([unit @ row / np.linalg.norm(unit) / np.linalg.norm(row) for row in bank])
        votes = np.zeros(3)
        for i in np.argsort(-cosine)[:7]:
            votes[labels[i]] += np.exp((cosine[i] - 1) / TEMPERATURE) / (labels == labels[i]).sum()
        assert got[q] == pytest.approx(votes / votes.sum())


def test_knn_chooses_more_neighbours_for_noisier_labels() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 2))
    labels = (features[:, 0] + rng.normal(0, 1.0, 300) > 0).astype(np.int64)
    patients = [str(i) for i in range(300)]
    assert fit_knn(features, labels, patient_folds(labels, patients, 5, 0), [1, 40]).neighbours == 40


def test_without_folds_the_middle_setting_is_taken() -> None:
    assert best_setting(5, lambda train, held: [], np.array([0, 1]), []) == 2
