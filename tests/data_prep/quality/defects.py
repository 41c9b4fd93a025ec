"""Defects planted in clean volumes (slice, row, column), each with a severity: what the checks are measured against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Defect:
    """One kind of defect at one severity."""

    check: str
    """The check that must find it."""
    words: str
    plant: Callable[[Floats, np.random.Generator], Floats]


def noisy(values: Floats, rng: np.random.Generator, snr: float) -> Floats:
    """Rician noise that leaves this ratio to the body's median."""
    sigma = float(np.median(values[values > np.percentile(values, 60)])) / snr
    real, imaginary = (rng.normal(0, sigma, values.shape) for _ in range(2))
    return np.hypot(values + real, imaginary).astype(np.float32)


def ghosted(values: Floats, rng: np.random.Generator, strength: float, axis: int = 1) -> Floats:
    """The picture once more, weaker, half a field of view away: the N/2 ghost of echo-planar readout."""
    half = np.roll(values, values.shape[axis] // 2, axis=axis)
    return np.hypot(values, strength * half).astype(np.float32)


def moved(values: Floats, rng: np.random.Generator, voxels: float) -> Floats:
    """A patient who shifts along the rows between bands of phase-encoding lines, and back."""
    lines = values.shape[1]
    frequency = np.fft.fftfreq(lines)
    shift = np.zeros(lines)
    for _ in range(3):
        band = (int(rng.integers(lines)) + np.arange(lines // 6)) % lines
        shift[band] = voxels * rng.choice([-1.0, 1.0])
    shift[np.abs(frequency) < 0.03] = 0
    phase = np.exp(-2j * np.pi * frequency * shift)
    return np.abs(np.fft.ifft(np.fft.fft(values, axis=1) * phase[None, :, None], axis=1)).astype(np.float32)


def banded(values: Floats, rng: np.random.Generator, share: float) -> Floats:
    """Every second slice darker: slices excited too soon after their neighbours."""
    found = values.copy()
    found[1::2] *= 1 - share
    return found


def displaced(values: Floats, rng: np.random.Generator, voxels: int) -> Floats:
    """Every second slice shifted: the patient moved between the two passes."""
    found = values.copy()
    found[1::2] = np.roll(found[1::2], voxels, axis=2)
    return found


def dropped(values: Floats, rng: np.random.Generator, share: float) -> Floats:
    """One slice in the middle lost this share of its signal."""
    found = values.copy()
    found[len(found) // 2 + int(rng.integers(-2, 3))] *= 1 - share
    return found


def clipped(values: Floats, rng: np.random.Generator, percent: float) -> Floats:
    """Everything above a percentile of the bright part is cut off."""
    return np.minimum(values, np.percentile(values[values > np.percentile(values, 60)], percent))


def blanked(values: Floats, rng: np.random.Generator) -> Floats:
    """A slice in the middle that was sent empty."""
    found = values.copy()
    found[len(found) // 2] = 0
    return found


DEFECTS = (
    Defect("low_snr", "noise to SNR 3", lambda v, r: noisy(v, r, 3)),
    Defect("low_snr", "noise to SNR 5", lambda v, r: noisy(v, r, 5)),
    Defect("ghosting", "N/2 ghost of 20 %", lambda v, r: ghosted(v, r, 0.2)),
    Defect("ghosting", "N/2 ghost of 10 %", lambda v, r: ghosted(v, r, 0.1)),
    Defect("ghosting", "motion of 4 voxels", lambda v, r: moved(v, r, 4.0)),
    Defect("ghosting", "motion of 2 voxels", lambda v, r: moved(v, r, 2.0)),
    Defect("banding", "every second slice 15 % darker", lambda v, r: banded(v, r, 0.15)),
    Defect("banding", "every second slice 7 % darker", lambda v, r: banded(v, r, 0.07)),
    Defect("slice_shift", "every second slice 2 voxels aside", lambda v, r: displaced(v, r, 2)),
    Defect("slice_outlier", "one slice lost 60 %", lambda v, r: dropped(v, r, 0.6)),
    Defect("clipped", "brightest 5 % cut off", lambda v, r: clipped(v, r, 95)),
    Defect("blank_slices", "an empty slice", lambda v, r: blanked(v, r)),
)
