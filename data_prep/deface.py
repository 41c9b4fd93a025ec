"""Faces: nothing leaves of a head until somebody has said what is done about them (PS3.15 option 113102).

Quickshear (Schimke and Hale, 2nd USENIX Workshop on Health Security and Privacy, 2011): seen from the side, the convex
hull of the brain has an edge that looks forward and down; everything beyond it, less a margin, is removed. It never
cuts what the brain mask holds. Where the original takes the first edge behind the foremost voxel, which depends on the
resolution, the longest edge that looks forward and down is taken here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from data_prep.convert import Volume
from data_prep.headers import Header
from data_prep.ledger import QuarantineError, Reason
from data_prep.masks import Mask, onto_grid, read_mask
from data_prep.programs import run_program
from data_prep.sequences.fields import region_answer
from fm.config.errors import UserError
from fm.config.prepare import Deface, PrepareConfig

FACE_REGIONS = frozenset(("head", "unknown"))
"""Regions whose series may show a face; a series whose header names none may be a head."""
CLEAN_FACES = "113102"
"""Clean Recognizable Visual Features, as a code of PS3.16 CID 7050."""
_LEAST_BRAIN_MM3 = 50_000.0
_STEEPEST = np.sin(np.deg2rad(10.0))
"""An edge of the hull looks forward and down where both parts of its normal are at least this."""


def require_decision(studies: Mapping[str, Sequence[Header]], config: PrepareConfig) -> None:
    """Refuse series that may show a face while nobody has said what is done about them.

    Raises:
        UserError: prepare.deface is unset, and there are such series.
    """
    if config.deface != Deface.unset:
        return
    faces = 0
    for headers in studies.values():
        one_of_each = {header.series_uid: header for header in headers}.values()
        faces += any(has_face(region_answer(header.scan).value) for header in one_of_each)
    if faces:
        raise UserError(
            f"{faces} of {len(studies)} studies show a head, or no region that their headers name, and faces identify "
            "people: set prepare.deface=quickshear, command, or none (faces stay); see docs/deidentification.md"
        )


def has_face(region: str) -> bool:
    """Whether a series of this region may show a face."""
    return region in FACE_REGIONS


def confidentiality_options(options: str, deface: Deface) -> str:
    """The options of PS3.15 with that of faces, where they are removed."""
    return f"{options} {CLEAN_FACES}" if deface in (Deface.quickshear, Deface.command) else options


def deface(volume: Volume, region: str, brain_mask: str, config: PrepareConfig) -> tuple[Volume, str | None]:
    """A volume without its face, and how that was done; None where its region holds none.

    Args:
        volume: as converted.
        region: body region word of its series.
        brain_mask: file of a brain mask in the same patient coordinates; '' where there is none.
        config: what is to be done.

    Raises:
        QuarantineError: no brain mask that fits, or the program fails.
        UserError: nobody has decided, or there is no such program.
    """
    if not has_face(region):
        return volume, None
    if config.deface == Deface.unset:
        raise UserError("prepare.deface is unset: see docs/deidentification.md")
    if config.deface == Deface.command:
        values, affine = run_program(
            config.deface_command, volume.values, volume.affine, config.convert_timeout_s, Reason.DEFACE_FAILED
        )
        if values.shape != volume.values.shape or np.abs(affine - volume.affine).max() > 1e-2:
            raise QuarantineError(Reason.DEFACE_FAILED)
        return replace(volume, values=values), config.deface.value
    if config.deface == Deface.quickshear:
        kept = shear(_brain(volume, brain_mask, config), volume.affine, config.face_margin_mm)
        return replace(volume, values=np.where(kept, volume.values, np.float32(0))), config.deface.value
    return volume, config.deface.value


def shear(brain: NDArray[np.bool_], affine: NDArray[np.float64], margin_mm: float) -> NDArray[np.bool_]:
    """Which voxels lie behind or above the plane in front of and below the brain; all of the brain does.

    Args:
        brain: the brain mask, any axes.
        affine: (4, 4) its axes to RAS+ mm.
        margin_mm: distance of the plane from the hull of the brain.

    Raises:
        QuarantineError: too little of a brain to tell.
    """
    if np.count_nonzero(brain) * abs(float(np.linalg.det(affine[:3, :3]))) < _LEAST_BRAIN_MM3:
        raise QuarantineError(Reason.NO_BRAIN_MASK)
    rim = np.argwhere(brain & ~ndimage.binary_erosion(brain))
    side = rim @ affine[1:3, :3].T + affine[1:3, 3]
    try:
        hull = ConvexHull(side)
    except QhullError:
        raise QuarantineError(Reason.NO_BRAIN_MASK) from None
    # rows of equations: outward normal (forward, up) and offset; normal @ point + offset <= 0 inside
    ends = side[hull.simplices]
    lengths = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
    looks = (hull.equations[:, 0] >= _STEEPEST) & (hull.equations[:, 1] <= -_STEEPEST)
    if not looks.any():
        raise QuarantineError(Reason.NO_BRAIN_MASK)
    forward, up, offset = hull.equations[int(np.argmax(np.where(looks, lengths, 0.0)))]
    gradient = forward * affine[1] + up * affine[2]
    i, j, k = np.ogrid[tuple(slice(n) for n in brain.shape)]
    beyond = gradient[0] * i + gradient[1] * j + gradient[2] * k + gradient[3] + offset
    return np.asarray(beyond <= margin_mm)


def _brain(volume: Volume, path: str, config: PrepareConfig) -> NDArray[np.bool_]:
    """The brain on the grid of a volume, from a file, else from the program."""
    if path:
        mask = read_mask(path, {})
    elif config.brain_mask_command:
        values, affine = run_program(
            config.brain_mask_command, volume.values, volume.affine, config.convert_timeout_s, Reason.NO_BRAIN_MASK
        )
        mask = Mask(values=(values > 0.5).astype(np.uint16), affine=affine, names={})
    else:
        raise QuarantineError(Reason.NO_BRAIN_MASK)
    shape = (volume.values.shape[0], volume.values.shape[1], volume.values.shape[2])
    try:
        return onto_grid(mask, volume.affine, shape)[0] > 0
    except QuarantineError:
        raise QuarantineError(Reason.NO_BRAIN_MASK) from None
