from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from fm.probes.bootstrap import interval, patient_weights
from fm.probes.delong import compare_aurocs, holm
from fm.probes.metrics import auroc


def names(n: int) -> list[str]:
    return [f"p{i}" for i in range(n)]


def definition(a: np.ndarray, b: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Difference and its standard error by the sums over pairs of DeLong et al. 1988, covariance and all."""

    def kernel(s: np.ndarray) -> np.ndarray:
        x, y = s[positive][:, None], s[~positive][None, :]
        return (x > y) + 0.5 * (x == y)

    pairs = [kernel(a), kernel(b)]
    s10 = np.cov([p.mean(axis=1) for p in pairs])
    s01 = np.cov([p.mean(axis=0) for p in pairs])
    covariance = s10 / positive.sum() + s01 / (~positive).sum()
    contrast = np.array([1.0, -1.0])
    return float(pairs[0].mean() - pairs[1].mean()), float(np.sqrt(contrast @ covariance @ contrast))


@pytest.mark.parametrize("levels", [4, 10_000])
def test_delong_is_its_definition_by_pairs_with_and_without_ties(levels: int) -> None:
    rng = np.random.default_rng(levels)
    positive = rng.random(70) < 0.4
    a = rng.integers(levels, size=70) + levels * 0.4 * positive
    b = rng.integers(levels, size=70) + levels * 0.2 * positive
    gap, error = definition(a, b, positive)
    got = compare_aurocs(a, b, positive, names(70), 0.95)
    assert got.first == pytest.approx(auroc(a, positive, np.ones((1, 70), dtype=np.int64))[0])
    assert got.difference.value == pytest.approx(gap)
    assert got.difference.high == pytest.approx(gap + 1.959964 * error)
    assert got.difference.low == pytest.approx(gap - 1.959964 * error)
    assert got.p_value == pytest.approx(2 * norm.sf(abs(gap) / error))


def test_equal_models_differ_by_nothing() -> None:
    positive = np.arange(10) % 2 == 0
    got = compare_aurocs(np.arange(10.0), np.arange(10.0) * 3, positive, names(10), 0.95)
    assert (got.difference.value, got.difference.low, got.p_value) == (0.0, 0.0, 1.0)


def test_several_studies_of_a_patient_are_refused() -> None:
    positive = np.arange(6) % 2 == 0
    with pytest.raises(ValueError, match="one study per patient"):
        compare_aurocs(np.arange(6.0), np.arange(6.0), positive, [*names(5), "p0"], 0.95)
    with pytest.raises(ValueError, match="two cases of each class"):
        compare_aurocs(np.arange(6.0), np.arange(6.0), np.arange(6) == 0, names(6), 0.95)


def test_holm_steps_down_and_keeps_the_order_given() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def cases(rng: np.random.Generator, patients: int, studies: int) -> tuple[np.ndarray, np.ndarray, list[str], float]:
    """Scores of studies that share their patient's offset and class, and the AUROC between patients they come from."""
    positive = np.repeat(rng.random(patients) < 0.4, studies)
    offset = np.repeat(rng.normal(size=patients), studies)
    scores = 1.2 * positive + offset + 0.5 * rng.normal(size=patients * studies)
    truth = float(norm.cdf(1.2 / np.sqrt(2 * (1 + 0.25))))
    return scores, positive, [f"p{i // studies}" for i in range(patients * studies)], truth


@pytest.mark.full
def test_intervals_by_patient_cover_the_truth_and_intervals_by_study_do_not() -> None:
    rng = np.random.default_rng(0)
    inside = {"patient": 0, "study": 0}
    repeats = 1000
    for seed in range(repeats):
        scores, positive, patients, truth = cases(rng, 120, 3)
        for unit, owner in (("patient", patients), ("study", names(len(patients)))):
            got = interval(auroc(scores, positive, patient_weights(owner, 400, seed)), 0.95)
            assert got.low is not None and got.high is not None
            inside[unit] += got.low <= truth <= got.high
    assert 0.93 <= inside["patient"] / repeats <= 0.97
    assert inside["study"] / repeats < 0.85


@pytest.mark.full
def test_delongs_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(1)
    inside, repeats = 0, 2000
    for _ in range(repeats):
        shared, positive = rng.normal(size=120), rng.random(120) < 0.4
        a = 1.2 * positive + shared + 0.5 * rng.normal(size=120)
        b = 0.8 * positive + shared + 0.5 * rng.normal(size=120)
        truth = float(norm.cdf(1.2 / np.sqrt(2.5)) - norm.cdf(0.8 / np.sqrt(2.5)))
        got = compare_aurocs(a, b, positive, names(120), 0.95).difference
        assert got.low is not None and got.high is not None
        inside += got.low <= truth <= got.high
    assert 0.93 <= inside / repeats <= 0.97
