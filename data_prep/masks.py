"""Segmentations onto the grid of their series: NIfTI by name, DICOM SEG by the series that it refers to.

Nothing but voxels, affine and closed names is taken from them; a segment's own label may hold anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from scipy import ndimage

from data_prep.headers import Header
from data_prep.keys import Keyring
from data_prep.ledger import Entry, QuarantineError, Reason
from data_prep.nifti import MAX_VOXELS, SUFFIXES, read_nifti
from data_prep.sources import walk
from fm.data.codec import encode_codes
from fm.data.sample import SeriesMeta

ON_GRID_VOXELS = 0.05
"""A mask whose voxels lie this near to those of the series is on its grid, in whatever order or orientation."""
VOLUME_SHARE = 0.25
"""A resampled mask may change its volume by this share, or by :data:`FEW_VOXELS` of the coarser grid."""
FEW_VOXELS = 8
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP_SEG = "1.2.840.10008.5.1.4.1.1.66.7"
_SCHEMES = ("sct", "srt", "dcm", "fma")
"""Coding schemes whose codes may become names: SNOMED CT, its old form, DICOM, FMA."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(kw_only=True, slots=True)
class Mask:
    """A label map on a grid of its own."""

    values: NDArray[np.uint16]
    """Three axes."""
    affine: NDArray[np.float64]
    """(4, 4) array axes to RAS+ mm."""
    names: dict[int, str]
    """Of the values above 0 that occur."""
    frame: str = ""
    """Frame of reference UID; '' where the file knows none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskFile:
    """Where a segmentation lies."""

    path: str
    item: str
    """Its keyed id."""


@dataclass(kw_only=True, slots=True)
class MaskFiles:
    """The segmentations of an input by series."""

    by_series: dict[str, MaskFile] = field(default_factory=dict)
    """By SeriesInstanceUID."""
    entries: list[Entry] = field(default_factory=list)
    sources: list[tuple[str, str, str]] = field(default_factory=list)
    """(keyed id, 'mask', path) of every file, for the table beside the key."""

    def of(self, series: Collection[str]) -> dict[str, MaskFile]:
        """The files of some series."""
        return {uid: self.by_series[uid] for uid in series if uid in self.by_series}


def find_masks(folder: str, studies: Mapping[str, Sequence[Header]], keyring: Keyring) -> MaskFiles:
    """Find the series of every segmentation below a folder ('': none); other files there are passed over."""
    found = MaskFiles()
    if not folder:
        return found
    study_of = {header.series_uid: uid for uid, headers in studies.items() for header in headers}
    by_name: dict[str, list[str]] = {}
    for series in study_of:
        by_name.setdefault(os.path.basename(series), []).append(series)
    files: dict[str, list[MaskFile]] = {}
    for one in walk(folder):
        path, name = one.path, one.name
        if one.problem is not None or not (path.endswith(SUFFIXES) or _is_seg(path)):
            continue
        file = MaskFile(path=path, item=keyring.item("mask", name))
        found.sources.append((file.item, "mask", path))
        wanted = _named(name, study_of, by_name) if path.endswith(SUFFIXES) else _referred(path, study_of)
        if isinstance(wanted, Reason):
            found.entries.append(Entry(item=file.item, kind="mask", reason=wanted))
        else:
            files.setdefault(wanted, []).append(file)
    for series, several in files.items():
        if len(several) == 1:
            found.by_series[series] = several[0]
            continue
        study = keyring.study(study_of[series])
        found.entries += [
            Entry(item=file.item, kind="mask", reason=Reason.MASK_AMBIGUOUS, study=study) for file in several
        ]
    return found


def read_mask(path: str, names: Mapping[str, str]) -> Mask:
    """Read one segmentation.

    Args:
        path: NIfTI or DICOM SEG.
        names: of a NIfTI file's values, or of a SEG's segments by their label in small letters.

    Raises:
        QuarantineError: damaged, oversized, or with values that are no labels.
    """
    mask = _from_nifti(path, names) if path.endswith(SUFFIXES) else _from_seg(path, names)
    mask.names = {
        int(value): mask.names.get(int(value)) or f"label_{int(value)}" for value in np.unique(mask.values) if value
    }
    return mask


def onto_grid(mask: Mask, affine: NDArray[np.float64], shape: tuple[int, int, int]) -> tuple[NDArray[np.uint16], bool]:
    """A mask on another grid, and whether that is its own grid in other order; else the nearest voxel counts.

    Args:
        mask: what is to be placed.
        affine: (4, 4) axes of the grid to RAS+ mm.
        shape: of the grid.

    Raises:
        QuarantineError: what is labelled changes its volume or its place on the way: it was drawn on something else.
    """
    index = np.linalg.inv(mask.affine) @ affine
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1)
    there = index[:3, :3] @ corners + index[:3, 3:]
    snapped = np.rint(index)
    exact = bool(
        np.abs(there - np.rint(there)).max() < ON_GRID_VOXELS
        and np.abs(np.abs(snapped[:3, :3]).sum(axis=0) - 1).max() == 0
        and np.abs(np.abs(snapped[:3, :3]).sum(axis=1) - 1).max() == 0
    )
    index = snapped if exact else index
    # grid-constant: a voxel whose centre lies half a voxel outside still takes the outermost
    placed = np.asarray(
        ndimage.affine_transform(
            mask.values, index[:3, :3], index[:3, 3], output_shape=shape, order=0, mode="grid-constant"
        )
    )
    _check_same(mask, placed, affine)
    return placed, exact


def encode_mask(mask: Mask, meta: SeriesMeta, frame: str) -> bytes:
    """The ``.seg.b2`` member of a series; notes names and grid in `meta`.

    Args:
        mask: the segmentation.
        meta: the series.
        frame: its frame of reference UID, '' where unknown.

    Raises:
        QuarantineError: another frame of reference on another grid, or :func:`onto_grid`.
    """
    placed, exact = onto_grid(mask, np.asarray(meta.affine, dtype=np.float64), meta.shape)
    if not exact and mask.frame and frame and mask.frame != frame:
        raise QuarantineError(Reason.MASK_OTHER_FRAME)
    placed[~np.asarray(meta.slice_valid, dtype=bool)] = 0
    meta.mask_names = {str(value): name for value, name in sorted(mask.names.items())}
    meta.mask_resampled = not exact
    small = int(placed.max(initial=0)) < 256
    return encode_codes(placed.astype(np.uint8 if small else np.dtype("<u2")))


def _check_same(mask: Mask, placed: NDArray[np.uint16], affine: NDArray[np.float64]) -> None:
    before, after = np.argwhere(mask.values), np.argwhere(placed)
    if not len(before):
        return
    voxels = [abs(float(np.linalg.det(matrix[:3, :3]))) for matrix in (mask.affine, affine)]
    volumes = len(before) * voxels[0], len(after) * voxels[1]
    allowed = max(VOLUME_SHARE * volumes[0], FEW_VOXELS * max(voxels))
    if not len(after) or abs(volumes[1] - volumes[0]) > allowed:
        raise QuarantineError(Reason.MASK_MISMATCH)
    centres = [
        matrix[:3, :3] @ where.mean(axis=0) + matrix[:3, 3]
        for matrix, where in ((mask.affine, before), (affine, after))
    ]
    step = max(float(np.linalg.norm(matrix[:3, :3], axis=0).max()) for matrix in (mask.affine, affine))
    if float(np.linalg.norm(centres[0] - centres[1])) > step:
        raise QuarantineError(Reason.MASK_MISMATCH)


def _named(name: str, series: Mapping[str, str], by_name: Mapping[str, list[str]]) -> str | Reason:
    """The series that a file's name names: by SeriesInstanceUID, or as the image is named."""
    stem = os.path.basename(name).removesuffix(".gz").removesuffix(".nii")
    for candidate in (name, stem):
        if candidate in series:
            return candidate
    found = by_name.get(f"{stem}.nii.gz", []) + by_name.get(f"{stem}.nii", [])
    if not found:
        return Reason.MASK_UNKNOWN_SERIES
    return found[0] if len(found) == 1 else Reason.MASK_AMBIGUOUS


