"""The scanner: slice geometry, sampling, receive field, motion and noise.

Volumes are indexed (column, row, slice) as DICOM counts them: columns along ImageOrientationPatient's first vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from data_prep.phantom.plan import SeriesPlan
from data_prep.phantom.signal import Sequence, Weighting, signals
from data_prep.phantom.sites import Site
from data_prep.phantom.tissue import Tissue
from data_prep.phantom.volume import MASK_LABELS, Codes, Floats, TissueMap, interpolator, nearest
from fm.config.phantom import PhantomConfig, Resolution

Matrix = NDArray[np.float64]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

HEAD_BOX = ((-98.0, 98.0), (-128.0, 116.0), (-82.0, 90.0))
ABDOMEN_BOX = ((-192.0, 192.0), (-128.0, 128.0), (-88.0, 88.0))
"""What a series covers, in anatomy coordinates (RAS mm)."""


SAMPLES_AT_ONCE = 1_500_000
"""Sampling points of one interpolation matrix: bounds memory at full resolution."""


@dataclass(slots=True)
class Geometry:
    """Where the voxels of a series lie."""

    shape: tuple[int, int, int]
    """Columns, rows, slices."""
    spacing_mm: tuple[float, float, float]
    """Between columns, rows and slices."""
    thickness_mm: float
    affine: Matrix
    """(4, 4) (column, row, slice) to LPS mm: DICOM's patient coordinates."""

    @property
    def row_direction(self) -> Matrix:
        """(3,) unit vector of growing column index."""
        return np.asarray(self.affine[:3, 0] / self.spacing_mm[0])

    @property
    def column_direction(self) -> Matrix:
        """(3,) unit vector of growing row index."""
        return np.asarray(self.affine[:3, 1] / self.spacing_mm[1])

    def position(self, k: int) -> Matrix:
        """(3,) ImagePositionPatient of slice `k`."""
        return np.asarray(self.affine[:3, 3] + k * self.affine[:3, 2])


def rotation(degrees: tuple[float, float, float]) -> Matrix:
    """(3, 3) rotation about x, then y, then z."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        c, s = math.cos(angle), math.sin(angle)
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        step = np.eye(3)
        step[i, i] = step[j, j] = c
        step[i, j], step[j, i] = -s, s
        turn = step @ turn
    return turn


def draw_pose(rng: np.random.Generator) -> Matrix:
    """(4, 4) anatomy to scanner coordinates (both RAS): a nod, a little tilt and turn, and a shift."""
    pose = np.eye(4)
    pose[:3, :3] = rotation((float(rng.uniform(-7, 7)), float(rng.uniform(-2.5, 2.5)), float(rng.uniform(-3, 3))))
    pose[:3, 3] = (rng.uniform(-3, 3), rng.uniform(-9, 9), rng.uniform(-6, 6))
    return pose


def draw_prescription(rng: np.random.Generator) -> Matrix:
    """(3, 3) rotation of the slices, shared by the series of a study: the technologist follows the skull base."""
    return rotation((float(rng.uniform(-6, 10)), float(rng.uniform(-1, 1)), float(rng.uniform(-1, 1))))


def voxel_sizes(site: Site, series: SeriesPlan, resolution: Resolution) -> tuple[float, float]:
    """In-plane and slice spacing in mm: the site's, with thinner slices for its structural T1w at full resolution."""
    in_plane, slices = site.demo_mm if resolution is Resolution.demo else site.full_mm
    if series.weighting in (Weighting.DWI, Weighting.ADC):
        in_plane = max(in_plane, 2.5) if resolution is Resolution.demo else max(in_plane, 1.2)
        slices = max(slices, 5.0) if resolution is Resolution.demo else max(slices, 4.0)
    return in_plane, slices


