from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torchmetrics.functional.classification import multiclass_calibration_error

from fm.probes.calibration import (
    expected_calibration_error,
    fit_temperature,
    held_out_logits,
    reliability,
    scaled_probabilities,
)
from fm.probes.tuning import patient_folds


def test_calibration_error_is_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    probabilities = softmax(2 * rng.normal(size=(200, 3)), axis=1)
    labels = rng.integers(3, size=200)
    got = expected_calibration_error(reliability(probabilities, labels, 10))
    want = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(labels), num_classes=3, n_bins=10, norm="l1"
    )
    assert got == pytest.approx(float(want), abs=1e-6)


def test_bins_hold_every_row_once_and_a_sure_and_right_model_errs_by_nothing() -> None:
    labels = np.array([0, 1, 1])
    (entry,) = reliability(np.eye(2)[labels], labels, 15)
    assert (entry.n, entry.high, entry.confidence, entry.accuracy) == (3, 1.0, 1.0, 1.0)
    assert expected_calibration_error([entry]) == 0
    assert np.isnan(expected_calibration_error([]))


def test_the_temperature_of_overconfident_logits_is_found() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(20_000, 3))
    labels = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1)
    temperature = fit_temperature(logits * 4, labels)
    assert temperature == pytest.approx(4, rel=0.05)
    before = expected_calibration_error(reliability(softmax(logits * 4, axis=1), labels, 15))
    after = expected_calibration_error(reliability(scaled_probabilities(logits * 4, temperature), labels, 15))
    assert after < 0.02 < before


def test_logits_are_of_probes_that_never_saw_the_patient() -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(2), 20)
    patients = [f"p{i // 2}" for i in range(40)]
    # Noise, more columns than rows: a probe that had seen a row would place it rightly.
    features = rng.normal(size=(40, 200))
    logits, held = held_out_logits(features, labels, patient_folds(labels, patients, 5, 0), 1.0)
    assert len(held) == 40
    assert abs((logits.argmax(axis=1) == held).mean() - 0.5) < 0.25
    assert fit_temperature(logits, held) > 1
