from __future__ import annotations

import numpy as np

from fm.probes.bootstrap import interval, patient_weights
from fm.probes.few_shot import few_shot_curve, label_draws


def data(seed: int, n: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    features = rng.normal(size=(n, 6))
    features[:, 0] += 1.5 * labels
    return features, labels, [f"p{i // 2}" for i in range(n)]


def test_draws_take_that_many_patients_of_each_class_and_no_patient_twice() -> None:
    _, labels, patients = data(0, 80)
    draws = label_draws(labels, patients, 5, 20, seed=3)
    assert len(draws) == 20
    for rows in draws:
        assert np.bincount(labels[rows]).tolist() == [5, 5]
        assert len({patients[row] for row in rows}) == 10
    assert len({rows.tobytes() for rows in draws}) > 15
    assert [d.tolist() for d in label_draws(labels, patients, 5, 20, seed=3)] == [d.tolist() for d in draws]
    assert label_draws(labels, patients, 41, 20, seed=3) == []


def test_more_labels_help_and_the_interval_holds_the_doubt_of_the_draw() -> None:
    train, labels, patients = data(0, 200)
    test, truth, owners = data(1, 200)
    weights = patient_weights(owners, 300, 0)
    many = {shots: label_draws(labels, patients, shots, 10, 0) for shots in (1, 50, 5, 500)}
    curve = few_shot_curve(train, labels, many, test, truth, weights, 0.1, 0)
    assert [point.shots for point in curve] == [1, 5, 50]
    got = [interval(point.values_R, 0.95) for point in curve]
    assert got[0].value < got[1].value < got[2].value
    # The test patients are the same: what is wider at one label per class is the doubt about the labels.
    assert got[0].high - got[0].low > 1.5 * (got[2].high - got[2].low)


def test_the_estimate_is_the_mean_over_draws() -> None:
    train, labels, patients = data(0, 60)
    test, truth, owners = data(1, 60)
    weights = patient_weights(owners, 50, 0)
    draws = label_draws(labels, patients, 2, 4, 0)
    alone = [few_shot_curve(train, labels, {2: [d]}, test, truth, weights, 0.1, 0)[0].values_R[0] for d in draws]
    together = few_shot_curve(train, labels, {2: draws}, test, truth, weights, 0.1, 0)[0].values_R[0]
    assert np.isclose(together, np.mean(alone))
