"""NIfTI files as input, for public datasets: BIDS trees, and plain folders of files.

Text fields of the file are never read; its name serves recognition and linkage only. Sizes are checked against what is
there before anything is allocated (NIfTI-1.1 and NIfTI-2; BIDS 1.10).
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from data_prep.bids import bids_names, identity_of, scan_of_sidecar
from data_prep.convert import Volume
from data_prep.headers import Header
from data_prep.ledger import QuarantineError, Reason, Rule
from fm.config.prepare import Source
from fm.grid.orientation import guess_slice_axis

MAX_VOXELS = 2**29
"""Largest image, all volumes together."""
SUFFIXES = (".nii", ".nii.gz")
_MAX_OFFSET = 2**24
_METRES = {1: 1000.0, 3: 0.001}
"""Millimetres of a length unit (xyzt_units); others are millimetres, said or not."""


def read_nifti_header(path: str, root: str, source: Source) -> Header | Rule:
    """The header of one NIfTI file, as far as the pipeline needs it, or the rule by which it is left out.

    Raises:
        QuarantineError: the file is damaged, lies about its size, or has no place in the patient.
    """
    try:
        with _opened(path) as file:
            header = _parse(file.read(540))
    except (OSError, EOFError, zlib.error):
        raise QuarantineError(Reason.BAD_HEADER) from None
    if header.get_data_dtype().fields is not None:
        return Rule.COLOUR
    shape = _shape(header)
    if not path.endswith(".gz") and os.path.getsize(path) < _wanted(header):
        raise QuarantineError(Reason.TRUNCATED)
    _affine(header)
    names = bids_names(path, root, source)
    return Header(
        path=path,
        study_uid=names.study,
        series_uid=names.file,
        instance_uid=names.file,
        enhanced=True,
        tiled=False,
        nifti=True,
        instance=0,
        rows=shape[1],
        columns=shape[0],
        position=None,
        orientation=None,
        pixel_spacing=None,
        scan=scan_of_sidecar(path, root, names),
        identity=identity_of(root, names),
    )


def load_nifti(header: Header) -> list[Volume]:
    """The volumes of one NIfTI file, the acquired slice axis last.

    Raises:
        QuarantineError: fewer or far more bytes than it claims, a broken checksum, or an impossible slope.
    """
    data, affine = read_nifti(header.path)
    axis = guess_slice_axis(affine)
    order = [*(other for other in range(3) if other != axis), axis]
    affine, data = affine[:, [*order, 3]], data.transpose([*order, 3])
    b_values = _b_values(header.path, data.shape[3])
    step = float(np.linalg.norm(affine[:3, 2]))
    return [
        Volume(
            values=data[..., index],
            affine=affine,
            slice_valid=np.ones(data.shape[2], dtype=bool),
            slice_mm=[step * number for number in range(data.shape[2])],
            b_value=None if b_values is None else b_values[index],
            index=index,
        )
        for index in range(data.shape[3])
    ]


def read_nifti(path: str) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Voxels of a file, four axes as stored, and (4, 4) array axes to RAS+ mm.

    Raises:
        QuarantineError: fewer or far more bytes than it claims, a broken checksum, or an impossible slope.
    """
    payload = _payload(path)
    fields = _parse(payload[:540])
    # nibabel takes an infinite slope for none; absent it is zero or not a number
    if any(np.isinf(fields[name]) or abs(fields[name]) > 1e12 for name in ("scl_slope", "scl_inter")):
        raise QuarantineError(Reason.BAD_RESCALE)
    image = (nibabel.Nifti1Image if _sizeof(payload) == 348 else nibabel.Nifti2Image).from_bytes(payload)
    return np.asarray(image.dataobj, dtype=np.float32).reshape(_shape(fields)), _affine(fields)


def _opened(path: str) -> BinaryIO:
    return gzip.open(path, "rb") if path.endswith(".gz") else Path(path).open("rb")  # type: ignore[return-value]  # GzipFile reads alike


