"""What another scanner would have made of a crop: bias field, blur, ghosts, coarse voxels, low field, missing lines.

All act on the magnitude that was sampled for a view, in-plane along (H, W); air stays air. Ghosts and missing lines
treat the crop as the field of view. Nothing moves, and nothing is mirrored: a report may name a side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fm.config.data import DataConfig
from fm.data.plan import keyed_rng

Float = NDArray[np.float32]

_FIELD_T = 1.5
_NOISE = 0.02
"""Standard deviation of the noise at 1.5 T, in units of the normalised range."""
_CENTRE = 0.08
"""Share of the phase-encoding lines around the middle of k-space that is always acquired (fastMRI,
arXiv 1811.08839)."""


@dataclass(kw_only=True, slots=True)
class Effects:
    """The effects of one view; the defaults do nothing."""

    key: tuple[str | int, ...]
    """Of the random numbers that noise and missing lines take."""
    bias: NDArray[np.float64] | None = None
    """(4, 4, 4) coefficients of a polynomial in the place within the crop, the logarithm of the field."""
    blur_mm: float = 0.0
    """Standard deviation in-plane."""
    coarse: float = 1.0
    """In-plane voxel size relative to that of the crop."""
    phase_axis: int = 1
    """1 for H, 2 for W: the phase-encoding direction, along which ghosts lie and lines are missing."""
    ghosts: int = 0
    ghost_strength: float = 0.0
    acceleration: float = 1.0
    noise: float = 0.0
    """Standard deviation of the Rician noise, in units of the normalised range."""

    @property
    def only_bias(self) -> bool:
        """Whether there is a bias field and nothing else, so that each voxel changes by itself."""
        others = self.blur_mm > 0 or self.coarse > 1 or self.ghosts > 0 or self.acceleration > 1 or self.noise > 0
        return self.bias is not None and not others


def draw_effects(data: DataConfig, key: tuple[str | int, ...]) -> Effects | None:
    """Random effects as configured, each on ``data.effect_share`` of the views; None where all are off."""
    on = (
        data.bias_field,
        data.blur_mm,
        data.ghosting,
        data.low_resolution - 1,
        data.low_field_t,
        data.acceleration - 1,
    )
    if not any(on):
        return None
    rng = keyed_rng(*key)
    hits = rng.random(len(on)) < data.effect_share
    bias, blur, ghosting, resolution, field, lines = (
        bool(hit and amount) for hit, amount in zip(hits, on, strict=True)
    )
    effects = Effects(key=key, phase_axis=int(rng.integers(1, 3)))
    if bias:
        powers = np.add.outer(np.add.outer(np.arange(4), np.arange(4)), np.arange(4))
        effects.bias = rng.uniform(-data.bias_field, data.bias_field, (4, 4, 4)) * ((powers > 0) & (powers < 4))
    if blur:
        effects.blur_mm = float(rng.uniform(0, data.blur_mm))
    if ghosting:
        effects.ghosts, effects.ghost_strength = int(rng.integers(4, 11)), float(rng.uniform(0, data.ghosting))
    if resolution:
        effects.coarse = float(rng.uniform(1, data.low_resolution))
    if field:
        # SNR grows with the field (Marques 2019, doi:10.1002/jmri.26637). Half of the loss is bought back by larger
        # voxels, as scanners of low field do; the other half is seen as noise.
        loss = math.exp(rng.uniform(0, math.log(_FIELD_T / data.low_field_t)))
        effects.coarse *= loss**0.25
        effects.noise = _NOISE * loss**0.5
    if lines:
        effects.acceleration = float(rng.uniform(1, data.acceleration))
    return effects


def apply_effects(grid: Float, effects: Effects, spacing_mm: tuple[float, float]) -> None:
    """Apply effects in place.

    Args:
        grid: (D, H, W) twice the normalised intensity, 0 in air.
        effects: what to apply.
        spacing_mm: of the grid along H and W.
    """
    air = grid == 0
    if effects.bias is not None:
        grid *= np.exp(_polynomial(effects.bias, grid.shape)).astype(np.float32)
    if effects.blur_mm > 0 or effects.coarse > 1:
        height, width = (
            _coarse(n, effects.coarse) @ _blur(n, effects.blur_mm / mm)
            for n, mm in zip(grid.shape[1:], spacing_mm, strict=True)
        )
        grid[:] = height.astype(np.float32) @ (grid @ width.T.astype(np.float32))
    if effects.ghosts or effects.acceleration > 1:
        lines = _lines(effects, grid.shape[effects.phase_axis])
        lines = lines[:, None] if effects.phase_axis == 1 else lines
        spectrum = np.fft.fft(grid, axis=effects.phase_axis) * lines.astype(np.float32)
        grid[:] = np.abs(np.fft.ifft(spectrum, axis=effects.phase_axis))
    if effects.noise > 0:
        rng, deviation = keyed_rng(*effects.key, "noise"), np.float32(2 * effects.noise)
        real, imaginary = rng.standard_normal((2, *grid.shape), dtype=np.float32) * deviation
        grid[:] = np.hypot(grid + real, imaginary)
    grid[air] = 0


def _polynomial(coefficients: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """A polynomial of third order on the crop, whose axes run from −1 to 1 (as torchio's RandomBiasField)."""
    d, h, w = (np.linspace(-1, 1, n)[:, None] ** np.arange(4) for n in shape)
    rows = np.tensordot(d, coefficients, axes=1)
    return np.asarray(np.einsum("djk,hj->dhk", rows, h) @ w.T)


def _blur(size: int, deviation: float) -> NDArray[np.float64]:
    """(size, size) Gaussian filter of `deviation` samples; its rows sum to one, so that the rim is no darker."""
    if deviation <= 0:
        return np.eye(size)
    distance = np.subtract.outer(np.arange(size), np.arange(size)) / deviation
    weights = np.exp(-0.5 * distance**2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _coarse(size: int, factor: float) -> NDArray[np.float64]:
    """(size, size) means over voxels `factor` samples long, interpolated back to the grid."""
    count = max(1, round(size / factor))
    if count == size:
        return np.eye(size)
    edges = np.linspace(0, size, count + 1)
    left, right = np.maximum(edges[:-1, None], np.arange(size)), np.minimum(edges[1:, None], np.arange(1, size + 1))
    down = np.maximum(0, right - left)
    down /= down.sum(axis=1, keepdims=True)
    at = (np.arange(size) + 0.5) * count / size - 0.5
    return np.stack([np.interp(at, np.arange(count), column) for column in down.T], axis=1)


def _lines(effects: Effects, size: int) -> NDArray[np.float64]:
    """(size,) factor of each phase-encoding line, the middle of k-space first (as ``numpy.fft.fft`` orders them)."""
    middle = np.abs(np.fft.fftfreq(size)) <= _CENTRE / 2
    lines = np.ones(size)
    if effects.ghosts:
        lines[:: effects.ghosts] -= effects.ghost_strength
    if effects.acceleration > 1:
        rest = max(0.0, size / effects.acceleration - middle.sum()) / max(1, size - middle.sum())
        lines *= keyed_rng(*effects.key, "lines").random(size) < rest
    lines[middle] = 1
    return lines
