"""Signal of a tissue under a pulse sequence, from the textbook equations.

Bernstein, King, Zhou, Handbook of MRI Pulse Sequences (2004): spin echo (ch. 14), inversion recovery (ch. 14.2),
spoiled gradient echo (Ernst, ch. 14.1); Stejskal and Tanner, J Chem Phys 42:288 (1965): diffusion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from data_prep.phantom.tissue import RELAXIVITY, Constants, Tissue, constants

T2_PRIME_MS_T = 225.0
"""Field-dependent part of gradient-echo decay: 1/T2* = 1/T2 + B0 / this: 75 ms at 3 T (Peters et al., Magn
Reson Imaging 25:748, 2007)."""


class Weighting(StrEnum):
    """Image contrast of a simulated series."""

    T1W = "T1w"
    T2W = "T2w"
    FLAIR = "FLAIR"
    PD = "PD"
    T1W_C = "T1w+c"
    DWI = "DWI"
    ADC = "ADC"


class Kind(StrEnum):
    """Which equation gives the signal."""

    SPIN_ECHO = "SE"
    INVERSION_RECOVERY = "IR"
    GRADIENT_ECHO = "GR"
    DIFFUSION = "EP"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """Timing of one pulse sequence. Times in ms, angle in degrees, b in s/mm²."""

    weighting: Weighting
    kind: Kind
    repetition_ms: float
    echo_ms: float
    inversion_ms: float | None = None
    flip_deg: float = 90.0
    b_values: tuple[int, ...] = ()
    agent: bool = False


def spin_echo(tissue: Constants, tr: float, te: float) -> float:
    """M0 (1 - 2 exp(-(TR - TE/2)/T1) + exp(-TR/T1)) exp(-TE/T2); TE is the effective one of an echo train."""
    recovered = 1 - 2 * math.exp(-(tr - te / 2) / tissue.t1_ms) + math.exp(-tr / tissue.t1_ms)
    return tissue.density * max(recovered, 0.0) * math.exp(-te / tissue.t2_ms)


def inversion_recovery(tissue: Constants, tr: float, te: float, ti: float) -> float:
    """M0 abs(1 - 2 exp(-TI/T1) + exp(-TR/T1)) exp(-TE/T2): the magnitude image."""
    recovered = 1 - 2 * math.exp(-ti / tissue.t1_ms) + math.exp(-tr / tissue.t1_ms)
    return tissue.density * abs(recovered) * math.exp(-te / tissue.t2_ms)


def spoiled_gradient_echo(tissue: Constants, tr: float, te: float, flip_deg: float, field_t: float) -> float:
    """M0 sin(a) (1 - E1) / (1 - cos(a) E1) exp(-TE/T2*), E1 = exp(-TR/T1)."""
    angle, e1 = math.radians(flip_deg), math.exp(-tr / tissue.t1_ms)
    rate = 1 / tissue.t2_ms + field_t / T2_PRIME_MS_T
    return tissue.density * math.sin(angle) * (1 - e1) / (1 - math.cos(angle) * e1) * math.exp(-te * rate)


def diffusion(tissue: Constants, tr: float, te: float, b: float) -> float:
    """Spin echo times exp(-b ADC), b in s/mm² and ADC in µm²/ms (10⁻³ mm²/s)."""
    return spin_echo(tissue, tr, te) * math.exp(-b * tissue.adc * 1e-3)


def with_agent(tissue: Constants, field_t: float) -> Constants:
    """The tissue after contrast agent: 1/T = 1/T0 + r C for T1 and T2."""
    r1, r2 = RELAXIVITY[field_t]
    return replace(
        tissue,
        t1_ms=1 / (1 / tissue.t1_ms + r1 * tissue.uptake_mm * 1e-3),
        t2_ms=1 / (1 / tissue.t2_ms + r2 * tissue.uptake_mm * 1e-3),
    )


def signal(tissue: Tissue, sequence: Sequence, field_t: float, b: float = 0.0) -> float:
    """Signal of one tissue, in units of fully relaxed water; diffusion sequences at the given b (s/mm²)."""
    if tissue is Tissue.AIR:
        return 0.0
    medium = constants(tissue, field_t)
    if sequence.agent:
        medium = with_agent(medium, field_t)
    tr, te = sequence.repetition_ms, sequence.echo_ms
    if sequence.kind is Kind.INVERSION_RECOVERY:
        assert sequence.inversion_ms is not None
        return inversion_recovery(medium, tr, te, sequence.inversion_ms)
    if sequence.kind is Kind.GRADIENT_ECHO:
        return spoiled_gradient_echo(medium, tr, te, sequence.flip_deg, field_t)
    if sequence.kind is Kind.DIFFUSION:
        # Echo-planar diffusion is fat-saturated: without it the scalp would fold over the brain.
        suppressed = 0.08 if tissue in (Tissue.FAT, Tissue.MARROW) else 1.0
        return suppressed * diffusion(medium, tr, te, b)
    return spin_echo(medium, tr, te)


def signals(sequence: Sequence, field_t: float, b: float = 0.0) -> NDArray[np.float32]:
    """(number of tissues,) signal by tissue code."""
    return np.array([signal(tissue, sequence, field_t, b) for tissue in Tissue], dtype=np.float32)
