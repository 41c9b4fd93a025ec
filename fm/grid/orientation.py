"""From any scan's array axes to the contract's: D the slice axis, H nearest superior, W the other.

Each canonical axis increases toward R, A or S (RAS+, as in NIfTI); an oblique scan keeps its own oblique axes, in the
canonical order and direction. Nothing is resampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fm.grid.affine import Float, spacing_of

PLANES = ("sagittal", "coronal", "axial")
"""Plane of a volume whose slice axis lies nearest R, A, S."""


@dataclass(kw_only=True, slots=True)
class Reorientation:
    """How an array's axes become (D, H, W)."""

    order: tuple[int, int, int]
    """Source axis of D, of H and of W."""
    flip: tuple[bool, bool, bool]
    """Whether D, H, W run against their source axis."""
    affine: Float
    """(4, 4) float64: (d, h, w, 1) to RAS+ mm."""
    shape: tuple[int, int, int]
    """Canonical (D, H, W)."""
    plane: str
    """'axial', 'coronal' or 'sagittal'."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel spacing along (D, H, W)."""
        return spacing_of(self.affine)

    def apply(self, values: NDArray[Any]) -> NDArray[Any]:
        """View of `values` (source axes) with axes (D, H, W); trailing axes stay."""
        trailing = range(3, values.ndim)
        moved = values.transpose(*self.order, *trailing)
        return moved[tuple(slice(None, None, -1) if f else slice(None) for f in self.flip)]


def world_axes(affine: ArrayLike) -> tuple[int, int, int]:
    """World axis (0 = R, 1 = A, 2 = S) nearest each array axis, each world axis used once."""
    matrix = np.asarray(affine, dtype=np.float64)[:3, :3]
    cosines = np.abs(matrix / np.linalg.norm(matrix, axis=0))
    best = max(permutations(range(3)), key=lambda p: sum(cosines[world, axis] for axis, world in enumerate(p)))
    return best[0], best[1], best[2]


def plane_of(affine: ArrayLike, slice_axis: int) -> str:
    """Patient plane nearest to the slices stacked along array axis `slice_axis`."""
    return PLANES[world_axes(affine)[slice_axis]]


def guess_slice_axis(affine: ArrayLike) -> int:
    """The array axis that slices were most likely stacked along: much the coarsest one, else the last."""
    spacing = np.asarray(spacing_of(affine))
    coarsest = int(spacing.argmax())
    rest = np.delete(spacing, coarsest)
    return coarsest if spacing[coarsest] > 1.2 * rest.max() else 2


def canonical_axes(affine: ArrayLike, shape: tuple[int, ...], slice_axis: int | None = None) -> Reorientation:
    """The contract's axes for an array of `shape` (three axes) with a 4×4 RAS+ `affine`.

    Args:
        affine: source voxel indices to RAS+ mm.
        shape: source shape; axes past the third are ignored.
        slice_axis: the acquired slice axis; guessed from the spacing where None.

    Raises:
        ValueError: the affine is not finite or is singular.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ValueError("affine must be 4×4 and finite")
    if abs(float(np.linalg.det(matrix[:3, :3]))) < 1e-9:
        raise ValueError("affine is singular")
    world = world_axes(matrix)
    d = guess_slice_axis(matrix) if slice_axis is None else slice_axis
    in_plane = sorted((axis for axis in range(3) if axis != d), key=lambda axis: -world[axis])
    order = (d, in_plane[0], in_plane[1])
    flip = tuple(bool(matrix[world[axis], axis] < 0) for axis in order)
    affine_out = np.eye(4)
    affine_out[:3, 3] = matrix[:3, 3]
    for column, (axis, reverse) in enumerate(zip(order, flip, strict=True)):
        affine_out[:3, column] = -matrix[:3, axis] if reverse else matrix[:3, axis]
        if reverse:
            affine_out[:3, 3] += matrix[:3, axis] * (shape[axis] - 1)
    return Reorientation(
        order=order,
        flip=(flip[0], flip[1], flip[2]),
        affine=affine_out,
        shape=(int(shape[order[0]]), int(shape[order[1]]), int(shape[order[2]])),
        plane=PLANES[world[d]],
    )