def lay_out(
    site: Site, series: SeriesPlan, head: bool, prescription: Matrix, table: Matrix, resolution: Resolution
) -> Geometry:
    """Geometry of a series.

    Args:
        site: gives spacings and the order of slices.
        series: gives the plane.
        head: which body box to cover.
        prescription: (3, 3) rotation of the slices.
        table: (3,) shift of the scanner's origin, LPS mm.
        resolution: demo or full.
    """
    in_plane, slice_mm = voxel_sizes(site, series, resolution)
    (x0, x1), (y0, y1), (z0, z1) = HEAD_BOX if head else ABDOMEN_BOX
    width, depth, height = x1 - x0, y1 - y0, z1 - z0
    centre = np.array([-(x0 + x1) / 2, -(y0 + y1) / 2, (z0 + z1) / 2])
    right_to_left, front_to_back, up = np.eye(3)
    across, down, through = {
        "axial": ((right_to_left, width), (front_to_back, depth), (up, height)),
        "sagittal": ((front_to_back, depth), (-up, height + 16), (-right_to_left, width - 16)),
        "coronal": ((right_to_left, width), (-up, height + 16), (front_to_back, depth - 16)),
    }[series.plane]
    if site.downwards:
        through = (-through[0], through[1])
    shape = tuple(
        max(2, round(extent / step))
        for (_, extent), step in zip((across, down, through), (in_plane, in_plane, slice_mm), strict=True)
    )
    steps = (in_plane, in_plane, slice_mm)
    affine = np.eye(4)
    for axis, (direction, _) in enumerate((across, down, through)):
        affine[:3, axis] = prescription @ direction * steps[axis]
    affine[:3, 3] = centre + table - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    # DICOM stores decimal strings of 16 characters: round here so that the header states exactly what was sampled.
    affine = np.round(affine, 9)
    return Geometry((shape[0], shape[1], shape[2]), steps, round(0.9 * slice_mm, 3), affine)


@dataclass(slots=True)
class Acquired:
    """One rendered series."""

    geometry: Geometry
    frames: list[tuple[float, Floats]]
    """(b value or 0, (columns, rows, slices) values in stored units times the rescale slope)."""
    ideal: Floats
    """The last frame's noise-free values."""
    noise: float
    """Standard deviation of the noise in the last frame, same units."""


