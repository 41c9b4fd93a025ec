"""Tissue maps of one patient, and the smooth random fields that make patients differ.

Anatomy coordinates are RAS millimetres of the unposed patient: x to the patient's right, y anterior, z superior. Arrays
over them are indexed (x, y, z).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from data_prep.phantom.tissue import Tissue

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]

SOFT = (Tissue.WHITE, Tissue.GREY, Tissue.CSF)
"""Tissues whose voxels may be mixed."""

MASK_LABELS = {
    "background": 0,
    "lesion": 1,
    "oedema": 2,
    "ventricle": 3,
    "grey_matter": 4,
    "white_matter": 5,
    "sinus_opacification": 6,
    "liver": 7,
    "spleen": 8,
    "kidney_right": 9,
    "kidney_left": 10,
    "eye": 11,
}
"""Values of the written masks."""


@dataclass(slots=True)
class Grid:
    """An axis-aligned lattice over anatomy coordinates."""

    origin: tuple[float, float, float]
    shape: tuple[int, int, int]
    step_mm: float

    @classmethod
    def over(cls, low: Sequence[float], high: Sequence[float], step_mm: float) -> Grid:
        """The lattice that covers the box from `low` to `high` (mm)."""
        shape = [round((b - a) / step_mm) + 1 for a, b in zip(low, high, strict=True)]
        return cls((low[0], low[1], low[2]), (shape[0], shape[1], shape[2]), step_mm)

    def axes(self) -> tuple[Floats, Floats, Floats]:
        """Open coordinate arrays in mm, broadcastable to the shape."""
        x, y, z = (
            (o + self.step_mm * np.arange(n)).astype(np.float32) for o, n in zip(self.origin, self.shape, strict=True)
        )
        return x[:, None, None], y[None, :, None], z[None, None, :]

    def affine(self) -> NDArray[np.float64]:
        """(4, 4) index to mm."""
        affine = np.diag([self.step_mm, self.step_mm, self.step_mm, 1.0])
        affine[:3, 3] = self.origin
        return affine


@dataclass(slots=True)
class Layer:
    """A tissue laid over a box of the map: value = old + cover strength (new - old)."""

    box: tuple[slice, slice, slice]
    tissue: Tissue
    cover: Floats
    """Shape of the box, 0 to 1."""
    label: int
    """Value in the mask where the cover reaches one half."""
    strength: float
    """How far the tissue replaces what it covers."""


@dataclass(slots=True)
class TissueMap:
    """One patient's tissues on a lattice."""

    grid: Grid
    codes: Codes
    """(X, Y, Z) :class:`Tissue` codes of the unmixed voxels."""
    mixed: NDArray[np.intp]
    """(n,) flat indices of voxels that mix white matter, grey matter and CSF."""
    weights: Floats
    """(3, n) shares of :data:`SOFT` at those voxels."""
    parts: Codes
    """(X, Y, Z) values of :data:`MASK_LABELS` without lesion and oedema."""
    layers: list[Layer] = field(default_factory=list)

    def render(self, values: Floats) -> Floats:
        """(X, Y, Z) signal, given `values` by tissue code."""
        image: Floats = values[self.codes]
        image.reshape(-1)[self.mixed] = values[[int(t) for t in SOFT]] @ self.weights
        for layer in self.layers:
            part = image[layer.box]
            part += layer.strength * layer.cover * (values[layer.tissue] - part)
        return image

    def coverage(self, label: int) -> Floats | None:
        """(X, Y, Z) largest cover of the layers with a label, None where there are none."""
        layers = [layer for layer in self.layers if layer.label == label]
        if not layers:
            return None
        cover = np.zeros(self.grid.shape, np.float32)
        for layer in layers:
            np.maximum(cover[layer.box], layer.cover, out=cover[layer.box])
        return cover


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int, int], sigma: float) -> Floats:
    """(shape) Gaussian random field of unit variance, smoothed over `sigma` voxels."""
    raw = rng.standard_normal(shape).astype(np.float32)
    field_ = ndimage.gaussian_filter(raw, sigma, mode="wrap")
    return np.asarray((field_ - field_.mean()) / max(float(field_.std()), 1e-6), np.float32)