def _is_seg(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            start = file.read(1024)
    except OSError:
        return False
    return start[128:132] == b"DICM" and any(uid.encode() in start for uid in (SEG, LABEL_MAP_SEG))


def _referred(path: str, series: Mapping[str, str]) -> str | Reason:
    """The series that a DICOM SEG was drawn on."""
    try:
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        if str(ds.SOPClassUID) not in (SEG, LABEL_MAP_SEG):
            return Reason.MASK_DAMAGED
        wanted = [str(item.SeriesInstanceUID) for item in ds.get("ReferencedSeriesSequence") or ()]
    except Exception:  # a hostile file fails in every way there is
        return Reason.MASK_DAMAGED
    known = [uid for uid in wanted if uid in series]
    if not known:
        return Reason.MASK_UNKNOWN_SERIES
    return known[0] if len(known) == 1 else Reason.MASK_AMBIGUOUS


def _from_nifti(path: str, names: Mapping[str, str]) -> Mask:
    try:
        values, affine = read_nifti(path)
    except QuarantineError:
        raise QuarantineError(Reason.MASK_DAMAGED) from None
    # MATLAB and float formats hold whole numbers too
    whole = np.isfinite(values).all() and bool((values == np.rint(values)).all())
    if values.shape[3] != 1 or not whole or values.min() < 0 or values.max() > 65535:
        raise QuarantineError(Reason.MASK_DAMAGED)
    named = {int(value): name for value, name in names.items() if value.isdigit()}
    return Mask(values=values[..., 0].astype(np.uint16), affine=affine, names=named)


def _from_seg(path: str, names: Mapping[str, str]) -> Mask:
    from highdicom.seg import segread

    try:
        seg = segread(path)
        if int(seg.Rows) * int(seg.Columns) * int(seg.get("NumberOfFrames", 1)) > MAX_VOXELS:
            raise QuarantineError(Reason.TOO_LARGE)
        fractional = str(seg.SegmentationType) == "FRACTIONAL"
        # where segments overlap the higher number counts
        volume = seg.get_volume(combine_segments=not fractional, skip_overlap_checks=True)
        values = np.asarray(volume.array)
        if fractional:
            values = np.where(values.max(axis=3) >= 0.5, 1 + values.argmax(axis=3), 0)
            numbers = list(seg.segment_numbers)
            values = np.asarray([0, *numbers])[values]
        named = {
            int(item.SegmentNumber): names.get(str(item.get("SegmentLabel", "")).strip().lower()) or _code(item)
            for item in seg.SegmentSequence
        }
        affine = _LPS_TO_RAS @ np.asarray(volume.affine, dtype=np.float64)
        frame = str(volume.frame_of_reference_uid or "")
    except QuarantineError:
        raise
    except Exception:  # a hostile file fails in every way there is
        raise QuarantineError(Reason.MASK_DAMAGED) from None
    return Mask(
        values=values.astype(np.uint16),
        affine=affine,
        names={k: name for k, name in named.items() if name},
        frame=frame,
    )


def _code(segment: Any) -> str:
    """Name of a segment's coded property type, as ``sct_4147007``; '' where its scheme is none of the open ones."""
    for code in segment.get("SegmentedPropertyTypeCodeSequence") or ():
        scheme, value = str(code.get("CodingSchemeDesignator", "")).lower(), str(code.get("CodeValue", "")).lower()
        if scheme in _SCHEMES and re.fullmatch(r"[a-z0-9-]{1,20}", value):
            return f"{scheme}_{value}".replace("-", "_")
    return ""
