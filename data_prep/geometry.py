"""True geometry: where each slice lies, from its own header, and the regular grid that holds them all.

DICOM patient coordinates are LPS; everything that leaves this module is RAS+ (the first two axes change sign).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.ledger import QuarantineError, Reason

GAP_TOLERANCE = 0.1
"""A step may differ from the slice spacing by this share before it counts as a gap or as irregular."""
SAME_PLACE_MM = 0.01
MAX_GRID_SLICES = 4096
_TO_RAS = np.array([-1.0, -1.0, 1.0])

Float = NDArray[np.float64]


@dataclass(kw_only=True, slots=True)
class Frame:
    """Place of one slice, DICOM LPS millimetres."""

    position: Float
    """(3,) centre of the first pixel."""
    orientation: Float
    """(6,) direction of increasing column, then of increasing row."""
    pixel_spacing: Float
    """(2,) between rows, between columns."""


@dataclass(kw_only=True, slots=True)
class Grid:
    """A regular grid that holds every slice of a stack; array axes (column, row, slice)."""

    affine: Float
    """(4, 4) float64: (column, row, slice, 1) to RAS+ mm."""
    depth: int
    """Slices of the grid, missing ones included."""
    slot_of_frame: NDArray[np.int64]
    """(frames,) the grid slice of each frame, in the order given."""
    slice_mm: list[float]
    """(depth,) position of each slice along the normal from the first; missing ones where the grid has them."""

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(depth,) whether the slice was acquired."""
        return np.isin(np.arange(self.depth), self.slot_of_frame)


def make_frame(
    position: Sequence[float] | None, orientation: Sequence[float] | None, pixel_spacing: Sequence[float] | None
) -> Frame:
    """Check one slice's geometry.

    Raises:
        QuarantineError: a part is missing, the directions are not orthonormal (1e-3), or the spacing is not positive.
    """
    if position is None or orientation is None or pixel_spacing is None:
        raise QuarantineError(Reason.NO_GEOMETRY)
    frame = Frame(
        position=np.asarray(position, dtype=np.float64),
        orientation=np.asarray(orientation, dtype=np.float64),
        pixel_spacing=np.asarray(pixel_spacing, dtype=np.float64),
    )
    column, row = frame.orientation[:3], frame.orientation[3:]
    lengths = np.array([column @ column, row @ row, column @ row + 1.0])
    if np.abs(lengths - 1.0).max() > 2e-3 or frame.pixel_spacing.min() <= 0 or np.abs(frame.position).max() > 1e5:
        raise QuarantineError(Reason.NO_GEOMETRY)
    return frame


def along_normal(frames: Sequence[Frame]) -> Float:
    """(frames,) position of each slice along the normal of the first, in mm."""
    normal = np.cross(frames[0].orientation[:3], frames[0].orientation[3:])
    return np.array([frame.position @ normal for frame in frames])


def places(frames: Sequence[Frame]) -> tuple[NDArray[np.int64], Float]:
    """Rank of each frame's place along the normal, and the sorted places; nearer than 0.01 mm is one place."""
    along = along_normal(frames)
    order = np.argsort(along, kind="stable")
    steps = np.diff(along[order], prepend=along[order[0]]) > SAME_PLACE_MM
    rank = np.empty(len(frames), dtype=np.int64)
    rank[order] = np.cumsum(steps)
    return rank, along[order][np.flatnonzero(np.r_[True, steps[1:]])]


def make_grid(frames: Sequence[Frame], slice_step_mm: float | None) -> Grid:
    """The regular grid of a stack of parallel slices, gaps included.

    Args:
        frames: slices of one orientation and spacing, any order, several may share a place.
        slice_step_mm: spacing of a lone slice, which cannot tell its own.

    Raises:
        QuarantineError: the places fit no regular grid.
    """
    rank, at = places(frames)
    first = frames[int(np.flatnonzero(rank == 0)[0])]
    last = frames[int(np.flatnonzero(rank == len(at) - 1)[0])]
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    if len(at) == 1:
        slots, step = np.zeros(1, dtype=np.int64), normal * (slice_step_mm or 1.0)
    else:
        slots = _slots(at)
        step = (last.position - first.position) / slots[-1]
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[:3] * first.pixel_spacing[1] * _TO_RAS
    affine[:3, 1] = first.orientation[3:] * first.pixel_spacing[0] * _TO_RAS
    affine[:3, 2] = step * _TO_RAS
    affine[:3, 3] = first.position * _TO_RAS
    # The slices' places are checked in the plane too: a stack that drifts sideways is no grid
    slot_of_frame = slots[rank]
    expected = first.position + slot_of_frame[:, None] * step
    tolerance = max(SAME_PLACE_MM, GAP_TOLERANCE * float(np.linalg.norm(step)))
    if max(float(np.linalg.norm(f.position - e)) for f, e in zip(frames, expected, strict=True)) > tolerance:
        raise QuarantineError(Reason.IRREGULAR_SLICES)
    depth = int(slots[-1]) + 1
    slice_mm = np.arange(depth) * float(np.linalg.norm(step))
    slice_mm[slots] = at - at[0] if len(at) > 1 else 0.0
    return Grid(affine=affine, depth=depth, slot_of_frame=slot_of_frame, slice_mm=[float(v) for v in slice_mm])


def _slots(at: Float) -> NDArray[np.int64]:
    """Grid slice of each place: steps must be whole multiples of the smallest kind, and most slices must be there."""
    steps = np.sort(np.diff(at))
    base = float(steps[(len(steps) - 1) // 2])
    if base > 1.5 * steps[0]:
        base = float(steps[0])  # every second slice is missing, or worse
    slots: NDArray[np.int64] = np.rint((at - at[0]) / base).astype(np.int64)
    for _ in range(2):
        base = float((at[-1] - at[0]) / slots[-1])
        slots = np.rint((at - at[0]) / base).astype(np.int64)
    off = np.abs((at - at[0]) / base - slots).max()
    missing = int(slots[-1]) + 1 - len(at)
    if off > GAP_TOLERANCE or (np.diff(slots) < 1).any() or missing > len(at) or slots[-1] >= MAX_GRID_SLICES:
        raise QuarantineError(Reason.IRREGULAR_SLICES)
    return slots


def same_axes(affine: Float, other: Float) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """How the array axes of `other` become those of `affine`: source axis and flip of each of the three.

    Raises:
        QuarantineError: the two do not share their directions (cosine below 0.99).
    """
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    unit_other = other[:3, :3] / np.linalg.norm(other[:3, :3], axis=0)
    cosines = unit.T @ unit_other
    order = tuple(int(axis) for axis in np.abs(cosines).argmax(axis=1))
    picked = np.array([cosines[target, source] for target, source in enumerate(order)])
    if len(set(order)) != 3 or np.abs(picked).min() < 0.99 or not np.isfinite(picked).all():
        raise QuarantineError(Reason.CONVERTER_MISMATCH)
    return order, tuple(bool(cosine < 0) for cosine in picked)


def reorder(values: NDArray[Any], order: tuple[int, ...], flip: tuple[bool, ...]) -> NDArray[Any]:
    """Apply :func:`same_axes` to the first three axes of an array."""
    moved = values.transpose(*order, *range(3, values.ndim))
    return moved[tuple(slice(None, None, -1) if f else slice(None) for f in flip)]
