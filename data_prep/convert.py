"""From the files of one series to volumes on their true grid: dcm2niix decodes, the slices' own headers place.

dcm2niix's interpolated ``_Eq`` outputs are never read. Where a gap makes it shift slices, only their order is taken
from it; each slice is put where its header says.
"""

from __future__ import annotations

import errno
import importlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray

from data_prep.geometry import Frame, Grid, make_frame, make_grid, reorder, same_axes
from data_prep.headers import Header
from data_prep.ledger import QuarantineError, Reason
from fm.config.errors import UserError

MAX_SERIES_VOXELS = 2**31
_LOW_SPACE = 64 * 2**20


@dataclass(kw_only=True, slots=True)
class Volume:
    """One 3D volume; array axes (column, row, slice)."""

    values: NDArray[np.float32]
    affine: NDArray[np.float64]
    """(4, 4) to RAS+ mm."""
    slice_valid: NDArray[np.bool_]
    slice_mm: list[float]
    """Position of each slice along the slice axis from the first."""
    b_value: float | None
    index: int
    """Number of the volume in its series."""


def converter() -> str:
    """Path of dcm2niix.

    Raises:
        UserError: it is missing, does not start, or lacks the JPEG 2000 or JPEG-LS codec.
    """
    try:
        dcm2niix = importlib.import_module("dcm2niix")

        path = str(dcm2niix.bin)
        banner = subprocess.run([path, "-v"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (ImportError, OSError, subprocess.TimeoutExpired):
        raise UserError("dcm2niix does not start; install it with: pip install dcm2niix") from None
    if "JP2" not in banner or "JP-LS" not in banner:
        raise UserError("dcm2niix lacks the JPEG 2000 or JPEG-LS codec; install a full one: pip install dcm2niix")
    return path


def convert(headers: Sequence[Header], binary: str, timeout_s: float) -> list[Volume]:
    """Convert the files of one stack (equal geometry and contrast) to its volumes, in acquired order.

    Raises:
        QuarantineError: the stack cannot be converted, or the result contradicts the slices' headers.
        OSError: no space left for temporary files.
    """
    grid = None if headers[0].tiled else _grid(headers)
    slices = len(headers) if grid is None else len(grid.slot_of_frame)
    if headers[0].rows * headers[0].columns * slices > MAX_SERIES_VOXELS:
        raise QuarantineError(Reason.TOO_LARGE)
    with tempfile.TemporaryDirectory(prefix="fm-prepare-") as folder:
        _run(headers, Path(folder), binary, timeout_s)
        # _Eq is interpolated over gaps; _ROI is an overlay plane, which may be text
        outputs = sorted(p for p in Path(folder, "out").glob("*.nii") if not re.search("_Eq|_ROI", p.name))
        if not outputs:
            raise QuarantineError(Reason.CONVERTER_FAILED)
        volumes = [volume for path in outputs for volume in _load(path, grid, headers[0])]
    if len(volumes) * int(volumes[0].slice_valid.sum()) < slices and grid is not None:
        raise QuarantineError(Reason.CONVERTER_MISMATCH)
    return [replace(volume, index=index) for index, volume in enumerate(volumes)]


def _run(headers: Sequence[Header], folder: Path, binary: str, timeout_s: float) -> None:
    """Run dcm2niix on exactly these files.

    It runs inside a folder that holds them and nothing else (their own, or one of links), so that no path, which may
    name a patient, shows in the process list.
    """
    out = folder / "out"
    out.mkdir()
    source = Path(os.path.abspath(headers[0].path)).parent
    if sorted(os.path.abspath(header.path) for header in headers) != sorted(str(path) for path in source.iterdir()):
        source = folder / "in"
        source.mkdir()
        for number, header in enumerate(headers):
            os.symlink(os.path.abspath(header.path), source / f"{number:06d}.dcm")
    command = [binary, "-b", "n", "-z", "n", "-m", "y", "-d", "0", "-f", "v", "-o", str(out), "."]
    # its messages name patients: nobody reads them
    process = subprocess.Popen(command, cwd=source, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # waiting with a timeout polls in steps of up to 50 ms, longer than most conversions; so a timer ends it instead
    timed_out = threading.Event()

    def end() -> None:
        timed_out.set()
        process.kill()

    timer = threading.Timer(timeout_s, end)
    timer.start()
    try:
        process.wait()
    finally:
        timer.cancel()
    if timed_out.is_set():
        raise QuarantineError(Reason.CONVERTER_TIMEOUT)
    if shutil.disk_usage(folder).free < _LOW_SPACE:
        raise OSError(errno.ENOSPC, "no space left for temporary files")


def _load(path: Path, grid: Grid | None, header: Header) -> list[Volume]:
    try:
        image: Any = nibabel.load(path)
        if not np.isfinite(image.affine).all() or len(image.shape) not in (3, 4) or 0 in image.shape:
            raise QuarantineError(Reason.CONVERTER_MISMATCH)
        data = np.asarray(image.dataobj, dtype=np.float32)
        affine = np.asarray(image.affine, dtype=np.float64)
    except (nibabel.filebasedimages.ImageFileError, OSError, ValueError):
        raise QuarantineError(Reason.CONVERTER_FAILED) from None
    data = data if data.ndim == 4 else data[..., None]
    b_values = _b_values(path.with_suffix(".bval"), data.shape[3])
    if grid is None:
        if data.shape[2] < 2 or abs(float(np.linalg.det(affine[:3, :3]))) < 1e-9:
            raise QuarantineError(Reason.NO_GEOMETRY)
        valid = np.ones(data.shape[2], dtype=bool)
        step = float(np.linalg.norm(affine[:3, 2]))
        slice_mm = [index * step for index in range(data.shape[2])]
        placed = data
    else:
        placed, valid, slice_mm = _place(data, affine, grid, header), grid.valid, grid.slice_mm
        affine = grid.affine
    return [
        Volume(
            values=placed[..., index],
            affine=affine,
            slice_valid=valid,
            slice_mm=slice_mm,
            b_value=header.scan.b_value if b_values is None else b_values[index],
            index=index,
        )
        for index in range(placed.shape[3])
    ]


def _place(data: NDArray[np.float32], affine: NDArray[np.float64], grid: Grid, header: Header) -> NDArray[np.float32]:
    """Put each decoded slice where its header says: (column, row, slice of the grid, volume)."""
    order, flip = same_axes(grid.affine, affine)
    data = reorder(data, order, flip)
    slots = np.flatnonzero(grid.valid)
    if data.shape[:3] != (header.columns, header.rows, len(slots)):
        raise QuarantineError(Reason.CONVERTER_MISMATCH)
    if len(slots) == grid.depth:
        corners = np.array([[0, 0, 0], [header.columns - 1, header.rows - 1, grid.depth - 1]], dtype=np.float64)
        ours = corners @ grid.affine[:3, :3].T + grid.affine[:3, 3]
        source = np.empty_like(corners)
        for target, (axis, reverse) in enumerate(zip(order, flip, strict=True)):
            source[:, axis] = data.shape[target] - 1 - corners[:, target] if reverse else corners[:, target]
        theirs = source @ affine[:3, :3].T + affine[:3, 3]
        if grid.depth > 1 and np.abs(ours - theirs).max() > 0.5 * float(np.linalg.norm(grid.affine[:3, 2])):
            raise QuarantineError(Reason.CONVERTER_MISMATCH)
        return data
    placed = np.zeros((*data.shape[:2], grid.depth, data.shape[3]), dtype=np.float32)
    placed[:, :, slots] = data
    return placed


def _b_values(path: Path, volumes: int) -> list[float] | None:
    try:
        found = [float(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return None
    return found if len(found) == volumes and all(np.isfinite(found)) and min(found) >= 0 else None


def _grid(headers: Sequence[Header]) -> Grid:
    if headers[0].enhanced:
        frames = [frame for header in headers for frame in _enhanced_frames(header)]
    else:
        frames = [make_frame(h.position, h.orientation, h.pixel_spacing) for h in headers]
    turned = max(float(np.abs(frame.orientation - frames[0].orientation).max()) for frame in frames)
    if turned > 1e-3:
        raise QuarantineError(Reason.IRREGULAR_SLICES)
    return make_grid(frames, headers[0].scan.slice_step_mm)


def _enhanced_frames(header: Header) -> list[Frame]:
    """Geometry of every frame, from the functional groups.

    Raises:
        QuarantineError: there are none, or they do not place every frame.
    """
    try:
        tags: list[Any] = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "NumberOfFrames"]
        ds = pydicom.dcmread(header.path, stop_before_pixels=True, specific_tags=tags)
        shared = ds.SharedFunctionalGroupsSequence[0]
        found = []
        for group in ds.PerFrameFunctionalGroupsSequence:
            parts: list[Any] = []
            for sequence, keyword in (
                ("PlanePositionSequence", "ImagePositionPatient"),
                ("PlaneOrientationSequence", "ImageOrientationPatient"),
                ("PixelMeasuresSequence", "PixelSpacing"),
            ):
                holder = group if sequence in group else shared
                parts.append([float(value) for value in getattr(holder[sequence][0], keyword)])
            found.append(make_frame(*parts))
        if not found or len(found) != int(ds.NumberOfFrames):
            raise QuarantineError(Reason.NO_GEOMETRY)
        return found
    except QuarantineError:
        raise
    except Exception:  # any damage here means that the frames have no place
        raise QuarantineError(Reason.NO_GEOMETRY) from None