def _upsampling(nodes: int, points: int) -> Floats:
    """(points, nodes) cubic B-spline weights of evenly spaced points between the outer nodes."""
    place = np.linspace(1, nodes - 2, points)
    distance = np.abs(place[:, None] - np.arange(nodes)[None, :])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def spline_field(rng: np.random.Generator, shape: tuple[int, int, int], nodes: tuple[int, int, int]) -> Floats:
    """(shape) smooth random field of about unit standard deviation, from a cubic B-spline lattice of `nodes`."""
    control = rng.standard_normal(nodes).astype(np.float32) * 1.8
    x, y, z = (_upsampling(n, s) for n, s in zip(nodes, shape, strict=True))
    return np.asarray(np.einsum("abc,xa,yb,zc->xyz", control, x, y, z, optimize=True), np.float32)


def warped_coordinates(
    rng: np.random.Generator, grid: Grid, scale: tuple[float, float, float], amplitude_mm: float
) -> tuple[Floats, Floats, Floats]:
    """Canonical coordinates (mm) of every lattice point of a patient `scale` times the canonical size, smoothly warped.

    The warp's nodes lie about 40 mm apart, so neither side mirrors the other.
    """
    nodes = tuple(max(5, round(n * grid.step_mm / 40) + 3) for n in grid.shape)
    warped = []
    for axis, size in zip(grid.axes(), scale, strict=True):
        bend = spline_field(rng, grid.shape, (nodes[0], nodes[1], nodes[2]))
        warped.append(np.asarray(axis / np.float32(size) + np.float32(amplitude_mm) * bend, np.float32))
    return warped[0], warped[1], warped[2]


def ellipsoid(axes: tuple[Floats, Floats, Floats], centre: Sequence[float], radii: Sequence[float]) -> Floats:
    """Squared normalised distance from the centre: below 1 inside."""
    x, y, z = axes
    return np.asarray(
        ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 + ((z - centre[2]) / radii[2]) ** 2,
        np.float32,
    )


def smoothstep(value: NDArray[np.floating[Any]]) -> Floats:
    """0 below 0, 1 above 1, smooth between."""
    clipped = np.clip(value, 0, 1)
    return np.asarray(clipped * clipped * (3 - 2 * clipped), np.float32)


def nearest(values: Codes, index: Floats) -> Codes:
    """(n,) values at (3, n) fractional indices, 0 outside."""
    flat, inside = _flat(np.rint(index), values.shape)
    found = values.reshape(-1)[flat]
    return np.where(inside, found, np.uint8(0))


def interpolator(index: Floats, shape: tuple[int, ...]) -> sparse.csr_array:
    """(n, voxels) matrix that samples a flattened volume trilinearly, averaging over `part`; zero outside.

    Args:
        index: (3, n, parts) fractional indices; the parts of a row are averaged.
        shape: of the volume.

    One sparse product per image is several times faster than resampling each image anew.
    """
    _, rows, parts = index.shape
    low = np.floor(index)
    far = np.asarray(index - low, np.float32)
    flat, inside = _flat(low, tuple(n - 1 for n in shape), strides_of=shape)
    weight = np.where(inside, np.float32(1 / parts), np.float32(0))[..., None, None, None]
    for axis in range(3):
        pair = np.stack([1 - far[axis], far[axis]], axis=-1)
        weight = weight * pair.reshape(rows, parts, *(2 if k == axis else 1 for k in range(3)))
    corner = np.arange(2, dtype=np.int32)
    step = corner[:, None, None] * (shape[1] * shape[2]) + corner[None, :, None] * shape[2] + corner
    columns = flat[..., None, None, None] + step.astype(np.int32)
    starts = np.arange(rows + 1, dtype=np.int32) * (8 * parts)
    return sparse.csr_array((weight.reshape(-1), columns.reshape(-1), starts), shape=(rows, int(np.prod(shape))))


def _flat(
    index: Floats, shape: tuple[int, ...], strides_of: tuple[int, ...] | None = None
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Flat indices of whole-numbered (3, …) indices, and which lie inside `shape`; those outside point at voxel 0."""
    strides_of = strides_of or shape
    inside = np.ones(index.shape[1:], bool)
    for axis in range(3):
        inside &= (index[axis] >= 0) & (index[axis] < shape[axis])
    whole = index.astype(np.int32)
    flat = (whole[0] * strides_of[1] + whole[1]) * strides_of[2] + whole[2]
    return np.where(inside, flat, np.int32(0)), inside
