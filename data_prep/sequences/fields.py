"""Agent, role, plane, fat suppression, 2D or 3D, Dixon part and body region of a series, each by its own rules."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_prep.headers import Header, Scan
from data_prep.sequences import words
from data_prep.sequences.answer import Answer
from fm.data.sample import Acquisition, Agent, Contrast, DixonPart, FatSuppression, Plane, Role
from fm.grid import plane_of

_NO_AGENT = re.compile(r"[\W_0]*|no(ne|t given)?|n/?a|without|nil|unknown|native|plain", re.IGNORECASE)
_DOSE = re.compile(r"\d")
_NAMED_AGENT = re.compile(
    r"gado|dotarem|multihance|gadavist|gadovist|magnevist|omniscan|prohance|primovist|eovist|clariscan|vueway|elucirem",
    re.IGNORECASE,
)
_SOFTWARE = re.compile(
    r"imaging biometrics|freesurfer|\bfsl\b|\bspm\b|\bants\b|slicer|osirix|horos|mevis|brainlab|terarecon|\bmim\b"
    r"|nordic|olea|elastix|\bitk\b|matlab|brainvoyager",
    re.IGNORECASE,
)
_DIXON_KINDS = {
    DixonPart.WATER: {"WATER", "W"},
    DixonPart.FAT: {"FAT", "F"},
    DixonPart.IN_PHASE: {"IN_PHASE", "IP"},
    DixonPart.OPPOSED_PHASE: {"OPP_PHASE", "OUT_PHASE", "OP"},
}
_FAT_OPTIONS = {"FS", "SFS", "WE", "FATSAT", "SPIR", "SPAIR"}
_LOCALIZER_SLICES = 20
"""Most slices that a localizer has in one plane."""


def agent_of(scan: Scan, on_every_series: bool) -> Answer[Agent]:
    """Yes needs the agent named or dosed, or the tag and the words together; the bare tag or bare words mean unknown.

    The tag belongs to the exam card and is often left from another series, or filled for all of them: where every
    series of the study carries it, words that put this one before the agent are believed.
    """
    if not scan.agent:
        return Answer(value=Agent.UNKNOWN, confidence=0.5, rule="no agent tag")
    if _NO_AGENT.fullmatch(scan.agent):
        return Answer(value=Agent.NO, confidence=0.8, rule="agent tag says none")
    denied = words.says_before_agent(scan)
    if denied and on_every_series:
        return Answer(value=Agent.UNKNOWN, confidence=0.5, rule="agent tag on every series, words deny it")
    if _NAMED_AGENT.search(scan.agent) or _DOSE.search(scan.agent) or (scan.agent_volume_ml or 0) > 0:
        return Answer(value=Agent.YES, confidence=0.6 if denied else 0.9, rule="agent named or dosed")
    if not denied and words.says_agent(scan):
        return Answer(value=Agent.YES, confidence=0.8, rule="agent tag and words")
    return Answer(value=Agent.UNKNOWN, confidence=0.5, rule="bare agent tag")


def role_of(scan: Scan, contrast: Contrast) -> Answer[Role]:
    """Registered, derived or original; localizers never come so far (see :func:`is_localizer`)."""
    if words.says_registered(scan):
        return Answer(value=Role.REGISTERED, confidence=0.9, rule="words of registration")
    if scan.image_type and scan.image_type[0].upper() == "DERIVED":
        return Answer(value=Role.DERIVED, confidence=0.95, rule="image type derived")
    if contrast is Contrast.ADC:
        return Answer(value=Role.DERIVED, confidence=0.9, rule="a map is derived")
    if _SOFTWARE.search(scan.vendor):
        # it calls itself original and was written by software: scanned voxels, resampled
        return Answer(value=Role.REGISTERED, confidence=0.6, rule="written by software")
    return Answer(value=Role.ORIGINAL, confidence=0.8, rule="image type original")


def is_localizer(headers: Sequence[Header]) -> bool:
    """Whether a series holds a few slices in each of three planes at right angles, as only localizers do."""
    planes: list[tuple[NDArray[np.float64], int]] = []
    for header in headers:
        if header.orientation is None or header.tiled or header.enhanced:
            return False
        normal = np.cross(header.orientation[:3], header.orientation[3:])
        for index, (known, count) in enumerate(planes):
            if abs(float(normal @ known)) > 0.98:
                planes[index] = (known, count + 1)
                break
        else:
            planes.append((normal, 1))
    if len(planes) != 3 or max(count for _, count in planes) > _LOCALIZER_SLICES:
        return False
    normals = np.array([normal for normal, _ in planes])
    return bool(np.abs(normals @ normals.T - np.eye(3)).max() < 0.2)


def plane_answer(affine: NDArray[np.float64]) -> Answer[Plane]:
    """Patient plane nearest to the slices (array axis 2 of a 4×4 RAS+ `affine`); sure where they lie in it."""
    along = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
    plane = Plane(plane_of(affine, 2))
    return Answer(value=plane, confidence=round(float(np.abs(along).max()), 2), rule="slice direction")


def fat_suppression_of(scan: Scan, contrast: Contrast, dixon: DixonPart | None) -> Answer[FatSuppression]:
    """Scan Options, short inversion times and Dixon water images tell; words where no option is tagged."""
    options = {word.upper() for word in scan.scan_options}
    if options & _FAT_OPTIONS:
        return Answer(value=FatSuppression.YES, confidence=0.95, rule="scan options")
    if contrast is Contrast.STIR:
        return Answer(value=FatSuppression.YES, confidence=0.9, rule="short inversion")
    if dixon is not None:
        value = FatSuppression.YES if dixon is DixonPart.WATER else FatSuppression.NO
        return Answer(value=value, confidence=0.9, rule="dixon part")
    if options - {"NONE"}:
        return Answer(value=FatSuppression.NO, confidence=0.8, rule="scan options")
    if words.says_fat_suppressed(scan):
        return Answer(value=FatSuppression.YES, confidence=0.7, rule="words")
    if scan.scanning_sequence:
        return Answer(value=FatSuppression.NO, confidence=0.6, rule="no option tagged")
    return Answer(value=FatSuppression.UNKNOWN, confidence=0.0, rule="nothing told")


def acquisition_of(scan: Scan) -> Answer[Acquisition]:
    """MR Acquisition Type, else the pulse sequence's name, else the words."""
    tagged = {"2D": Acquisition.TWO_D, "3D": Acquisition.THREE_D}.get(scan.acquisition_type.strip().upper())
    if tagged is not None:
        return Answer(value=tagged, confidence=0.95, rule="acquisition type")
    pulse = re.search(r"([23])d", f"{scan.sequence_name} {scan.technique}".lower())
    if pulse is not None:
        value = Acquisition.THREE_D if pulse.group(1) == "3" else Acquisition.TWO_D
        return Answer(value=value, confidence=0.85, rule="pulse sequence")
    said = words.says_three_d(scan)
    if said is not None:
        value = Acquisition.THREE_D if said else Acquisition.TWO_D
        return Answer(value=value, confidence=0.7, rule="words")
    return Answer(value=Acquisition.UNKNOWN, confidence=0.0, rule="nothing told")


def dixon_part_of(scan: Scan, contrast: Contrast) -> Answer[DixonPart | None]:
    """Water, fat, in phase or opposed phase, by Image Type; by words for what is known to be Dixon."""
    kinds = {kind.upper() for kind in scan.image_type}
    for part, names in _DIXON_KINDS.items():
        if kinds & names:
            return Answer(value=part, confidence=0.95, rule="image type")
    said = words.dixon_word(scan) if contrast is Contrast.DIXON else None
    if said is not None:
        return Answer(value=said, confidence=0.7, rule="words")
    return Answer(value=None, confidence=0.0, rule="nothing told")


def region_answer(scan: Scan) -> Answer[str]:
    """Body region word from Body Part Examined, else from the words; 'unknown' where neither tells."""
    for text, confidence, rule in (
        (scan.body_part, 0.9, "body part examined"),
        (scan.description, 0.7, "words of the description"),
        (scan.protocol, 0.6, "words of the protocol"),
        (scan.study_description, 0.5, "words of the study"),
    ):
        region = words.region_word(text)
        if region is not None:
            return Answer(value=region, confidence=confidence, rule=rule)
    return Answer(value="unknown", confidence=0.0, rule="nothing told")
