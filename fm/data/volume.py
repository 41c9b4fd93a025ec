"""One series as voxels with their geometry, read from a shard or from a NIfTI file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from fm.config.errors import UserError
from fm.data.codec import MAX_VOXELS, EncodedVolume, decode_volume, encode_volume, read_header
from fm.data.sample import Agent, Contrast, Plane, SampleError, SeriesMeta
from fm.grid import (
    Box,
    apply_affine,
    border_connected_air,
    bounding_box,
    box_slices,
    canonical_axes,
    crop_affine,
    full_box,
    robust_range,
)

_MAX_NIFTI_BYTES = 8 * MAX_VOXELS


class VolumeError(UserError):
    """A volume file that cannot be read as one MRI series."""


@dataclass(kw_only=True, slots=True)
class SeriesImage:
    """Voxels of a series, or of a crop of it, in the contract's axes (D, H, W)."""

    stored: NDArray[np.uint8 | np.uint16]
    """(D, H, W) quantised voxels as the shards hold them; 0 is air, or a missing slice. May be a part of the grid."""
    scale: float
    offset: float
    """``stored * scale + offset`` gives the scanner's units."""
    affine: NDArray[np.float64]
    """(4, 4): (d, h, w, 1) of the grid to RAS+ mm."""
    spacing_mm: tuple[float, float, float]
    foreground: Box
    """Half-open voxel box of the body within the grid."""
    centre_mm: NDArray[np.float64]
    """(3,) centre of the whole series' foreground box in RAS+ mm: the origin of token positions, whatever the crop."""
    low: float
    high: float
    """Intensity range to normalise by: 0.5 and 99.5 percentile of the body."""
    contrast: Contrast = Contrast.OTHER
    plane: Plane = Plane.AXIAL
    agent: Agent = Agent.UNKNOWN
    start: tuple[int, int, int] = (0, 0, 0)
    """Voxel of the grid where `stored` begins."""
    slice_valid: NDArray[np.bool_] | None = None
    """(D,) of the grid, False where a slice is missing; None: where nothing is stored."""

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(D,) of the grid, False where a slice is missing."""
        return np.asarray(self.stored.any(axis=(1, 2))) if self.slice_valid is None else self.slice_valid

    @property
    def body(self) -> NDArray[np.bool_]:
        """(D, H, W) False in air that reaches the border and in missing slices."""
        return np.asarray(self.stored > 0)

    @property
    def values(self) -> NDArray[np.float32]:
        """(D, H, W) in the scanner's units; air and missing slices at the offset."""
        return np.asarray(self.stored * np.float32(self.scale) + np.float32(self.offset), dtype=np.float32)


def from_sample(
    meta: SeriesMeta, payload: bytes | memoryview, box: Box | None = None, needed: Box | None = None
) -> SeriesImage:
    """A series from its shard member; only what is asked for is decompressed.

    Args:
        meta: the series' entry in the study's JSON member.
        payload: the ``.b2`` member.
        box: half-open voxel box that becomes the image's grid; None takes the whole.
        needed: half-open box within that grid to decode; None decodes all of it.

    Raises:
        CodecError: the payload is damaged or no plain volume.
        SampleError: its shape is not the one that `meta` says.
    """
    whole = full_box(meta.shape)
    part = whole if box is None else box
    found = read_header(payload).shape
    if found != tuple(meta.shape):
        raise SampleError(f"series {meta.name}: {found} voxels where the study says {tuple(meta.shape)}")
    inner = full_box(_size(part)) if needed is None else needed
    start, stop = (tuple(int(p + i) for p, i in zip(part[0], edge, strict=True)) for edge in inner)
    stored = decode_volume(payload, box_slices(((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))))
    affine = np.asarray(meta.affine, dtype=np.float64)
    valid = np.asarray(meta.slice_valid[part[0][0] : part[1][0]], dtype=bool)
    if not valid.all():
        stored[~valid[inner[0][0] : inner[1][0]]] = 0
    return SeriesImage(
        stored=stored,
        scale=meta.intensity_scale,
        offset=meta.intensity_offset,
        affine=crop_affine(affine, part[0]),
        spacing_mm=meta.spacing_mm,
        foreground=_within(meta.foreground, part),
        centre_mm=_box_centre(affine, meta.foreground),
        low=meta.intensity_low,
        high=meta.intensity_high,
        contrast=meta.contrast,
        plane=meta.plane,
        agent=meta.agent,
        start=inner[0],
        slice_valid=valid,
    )


