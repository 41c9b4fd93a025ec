"""What is measured of a volume: plain numbers, each None where the volume cannot tell.

Every measure reads the voxels as acquired, before air is zeroed: ghosts and noise live there. The body mask is the
complement of :func:`fm.grid.border_connected_air`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fm.grid.orientation import world_axes

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

MIN_SLICE_SHARE = 0.4
"""A slice takes part in comparisons of slices where its body is at least this share of the largest one's."""
_RAYLEIGH_MEDIAN = 1.1774
"""Median of magnitude noise without signal over its sigma: sqrt(2 ln 2)."""
_NORMAL_MAD = 0.6745
_CORE_SHARE = 0.3
_MIN_BAND = 200
_SLICES = 8
_MIN_NOISE_VOXELS = 500


def clipped_share(values: Floats, body: Mask) -> float:
    """Share of body voxels that hold the largest value of all: a plateau is a range that was cut off."""
    inside = values[body]
    return float(np.count_nonzero(inside == inside.max()) / inside.size)


def blank_slices(values: Floats, body: Mask, valid: Mask) -> int:
    """Acquired slices between the first and the last with tissue that hold one value only."""
    with_body = np.flatnonzero(body.any(axis=(1, 2)))
    inner = np.arange(with_body[0], with_body[-1] + 1)
    flat = values.max(axis=(1, 2)) == values.min(axis=(1, 2))
    return int(np.count_nonzero(flat[inner] & valid[inner]))


def signal_to_noise(values: Floats, body: Mask, valid: Mask) -> float | None:
    """Median of the body over the noise's sigma.

    Sigma is the smaller of two estimates, each of which can only be too large: from the air (median of a Rayleigh
    distribution; Gudbjartsson and Patz, Magn Reson Med 34:910, 1995), where ghosts add, and from the finest diagonal
    detail inside the body (median absolute Haar coefficient; Donoho, IEEE Trans Inf Theory 41:613, 1995), where anatomy
    adds. Air that something has zeroed tells nothing.
    """
    picture, inside = values[_some(valid)], body[_some(valid)]
    estimates = []
    h, w = (n - n % 2 for n in picture.shape[1:])
    a, b, c, d = (picture[:, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1))
    whole = inside[:, 0:h:2, 0:w:2] & inside[:, 0:h:2, 1:w:2] & inside[:, 1:h:2, 0:w:2] & inside[:, 1:h:2, 1:w:2]
    detail = np.abs((a - b - c + d)[whole]) / 2
    if detail.size >= _MIN_NOISE_VOXELS:
        estimates.append(float(np.median(detail)) / _NORMAL_MAD)
    air = picture[~inside]
    if air.size >= _MIN_NOISE_VOXELS and float(np.median(air)) > 0 and np.count_nonzero(air == 0) < 0.05 * air.size:
        estimates.append(float(np.median(air)) / _RAYLEIGH_MEDIAN)
    if not estimates or not inside.any():
        return None
    sigma = min(estimates)
    return float(np.median(picture[inside])) / sigma if sigma > 0 else None


def ghosting(values: Floats, valid: Mask) -> float | None:
    """Signal in the air on one pair of sides of the body beyond that on the other, over the body's median.

    Ghosts of motion, flow and echo-planar readout repeat the body along the phase-encoding axis only, noise lies on all
    sides alike (ghost-to-signal ratio; Giannelli et al., J Appl Clin Med Phys 11:3237, 2010). None where the
    body fills the picture or the air was zeroed.
    """
    picture = values[_some(valid)]
    top = float(np.percentile(picture[:, ::2, ::2], 98))
    core = picture > _CORE_SHARE * top
    along_h, along_w = _filled(core, 1), _filled(core, 2)
    hull = _grown(along_h | along_w, 3)
    columns = core.any(axis=1, keepdims=True) & ~hull
    rows = core.any(axis=2, keepdims=True) & ~hull
    if min(np.count_nonzero(columns), np.count_nonzero(rows)) < _MIN_BAND or not core.any():
        return None
    bands = picture[columns], picture[rows]
    if max(np.count_nonzero(band == 0) / band.size for band in bands) > 0.5:
        return None
    means = [float(np.minimum(band, _CORE_SHARE * top).mean()) for band in bands]
    return abs(means[0] - means[1]) / float(np.median(picture[core]))


