"""Affines that take voxel indices to RAS+ millimetres."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]


def spacing_of(affine: ArrayLike) -> tuple[float, float, float]:
    """Voxel spacing in mm along each of the three array axes of a 4×4 affine."""
    a, b, c = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
    return float(a), float(b), float(c)


def apply_affine(affine: ArrayLike, points: ArrayLike) -> Float:
    """Map points (..., 3) through a 4×4 affine, e.g. voxel indices to millimetres."""
    matrix = np.asarray(affine, dtype=np.float64)
    return np.asarray(points, dtype=np.float64) @ matrix[:3, :3].T + matrix[:3, 3]


def invert_affine(affine: ArrayLike) -> Float:
    """Inverse of a 4×4 affine.

    Raises:
        ValueError: the affine is not finite, not 4×4, or singular (its volume per voxel is below 1e-9 mm³).
    """
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ValueError("affine must be 4×4 and finite")
    if abs(float(np.linalg.det(matrix[:3, :3]))) < 1e-9:
        raise ValueError("affine is singular")
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def crop_affine(affine: ArrayLike, start: Sequence[int] | NDArray[Any]) -> Float:
    """Affine of the crop whose voxel (0, 0, 0) is voxel `start` of the whole."""
    cropped = np.array(affine, dtype=np.float64)
    cropped[:3, 3] = apply_affine(cropped, np.asarray(start, dtype=np.float64))
    return cropped
