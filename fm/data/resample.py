"""Resampling of a voxel grid on a lattice of patches, axis by axis.

A sample weighs two or three voxels, those of one patch a few more than it has samples: so each patch multiplies by a
small matrix of its own, and what comes out lies patch by patch. :mod:`tests.data.test_resample` holds the same as whole
matrices, the reference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]


@dataclass(kw_only=True, slots=True)
class Span:
    """Where one axis of the lattice lies on one axis of the grid, in source voxels."""

    patches: int
    size: int
    """Samples of a patch."""
    origin: float
    step: float
    """From a sample to the next."""
    reach: float
    """Of the filter around a sample."""
    lo: int
    hi: int
    """First voxel that is read, and the one past the last."""

    @property
    def centres(self) -> NDArray[np.float64]:
        """(patches,) patch centres in source voxels."""
        patch = self.step * self.size
        return np.asarray(self.origin + (np.arange(self.patches) + 0.5) * patch - 0.5, dtype=np.float64)


@dataclass(kw_only=True, slots=True)
class Filter:
    """How one axis of the lattice reads voxels ``lo`` to ``hi`` of one axis of the grid."""

    tiles: Float
    """(patches, samples of a patch, n) weights of n voxels; a row that sees only padding is zero."""
    first: list[int]
    """First of each patch's n voxels, from ``lo`` on."""


def filter_of(span: Span, *, box: bool, valid: NDArray[np.bool_] | None = None) -> Filter:
    """Weights that sample the voxels of a span at `origin + (j + ½) · step − ½`.

    A triangle as wide as the coarser of the two spacings (linear interpolation upwards, anti-aliased downwards), or a
    box of `step` whole voxels. Weights are relative to the full filter, so samples at the rim fade into air.

    Args:
        span: what is sampled.
        box: whether the filter is a box.
        valid: (hi − lo,) voxels that are there: a sample becomes the mean of those, as a missing slice must not
            darken its neighbours; None leaves the weights as they are.
    """
    voxels, samples = span.hi - span.lo, span.patches * span.size
    centre = span.origin + (np.arange(samples) + 0.5) * span.step - 0.5
    near = np.ceil(centre - span.reach).astype(np.int64)[:, None] + np.arange(math.floor(2 * span.reach) + 1)
    distance = np.abs(centre[:, None] - near) / span.reach
    weights = (distance < 1).astype(np.float64) if box else np.maximum(0, 1 - distance)
    # Every row sums to one over the whole filter, cut or not: a triangle sampled at some phase does not by itself.
    weights /= weights.sum(axis=1, keepdims=True)
    near -= span.lo
    weights *= (near >= 0) & (near < voxels)
    if valid is not None:
        weights *= valid[np.clip(near, 0, voxels - 1)]
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-6)
    shape = (span.patches, span.size, near.shape[1])
    near, weights = near.reshape(shape), weights.reshape(shape)
    width = min(voxels, int((near[:, -1, -1] - near[:, 0, 0]).max()) + 1)
    first = np.clip(near[:, 0, 0], 0, voxels - width)
    column = near - first[:, None, None]
    patch, row, tap = np.nonzero(weights)
    tiles = np.zeros((span.patches, span.size, width), np.float32)
    tiles[patch, row, column[patch, row, tap]] = weights[patch, row, tap]
    return Filter(tiles=tiles, first=first.tolist())


def resample(values: Float, filters: tuple[Filter, Filter, Filter]) -> Float:
    """A grid on the lattice.

    Args:
        values: (D, H, W) voxels, 0 in air, from the ``lo`` of each axis on.
        filters: of the three axes; the patches have (d, h, w) samples.

    Returns:
        (H patches, W patches, D patches · d, h, w) samples.
    """
    depth, height, width = filters
    samples = depth.tiles.shape[0] * depth.tiles.shape[1]
    start = _copied(depth, len(values))
    if start is None:
        values, start = _weighed(values, depth), 0
    count, size, near = height.tiles.shape
    rows = np.empty((count, samples, size, values.shape[2]), np.float32)
    rows[:, :start] = rows[:, start + len(values) :] = 0
    for tile, first, out in zip(height.tiles, height.first, rows, strict=True):
        np.matmul(tile, values[:, first : first + near], out=out[start : start + len(values)])
    across, wide, near = width.tiles.shape
    found = np.empty((count, across, samples * size, wide), np.float32)
    flat = rows.reshape(count, samples * size, -1)
    for patch, (tile, first) in enumerate(zip(width.tiles, width.first, strict=True)):
        np.matmul(flat[:, :, first : first + near], tile.T, out=found[:, patch])
    return found.reshape(count, across, samples, size, wide)


def _weighed(values: Float, axis: Filter) -> Float:
    """Samples of the first axis."""
    count, size, near = axis.tiles.shape
    found = np.empty((count, size, math.prod(values.shape[1:])), np.float32)
    for tile, first, out in zip(axis.tiles, axis.first, found, strict=True):
        np.matmul(tile, values[first : first + near].reshape(near, -1), out=out)
    return found.reshape(count * size, *values.shape[1:])


def _copied(axis: Filter, voxels: int) -> int | None:
    """Sample at which the voxels begin, where every sample is a voxel or padding; None where they are weighed."""
    patch, row, column = np.nonzero(axis.tiles)
    if len(patch) != voxels or (axis.tiles[patch, row, column] != 1).any():
        return None
    sample, voxel = patch * axis.tiles.shape[1] + row, np.asarray(axis.first)[patch] + column
    start = int(sample[0])
    return start if (sample - start == voxel).all() else None