class Camera:
    """Samples one patient's tissue map with a pose, for any number of series."""

    def __init__(self, anatomy: TissueMap, pose: Matrix, table: Matrix) -> None:
        """Take the patient's tissue map, their (4, 4) pose in RAS mm, and the (3,) shift of the origin in LPS mm."""
        shift = np.eye(4)
        shift[:3, 3] = -table
        self.anatomy = anatomy
        self._to_grid = np.linalg.inv(anatomy.grid.affine()) @ np.linalg.inv(pose) @ LPS_TO_RAS @ shift
        self._samplers: dict[bytes, tuple[NDArray[np.intp], sparse.csr_array]] = {}
        # Cells with a corner in the body, named by their lowest corner.
        touched = (anatomy.codes > 0).view(np.uint8)
        for axis in range(3):
            near = np.moveaxis(touched, axis, 0)
            near[:-1] |= near[1:]
        self._touched = touched

    def average(self, image: Floats, geometry: Geometry) -> Floats:
        """(columns, rows, slices) means of an image over each slice's thickness; `image` is zero in the map's air."""
        step = self.anatomy.grid.step_mm
        parts = max(1, min(6, round(geometry.thickness_mm / (1.25 * step))))
        columns, rows, slices = geometry.shape
        slab = max(1, SAMPLES_AT_ONCE // (columns * rows * parts))
        sampled = np.zeros((slices, rows * columns), np.float32)
        flat = image.reshape(-1)
        for first in range(0, slices, slab):
            which = range(first, min(first + slab, slices))
            body, matrix = self._sampler(geometry, which, parts)
            sampled[which.start : which.stop].reshape(-1)[body] = matrix @ flat
        return np.ascontiguousarray(sampled.reshape(slices, rows, columns).transpose(2, 1, 0))

    def _sampler(self, geometry: Geometry, which: range, parts: int) -> tuple[NDArray[np.intp], sparse.csr_array]:
        """Flat voxels of some slices that touch the body, and their interpolation matrix.

        It is kept where one matrix serves the whole series: series of one study often share their grid.
        """
        key = geometry.affine.tobytes() + np.array(geometry.shape).tobytes()
        if (kept := self._samplers.get(key)) is not None:
            return kept
        offsets = (np.arange(parts) - (parts - 1) / 2) * geometry.thickness_mm / geometry.spacing_mm[2] / parts
        index = self._index(geometry, np.array(which)[:, None] + offsets[None, :])
        body = np.flatnonzero(nearest(self._touched, np.floor(index)).any(axis=1))
        made = body, interpolator(index[:, body], self.anatomy.grid.shape)
        if len(which) == geometry.shape[2]:
            self._samplers[key] = made
        return made

    def _index(self, geometry: Geometry, depths: Matrix) -> Floats:
        """(3, slices × rows × columns, parts) grid indices of voxels at fractional slice `depths` (slices, parts)."""
        columns, rows, _ = geometry.shape
        m = (self._to_grid @ geometry.affine).astype(np.float32)
        z = depths.astype(np.float32)[:, None, None, :]
        y = np.arange(rows, dtype=np.float32)[None, :, None, None]
        x = np.arange(columns, dtype=np.float32)[None, None, :, None]
        index = np.empty((3, len(depths), rows, columns, depths.shape[1]), np.float32)
        for axis in range(3):
            index[axis] = (m[axis, 0] * x + m[axis, 1] * y) + (m[axis, 2] * z + m[axis, 3])
        return index.reshape(3, -1, depths.shape[1])

    def nearest(self, labels: Codes, geometry: Geometry) -> Codes:
        """(columns, rows, slices) labels at the voxels' centres."""
        columns, rows, slices = geometry.shape
        index = self._index(geometry, np.arange(slices)[:, None].astype(np.float64))
        return nearest(labels, index[..., 0]).reshape(slices, rows, columns).transpose(2, 1, 0)

    def mask(self, geometry: Geometry) -> Codes:
        """(columns, rows, slices) :data:`MASK_LABELS` of a series: lesions where they fill half a voxel."""
        mask = np.ascontiguousarray(self.nearest(self.anatomy.parts, geometry))
        for name in ("oedema", "lesion"):
            cover = self.anatomy.coverage(MASK_LABELS[name])
            if cover is not None:
                mask[self.average(cover, geometry) >= 0.5] = MASK_LABELS[name]
        return mask


def receive_field(rng: np.random.Generator, shape: tuple[int, int, int], strength: float) -> Floats:
    """(shape) smooth gain around 1: the exponential of a random quadratic of standard deviation `strength`."""
    x, y, z = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    x, y, z = x[:, None, None], y[None, :, None], z[None, None, :]
    c = rng.standard_normal(7)
    form = c[0] * x + c[1] * y + c[2] * z + c[3] * (x * x - 0.33) + c[4] * (y * y - 0.33) + c[5] * x * y + c[6] * y * z
    form = form / max(float(form.std()), 1e-6)
    return np.asarray(np.exp(np.clip(strength * form, -1, 1)), np.float32)


def move(rng: np.random.Generator, image: Floats) -> Floats:
    """Ghosts of a patient who shifts between bands of phase-encoding lines (rows)."""
    lines = image.shape[1]
    spectrum = np.fft.fft(image, axis=1)
    frequency = np.fft.fftfreq(lines)
    shift = np.zeros(lines)
    for _ in range(int(rng.integers(2, 5))):
        start = int(rng.integers(lines))
        band = np.arange(start, start + int(rng.integers(lines // 12, lines // 5))) % lines
        shift[band] = float(rng.uniform(0.8, 2.2)) * (1 if rng.random() < 0.5 else -1)
    shift[np.abs(frequency) < 0.03] = 0
    phase = np.exp(-2j * np.pi * frequency * shift)
    return np.asarray(np.abs(np.fft.ifft(spectrum * phase[None, :, None], axis=1)), np.float32)


def rician(rng: np.random.Generator, image: Floats, sigma: float) -> Floats:
    """Magnitude of the image with complex Gaussian noise (Gudbjartsson and Patz, Magn Reson Med 34:910, 1995)."""
    if sigma <= 0:
        return image
    real = image + np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32)
    imaginary = np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(np.hypot(real, imaginary), np.float32)


def acquire(
    camera: Camera,
    geometry: Geometry,
    site: Site,
    series: SeriesPlan,
    timing: Sequence,
    config: PhantomConfig,
    rng: np.random.Generator,
) -> Acquired:
    """Render one series other than ADC: signal, slice sampling, motion, receive field, noise, scale."""
    reference = float(signals(timing, site.field_t)[Tissue.WHITE])
    gain = site.gain / reference
    field = receive_field(rng, geometry.shape, site.bias * config.bias_scale)
    snr = site.snr * (0.9 if series.weighting is Weighting.DWI else 1.0)
    noise = site.gain / snr * config.noise_scale
    frames: list[tuple[float, Floats]] = []
    ideal = np.zeros(geometry.shape, np.float32)
    for b in timing.b_values or (0,):
        image = camera.anatomy.render(signals(timing, site.field_t, b))
        ideal = np.asarray(camera.average(image, geometry) * np.float32(gain) * field, np.float32)
        seen = move(rng, ideal) if series.motion else ideal
        frames.append((float(b), rician(rng, seen, noise)))
    return Acquired(geometry, frames, ideal, noise)


def adc_map(dwi: Acquired, field_t: float, timing: Sequence, camera: Camera) -> Acquired:
    """ADC in 10⁻⁶ mm²/s from a diffusion series: ln(S0 / Sb) / b where S0 rises above the noise."""
    (_, low), (b, high) = dwi.frames
    body = low > max(6 * dwi.noise, 1.0)
    ratio = np.log(np.maximum(low, 1e-3) / np.maximum(high, 1e-3))
    values = np.where(body, np.clip(ratio / b * 1e6, 0, 4095), 0).astype(np.float32)
    plain = signals(timing, field_t), signals(timing, field_t, b)
    tissue_adc = np.zeros(len(Tissue), np.float32)
    seen = plain[0] > 0
    tissue_adc[seen] = np.log(plain[0][seen] / plain[1][seen]) / b * 1e6
    ideal = np.where(body, camera.average(camera.anatomy.render(tissue_adc), dwi.geometry), 0).astype(np.float32)
    spread = float(np.hypot(1 / np.median(low[body]), 1 / np.median(high[body]))) if body.any() else 0.0
    return Acquired(dwi.geometry, [(0.0, values)], ideal, dwi.noise * spread / b * 1e6)


def contrast_to_noise(acquired: Acquired, mask: Codes) -> float | None:
    """Mean difference of lesion and surrounding normal tissue over the noise; None without lesion or noise."""
    lesion = mask == MASK_LABELS["lesion"]
    if not lesion.any() or acquired.noise <= 0:
        return None
    box = tuple(slice(max(0, int(found.min()) - 4), int(found.max()) + 5) for found in np.nonzero(lesion))
    near = ndimage.binary_dilation(lesion[box], iterations=4)
    # Brain lesions are seen against white and grey matter, abdominal ones against the organ.
    others = [MASK_LABELS[n] for n in ("white_matter", "grey_matter", "liver", "kidney_right", "kidney_left")]
    around = near & np.isin(mask[box], others)
    if not around.any():
        return None
    values = acquired.ideal[box]
    return float(abs(values[lesion[box]].mean() - values[around].mean()) / acquired.noise)


def holds_lesion(mask: Codes, keep: NDArray[np.bool_]) -> bool:
    """Whether at least two acquired slices hold a 3 × 3 block of lesion voxels.

    Args:
        mask: (columns, rows, slices) labels.
        keep: (slices,) False where the slice was lost.
    """
    lesion = (mask == MASK_LABELS["lesion"]) & keep[None, None, :]
    blocks = ndimage.binary_erosion(lesion, structure=np.ones((3, 3, 1), bool))
    return bool(blocks.any(axis=(0, 1)).sum() >= 2)