def _sizeof(start: bytes) -> int:
    """The header's own size in either byte order: 348 is NIfTI-1, 540 is NIfTI-2."""
    sizes = {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}
    return next((size for size in (348, 540) if size in sizes), 0)


def _parse(start: bytes) -> Any:
    size = _sizeof(start)
    if size == 0 or len(start) < size:
        raise QuarantineError(Reason.BAD_HEADER)
    kind = nibabel.Nifti1Header if size == 348 else nibabel.Nifti2Header
    try:
        header = kind.from_fileobj(io.BytesIO(start[:size]))
        header.get_data_dtype()
    except (HeaderDataError, nibabel.filebasedimages.ImageFileError, ValueError, KeyError):
        raise QuarantineError(Reason.BAD_HEADER) from None
    if bytes(header["magic"])[:2] != b"n+":
        raise QuarantineError(Reason.BAD_HEADER)
    return header


def _shape(header: Any) -> tuple[int, int, int, int]:
    """Columns, rows, slices and volumes."""
    sizes = [int(size) for size in header.get_data_shape()]
    if not 3 <= len(sizes) <= 7 or min(sizes) < 1 or np.prod(sizes[4:], dtype=object) != 1:
        raise QuarantineError(Reason.BAD_HEADER)
    shape = (sizes[0], sizes[1], sizes[2], sizes[3] if len(sizes) > 3 else 1)
    # Python's whole numbers: the claim of a hostile header overflows others
    if shape[0] * shape[1] * shape[2] * shape[3] > MAX_VOXELS:
        raise QuarantineError(Reason.TOO_LARGE)
    return shape


def _wanted(header: Any) -> int:
    """Bytes of the file up to the end of its voxels."""
    offset = float(header["vox_offset"])
    if not 0 <= offset <= _MAX_OFFSET:
        raise QuarantineError(Reason.BAD_HEADER)
    columns, rows, slices, volumes = _shape(header)
    return int(offset) + columns * rows * slices * volumes * int(header.get_data_dtype().itemsize)


def _affine(header: Any) -> NDArray[np.float64]:
    """(4, 4) array axes to RAS+ mm."""
    try:
        placed = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        raise QuarantineError(Reason.NO_GEOMETRY) from None
    affine[:3] *= _METRES.get(int(header["xyzt_units"]) & 7, 1.0)
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    if not placed or not np.isfinite(affine).all() or np.abs(affine).max() > 1e5 or steps.min() <= 1e-3:
        raise QuarantineError(Reason.NO_GEOMETRY)
    if abs(float(np.linalg.det(affine[:3, :3] / steps))) < 0.5:
        raise QuarantineError(Reason.NO_GEOMETRY)
    return affine


def _payload(path: str) -> bytes:
    """The file, inflated piece by piece up to what its header claims; the checksum of a gzip file is read too."""
    try:
        with _opened(path) as file:
            start = file.read(540)
            wanted = _wanted(_parse(start))
            parts, total = [start], len(start)
            while chunk := file.read(2**20):
                total += len(chunk)
                if total > wanted + _MAX_OFFSET:
                    raise QuarantineError(Reason.TOO_LARGE)
                parts.append(chunk)
    except (OSError, EOFError, zlib.error):
        raise QuarantineError(Reason.TRUNCATED) from None
    if total < wanted:
        raise QuarantineError(Reason.TRUNCATED)
    return b"".join(parts)


def _b_values(path: str, volumes: int) -> list[float] | None:
    """b-values in s/mm² from the ``.bval`` beside a file; None where there are none that fit."""
    stem = path.removesuffix(".gz").removesuffix(".nii")
    try:
        found = [float(word) for word in Path(f"{stem}.bval").read_text().split()]
    except (OSError, ValueError):
        return None
    return found if len(found) == volumes and all(np.isfinite(found)) and min(found) >= 0 else None
