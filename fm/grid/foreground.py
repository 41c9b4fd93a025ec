"""The body's outline: air that touches the border of the picture, and the intensity range of the rest.

Only air *connected to the border* counts, so lung, bowel, bone and flowing blood stay in the body.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def air_threshold(values: NDArray[Any]) -> float:
    """Intensity below which a voxel may be air.

    A tenth of the robust range above its low end (FSL BET's threshold, Smith 2002, doi:10.1002/hbm.10062), raised to
    four deviations above the noise floor where the in-plane rim of the picture is plainly air: dark and even. Noise
    that is strong against the signal (diffusion at high b, low field) lies above BET's tenth.
    """
    low, high = (float(v) for v in np.percentile(values[:, ::2, ::2], (2, 98)))
    threshold = low + 0.1 * (high - low)
    rim = np.concatenate(
        [edge.ravel() for edge in (values[:, :2], values[:, -2:], values[:, :, :2], values[:, :, -2:])]
    )
    middle = float(np.median(rim))
    spread = 1.4826 * float(np.median(np.abs(rim - middle)))
    if middle < low + 0.35 * (high - low) and spread < 0.05 * (high - low):
        threshold = max(threshold, middle + 4 * spread)
    return threshold


def border_connected_air(values: NDArray[Any], slice_valid: NDArray[Any] | None = None) -> Mask:
    """True where a voxel is air that reaches the in-plane border (D, H, W).

    Air may pass only where it is wide in-plane (about 1/50 of the picture), so that dark cortical bone does not let it
    into the head. Slices marked invalid are air throughout and are left out of
    the walk.

    Args:
        values: (D, H, W) magnitudes.
        slice_valid: (D,) bool; None where every slice was acquired.
    """
    valid = np.ones(values.shape[0], dtype=bool) if slice_valid is None else np.asarray(slice_valid, dtype=bool)
    air = np.ones(values.shape, dtype=bool)
    if not valid.any():
        return air
    kept = np.asarray(values[valid], dtype=np.float32)
    smooth = _box3(kept)
    low = smooth <= air_threshold(smooth)
    factor = max(2, round(min(low.shape[1:]) / 96))
    reached = _flood(_shrink(low, factor))
    air[valid] = _enlarge(_dilate(reached), factor, low.shape) & low
    return air


def robust_range(
    values: NDArray[Any], mask: Mask, low_percent: float = 0.5, high_percent: float = 99.5
) -> tuple[float, float]:
    """Percentiles of the voxels where `mask` is True, in the units of `values`; (0, 0) where the mask is empty."""
    inside = values[mask]
    if inside.size == 0:
        return 0.0, 0.0
    low, high = np.percentile(inside, (low_percent, high_percent))
    return float(low), float(high)


def _box3(values: NDArray[Any]) -> NDArray[np.float32]:
    """Mean over 3×3 in-plane neighbours, edges repeated."""
    padded = np.pad(values, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    return np.asarray(total / 9, dtype=np.float32)


def _dilate(mask: Mask) -> Mask:
    """In-plane 3×3 dilation."""
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    rows = padded[:, :-2] | padded[:, 1:-1] | padded[:, 2:]
    return np.asarray(rows[:, :, :-2] | rows[:, :, 1:-1] | rows[:, :, 2:], dtype=bool)


def _shrink(mask: Mask, factor: int) -> Mask:
    """One cell per factor×factor in-plane voxels, True where all of them are; past the edge counts as True."""
    d, h, w = mask.shape
    padded = np.pad(mask, ((0, 0), (0, -h % factor), (0, -w % factor)), constant_values=True)
    cells = padded.reshape(d, padded.shape[1] // factor, factor, padded.shape[2] // factor, factor)
    return np.asarray(cells.all(axis=(2, 4)), dtype=bool)


def _enlarge(cells: Mask, factor: int, shape: tuple[int, ...]) -> Mask:
    return cells.repeat(factor, axis=1).repeat(factor, axis=2)[:, : shape[1], : shape[2]]


def _flood(passable: Mask) -> Mask:
    """Passable voxels that a 6-connected walk reaches from the in-plane border.

    Sweeps each axis both ways until nothing changes: a handful of rounds on anatomy.
    """
    reached = np.zeros_like(passable)
    for edge in (np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1]):
        reached[edge] = passable[edge]
    count = -1
    while (now := int(np.count_nonzero(reached))) != count:
        count = now
        for axis in range(3):
            along = np.moveaxis(reached, axis, 0)
            open_ = np.moveaxis(passable, axis, 0)
            for i in range(1, along.shape[0]):
                along[i] |= along[i - 1] & open_[i]
            for i in range(along.shape[0] - 2, -1, -1):
                along[i] |= along[i + 1] & open_[i]
    return reached