def mask_from_sample(
    meta: SeriesMeta, payload: bytes, box: Box | None = None, needed: Box | None = None
) -> NDArray[np.uint8 | np.uint16]:
    """A series' label map, voxel for voxel beside :func:`from_sample` of the same boxes.

    Args:
        meta: the series' entry in the study's JSON member; ``meta.mask_names`` says what the values are.
        payload: the ``.seg.b2`` member.
        box: half-open voxel box of the series; None takes the whole.
        needed: half-open box within that box; None takes all of it.

    Raises:
        CodecError: the payload is damaged or no plain volume.
        SampleError: its shape is not the one that `meta` says.
    """
    found = read_header(payload).shape
    if found != tuple(meta.shape):
        raise SampleError(f"series {meta.name}: a mask of {found} voxels where the study says {tuple(meta.shape)}")
    part = full_box(meta.shape) if box is None else box
    inner = full_box(_size(part)) if needed is None else needed
    start, stop = (tuple(int(p + i) for p, i in zip(part[0], edge, strict=True)) for edge in inner)
    return decode_volume(payload, box_slices(((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))))


def read_nifti(path: str | Path, contrast: Contrast = Contrast.OTHER, agent: Agent = Agent.UNKNOWN) -> SeriesImage:
    """A 3D NIfTI file as a series; body, foreground and intensity range are measured, voxels quantised as in a shard.

    Args:
        path: ``.nii`` or ``.nii.gz``; the first volume is taken where there is a fourth axis of length 1.
        contrast: what the series shows; NIfTI does not say.
        agent: whether contrast agent was given; NIfTI does not say.

    Raises:
        VolumeError: missing, damaged, not 3D, oversized, constant, or with a singular or non-finite affine.
    """
    values, affine = load_nifti(Path(path))
    return measure(values, affine, str(path), contrast, agent)[0]


def measure(
    values: NDArray[np.float32], affine: NDArray[np.float64], name: str, contrast: Contrast, agent: Agent
) -> tuple[SeriesImage, EncodedVolume]:
    """A series from plain voxels, and its shard member: axes of the contract, body, foreground and intensity range.

    Args:
        values: 3D, axes in any order and direction.
        affine: (4, 4) index to RAS+ mm.
        name: of the file, for errors.
        contrast: what the series shows.
        agent: whether contrast agent was given.

    Raises:
        VolumeError: constant, or with a singular or non-finite affine.
    """
    try:
        grid = canonical_axes(affine, values.shape)
    except ValueError as err:
        raise VolumeError(f"{name}: {err}") from None
    values = np.ascontiguousarray(grid.apply(values))
    air = border_connected_air(values)
    foreground = bounding_box(~air)
    low, high = robust_range(values, ~air)
    if foreground is None or not low < high:
        raise VolumeError(f"{name}: no body found, the volume is constant or empty")
    encoded = encode_volume(values, air)
    image = SeriesImage(
        stored=decode_volume(encoded.payload),
        scale=encoded.scale,
        offset=encoded.offset,
        affine=grid.affine,
        spacing_mm=grid.spacing_mm,
        foreground=foreground,
        centre_mm=_box_centre(grid.affine, foreground),
        low=low,
        high=high,
        contrast=contrast,
        plane=Plane(grid.plane),
        agent=agent,
    )
    return image, encoded


def load_nifti(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Voxels and affine of a 3D NIfTI file, in its own axes; its size is checked before anything is allocated.

    Raises:
        VolumeError: missing, damaged, not 3D, oversized, or with voxels that are not finite.
    """
    if not path.is_file():
        raise VolumeError(f"{path}: no such file")
    try:
        image: Any = nibabel.Nifti1Image.from_filename(path)
        shape = tuple(int(n) for n in image.shape)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        size = int(np.prod(shape, dtype=np.float64))
        if len(shape) != 3 or not 0 < size <= MAX_VOXELS or size * image.dataobj.dtype.itemsize > _MAX_NIFTI_BYTES:
            raise VolumeError(f"{path}: shape {image.shape} is not one 3D volume of at most {MAX_VOXELS} voxels")
        values = np.asarray(image.dataobj, dtype=np.float32).reshape(shape)
        affine = np.asarray(image.affine, dtype=np.float64)
    except VolumeError:
        raise
    except Exception as err:  # nibabel and zlib report damage through many types
        raise VolumeError(f"{path}: not a readable NIfTI file ({type(err).__name__})") from err
    if not np.isfinite(values).all():
        raise VolumeError(f"{path}: holds NaN or infinite voxels")
    return values, affine


def _box_centre(affine: NDArray[np.float64], box: Box) -> NDArray[np.float64]:
    return apply_affine(affine, (np.asarray(box[0]) + np.asarray(box[1]) - 1) / 2)


def _size(box: Box) -> tuple[int, int, int]:
    d, h, w = (b - a for a, b in zip(*box, strict=True))
    return d, h, w


def _within(box: Box, part: Box) -> Box:
    start = [min(max(a, p), q - 1) - p for a, p, q in zip(box[0], *part, strict=True)]
    stop = [max(min(b, q) - p, a + 1) for b, p, q, a in zip(box[1], *part, start, strict=True)]
    return (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])