def slice_profile(values: Floats, body: Mask, valid: Mask) -> tuple[float | None, float | None, float | None]:
    """Banding, the worst slice, and the shift between interleaved slices.

    Each acquired slice is compared with the mean of its two neighbours, over the tissue that all three share.

    Returns:
        banding: mean logarithmic difference of every second slice; 0.05 is 5 % brighter or darker.
        outlier: largest logarithmic difference of one slice.
        shift: mean distance in voxels between the centroids of odd slices and those of their neighbours, the two
            in-plane axes together. None each where fewer than five slices can be compared.
    """
    area = body.sum(axis=(1, 2))
    usable = valid & (area >= MIN_SLICE_SHARE * area.max())
    middle = np.flatnonzero(usable[1:-1] & usable[:-2] & usable[2:]) + 1
    if len(middle) < 5:
        return None, None, None
    rows, columns = np.arange(body.shape[1]), np.arange(body.shape[2])
    log_step, shift = np.zeros(len(middle)), np.zeros((len(middle), 2))
    centre = np.stack(
        [body.sum(axis=2) @ rows / np.maximum(area, 1), body.sum(axis=1) @ columns / np.maximum(area, 1)], axis=1
    )
    for at, d in enumerate(middle):
        shared = body[d - 1] & body[d] & body[d + 1]
        if shared.any():
            before, here, after = np.log([max(float(values[k][shared].mean()), 1e-6) for k in (d - 1, d, d + 1)])
            log_step[at] = here - (before + after) / 2
        shift[at] = centre[d] - (centre[d - 1] + centre[d + 1]) / 2
    sign = np.where(middle % 2 == 0, 1.0, -1.0)
    banding = abs(float((sign * log_step).mean()))
    displaced = float(np.hypot(*(sign[:, None] * shift).mean(axis=0)))
    return banding, float(np.abs(log_step).max()), displaced


def coverage(body: Mask, affine: NDArray[np.float64], spacing_mm: tuple[float, float, float]) -> tuple[float, float]:
    """How much of a head is there.

    Returns:
        extent: millimetres of body along the world axis that has fewest.
        cut: body in the outermost slice of the picture over that in the largest slice, for the worst side on which a
            whole head ends inside the picture: the vertex, and the in-plane sides but the neck's.
    """
    world = world_axes(affine)
    extents, cut = [], 0.0
    for axis in range(3):
        area = body.sum(axis=tuple({0, 1, 2} - {axis}))
        found = np.flatnonzero(area)
        extents.append(float(found[-1] + 1 - found[0]) * spacing_mm[axis])
        sides = (-1,) if world[axis] == 2 else (0, -1) if axis else ()
        cut = max([cut, *(float(area[side] / area.max()) for side in sides)])
    return min(extents), cut


def shear_deg(affine: NDArray[np.float64]) -> float:
    """Angle in degrees between the slice axis and the normal of the slices."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosine = abs(float(np.cross(axes[:, 1], axes[:, 2]) @ axes[:, 0]))
    return float(np.degrees(np.arccos(min(1.0, cosine))))


def unevenness(slice_mm: list[float], valid: Mask) -> float:
    """Largest distance of an acquired slice from the regular grid, over the slice spacing."""
    at = np.asarray(slice_mm)
    if len(at) < 3:
        return 0.0
    step = float(at[-1] - at[0]) / (len(at) - 1)
    off = np.abs(at - at[0] - step * np.arange(len(at)))[valid]
    return float(off.max() / step) if step > 0 and off.size else 0.0


def _some(valid: Mask) -> NDArray[np.intp]:
    """Acquired slices, evenly thinned: a sample tells noise and ghosts as well as all of them."""
    found = np.flatnonzero(valid)
    return found[:: max(1, len(found) // _SLICES)]


def _filled(core: Mask, axis: int) -> Mask:
    """Everything between the first and the last core voxel of each line along an axis."""
    forth: NDArray[Any] = np.logical_or.accumulate(core, axis=axis)
    back = np.flip(np.logical_or.accumulate(np.flip(core, axis), axis=axis), axis)
    return np.asarray(forth & back, dtype=bool)


def _grown(mask: Mask, voxels: int) -> Mask:
    """In-plane dilation by a square."""
    grown = mask.copy()
    for axis in (1, 2):
        source = grown.copy()
        near = np.moveaxis(grown, axis, 0)
        from_ = np.moveaxis(source, axis, 0)
        for step in range(1, voxels + 1):
            near[step:] |= from_[:-step]
            near[:-step] |= from_[step:]
    return grown
