from __future__ import annotations

import numpy as np
import pytest

from fm.probes.bootstrap import interval, patient_weights
from fm.probes.metrics import auroc


def test_draws_take_whole_patients_with_replacement() -> None:
    patients = ["a", "b", "a", "c", "b", "d"]
    weights = patient_weights(patients, 400, seed=0)
    assert weights.shape == (401, 6)
    assert (weights[0] == 1).all()
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 1] == weights[:, 4]).all()
    per_patient = weights[1:, [0, 1, 3, 5]]
    assert (per_patient.sum(axis=1) == 4).all()
    # A patient is left out of a draw with probability (3/4)^4 = 0.316.
    assert (per_patient == 0).mean() == pytest.approx(0.316, abs=0.04)


def test_weights_depend_on_the_seed_alone() -> None:
    patients = [str(i) for i in range(9)]
    assert (patient_weights(patients, 5, seed=1) == patient_weights(patients, 5, seed=1)).all()
    assert (patient_weights(patients, 5, seed=1) != patient_weights(patients, 5, seed=2)).any()


def test_interval_of_a_mean_is_the_one_of_the_central_limit() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, 2.0, 400)
    weights = patient_weights([str(i) for i in range(400)], 2000, seed=3)
    found = interval(weights @ values / weights.sum(axis=1), 0.95)
    half = 1.96 * values.std() / np.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)


def test_interval_is_wider_when_studies_of_a_patient_are_alike() -> None:
    rng = np.random.default_rng(1)
    values = np.repeat(rng.normal(0, 1, 60), 4)
    alike = patient_weights([str(i // 4) for i in range(240)], 1000, seed=0)
    apart = patient_weights([str(i) for i in range(240)], 1000, seed=0)
    wide = interval(alike @ values / alike.sum(axis=1), 0.95)
    narrow = interval(apart @ values / apart.sum(axis=1), 0.95)
    assert (wide.high or 0) - (wide.low or 0) > 1.6 * ((narrow.high or 0) - (narrow.low or 0))


def test_intervals_cover_a_known_auroc_about_as_often_as_they_say() -> None:
    truth, covered, trials = 0.7602, 0, 200
    rng = np.random.default_rng(5)
    positive = np.arange(160) >= 80
    weights = patient_weights([str(i) for i in range(160)], 300, seed=0)
    for _ in range(trials):
        scores = np.concatenate([rng.normal(0, 1, 80), rng.normal(1, 1, 80)])
        found = interval(auroc(scores, positive, weights), 0.95)
        covered += int((found.low or 0) <= truth <= (found.high or 1))
    # Three standard errors of 200 trials are 0.046.
    assert covered / trials == pytest.approx(0.95, abs=0.05)


def test_paired_difference_sees_what_unpaired_intervals_hide() -> None:
    rng = np.random.default_rng(2)
    positive = np.arange(200) >= 100
    shared = rng.normal(0, 1, 200)
    better, worse = shared + 0.9 * positive, shared + 0.65 * positive
    weights = patient_weights([str(i) for i in range(200)], 1000, seed=0)
    one, other = auroc(better, positive, weights), auroc(worse, positive, weights)
    gain = interval(one - other, 0.95)
    first, second = interval(one, 0.95), interval(other, 0.95)
    assert gain.low is not None and gain.low > 0
    assert (first.low or 0) < (second.high or 0)


def test_a_difference_is_seen_where_there_is_none_in_about_one_of_twenty() -> None:
    rng = np.random.default_rng(4)
    positive = np.arange(160) >= 80
    weights = patient_weights([str(i) for i in range(160)], 300, seed=0)
    seen = 0
    for _ in range(200):
        one = auroc(rng.normal(0, 1, 160) + positive, positive, weights)
        other = auroc(rng.normal(0, 1, 160) + positive, positive, weights)
        gain = interval(one - other, 0.95)
        seen += int(not (gain.low or 0) < 0 < (gain.high or 0))
    assert seen / 200 == pytest.approx(0.05, abs=0.046)


def test_too_few_scorable_draws_give_no_interval_and_a_missing_estimate_an_error() -> None:
    values = np.array([0.5, *[np.nan] * 6, 0.4, 0.6])
    assert interval(values, 0.95).low is None
    with pytest.raises(ValueError, match="not finite"):
        interval(np.array([np.nan, 0.1]), 0.95)
