from __future__ import annotations

import math

import numpy as np
import pytest

from data_prep.phantom.signal import (
    Kind,
    Sequence,
    Weighting,
    diffusion,
    inversion_recovery,
    signal,
    signals,
    spin_echo,
    spoiled_gradient_echo,
    with_agent,
)
from data_prep.phantom.sites import SITES, sequence
from data_prep.phantom.tissue import FIELDS_T, Constants, Tissue, constants

WATER = Constants(t1_ms=1000.0, t2_ms=100.0, density=1.0, adc=1.0, uptake_mm=0.5)


def test_spin_echo_equals_its_closed_form() -> None:
    # TR = T1, TE = T2 with TE/2 = 50: 1 - 2 exp(-0.95) + exp(-1), times exp(-1).
    expected = (1 - 2 * math.exp(-0.95) + math.exp(-1)) * math.exp(-1)
    assert spin_echo(WATER, tr=1000, te=100) == pytest.approx(expected, rel=1e-12)


def test_inversion_recovery_vanishes_at_the_null() -> None:
    assert inversion_recovery(WATER, tr=1e6, te=10, ti=1000 * math.log(2)) == pytest.approx(0, abs=1e-9)
    assert inversion_recovery(WATER, tr=1e6, te=10, ti=1) == pytest.approx(math.exp(-0.1), rel=0.01)


def test_gradient_echo_peaks_at_the_ernst_angle() -> None:
    ernst = math.degrees(math.acos(math.exp(-20 / 1000)))
    best = spoiled_gradient_echo(WATER, 20, 2, ernst, 1.5)
    for angle in (ernst - 2, ernst + 2):
        assert spoiled_gradient_echo(WATER, 20, 2, angle, 1.5) < best


def test_diffusion_gives_back_the_adc() -> None:
    ratio = diffusion(WATER, 5000, 80, 0) / diffusion(WATER, 5000, 80, 1000)
    assert math.log(ratio) / 1000 == pytest.approx(1e-3, rel=1e-9)


def test_agent_shortens_by_relaxivity() -> None:
    # 1/1.0 s + 4.78 /mM/s × 0.5 mM = 3.39 /s.
    assert with_agent(WATER, 1.5).t1_ms == pytest.approx(1000 / 3.39, rel=1e-9)
    assert with_agent(WATER, 1.5).t2_ms == pytest.approx(1000 / (10 + 6.1 * 0.5), rel=1e-9)


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.code)
def test_contrast_of_brain_at_every_site(site) -> None:
    t1w = signals(sequence(site, Weighting.T1W, True), site.field_t)
    t2w = signals(sequence(site, Weighting.T2W, True), site.field_t)
    assert t1w[Tissue.WHITE] > t1w[Tissue.GREY] > t1w[Tissue.CSF]
    assert t2w[Tissue.WHITE] < t2w[Tissue.GREY] < t2w[Tissue.CSF]


@pytest.mark.parametrize("field_t", FIELDS_T)
@pytest.mark.parametrize("ti", [2200, 2300, 2400, 2500, 2600])
def test_csf_is_darkest_in_brain_on_flair(field_t: float, ti: int) -> None:
    flair = Sequence(
        weighting=Weighting.FLAIR, kind=Kind.INVERSION_RECOVERY, repetition_ms=9000, echo_ms=110, inversion_ms=ti
    )
    values = signals(flair, field_t)
    brain = [Tissue.WHITE, Tissue.GREY, Tissue.TUMOUR, Tissue.OEDEMA, Tissue.STROKE, Tissue.PLAQUE]
    assert values[Tissue.CSF] < min(values[tissue] for tissue in brain)


def test_what_lesions_look_like() -> None:
    site = SITES[1]

    def of(weighting: Weighting, tissue: Tissue, b: float = 0) -> float:
        return signal(tissue, sequence(site, weighting, True), site.field_t, b)

    flair, t1w, t1c = Weighting.FLAIR, Weighting.T1W, Weighting.T1W_C
    for lesion in (Tissue.OEDEMA, Tissue.STROKE, Tissue.PLAQUE):
        assert of(flair, lesion) > 1.3 * of(flair, Tissue.WHITE)
    assert of(t1c, Tissue.TUMOUR_RIM) > 1.8 * of(t1w, Tissue.TUMOUR_RIM)
    assert of(t1c, Tissue.WHITE) == of(t1w, Tissue.WHITE) and of(t1c, Tissue.CSF) == of(t1w, Tissue.CSF)
    assert of(Weighting.DWI, Tissue.STROKE, 1000) > 2 * of(Weighting.DWI, Tissue.WHITE, 1000)
    assert of(t1w, Tissue.HAEMATOMA) > of(t1w, Tissue.WHITE)
    assert of(Weighting.T2W, Tissue.HAEMATOMA) < of(Weighting.T2W, Tissue.WHITE)


def test_air_gives_nothing() -> None:
    assert signals(sequence(SITES[0], Weighting.T2W, True), 3.0)[Tissue.AIR] == 0
    assert np.isfinite(signals(sequence(SITES[5], Weighting.FLAIR, True), 0.064)).all()


def test_constants_are_the_cited_ones() -> None:
    wanted = {
        Tissue.WHITE: (650, 75, 0.70),
        Tissue.GREY: (1200, 95, 0.82),
        Tissue.CSF: (4300, 2000, 1.0),
    }
    for tissue, (t1_ms, t2_ms, density) in wanted.items():
        found = constants(tissue, 1.5)
        assert (found.t1_ms, found.t2_ms, found.density) == (t1_ms, t2_ms, density)
    assert (constants(Tissue.WHITE, 3.0).t1_ms, constants(Tissue.GREY, 3.0).t1_ms) == (840, 1600)
    for tissue, t1_ms, t2_ms in ((Tissue.FAT, 250, 80), (Tissue.LIVER, 500, 45), (Tissue.KIDNEY, 650, 60)):
        assert (constants(tissue, 1.5).t1_ms, constants(tissue, 1.5).t2_ms) == (t1_ms, t2_ms)
    assert len({constants(Tissue.CSF, field_t).t1_ms for field_t in FIELDS_T}) == 1
    with pytest.raises(KeyError, match="7"):
        constants(Tissue.WHITE, 7.0)
