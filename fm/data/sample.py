"""The shard contract: what one WebDataset sample holds, as types.

One sample is one *study*: every series of one visit plus its report. The members of a study `K` are

- ``K.json``: a :class:`StudyMeta`, allow-listed typed fields only;
- ``K.<series>.b2``: the voxels of one series, see :mod:`fm.data.codec`;
- ``K.<series>.seg.b2``: an optional label map on the same grid.

Axes of every volume are (D, H, W): D the acquired slice axis, H the in-plane axis nearest superior (anterior in
axial planes), W the other one; each increases toward R, A or S. ``affine`` maps (d, h, w, 1) to RAS+ millimetres.
This module is torch-free; ``data_prep`` writes it and ``fm.data`` reads it.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

FORMAT_VERSION = 1
STUDY_KEY = re.compile(r"[a-z0-9_]+")
SERIES_NAME = re.compile(r"[a-z0-9_]+")
RULE_NAME = re.compile(r"[a-z0-9 ,*+-]{1,60}")

LabelValue = str | float | int
"""A label is a number, a whole number or a short word; a missing label is an absent key, never zero or ''."""


class SampleError(ValueError):
    """A sample that breaks the shard contract; the message names the member and the field."""


class Contrast(StrEnum):
    """Image contrast of a series; the order is the order of the model's condition embedding: append only."""

    OTHER = "other"
    T1W = "t1w"
    T2W = "t2w"
    FLAIR = "flair"
    T1_FLAIR = "t1_flair"
    STIR = "stir"
    PD = "pd"
    DWI = "dwi"
    ADC = "adc"
    SWI = "swi"
    BOLD = "bold"
    BSSFP = "bssfp"
    ANGIO = "angio"
    PERFUSION = "perfusion"
    DIXON = "dixon"


class Agent(StrEnum):
    """Whether contrast agent was given before the series; a contrast tag alone never means yes."""

    UNKNOWN = "unknown"
    NO = "no"
    YES = "yes"


class Role(StrEnum):
    """How the voxels came about."""

    ORIGINAL = "original"
    DERIVED = "derived"
    REGISTERED = "registered"


class Plane(StrEnum):
    """Patient plane nearest to the acquired slices."""

    AXIAL = "axial"
    CORONAL = "coronal"
    SAGITTAL = "sagittal"


class FatSuppression(StrEnum):
    """Whether the signal of fat is suppressed, by whatever method; a Dixon water image counts as suppressed."""

    UNKNOWN = "unknown"
    NO = "no"
    YES = "yes"


class Acquisition(StrEnum):
    """Whether slices were excited one by one or a whole slab at once."""

    UNKNOWN = "unknown"
    TWO_D = "2d"
    THREE_D = "3d"


class DixonPart(StrEnum):
    """Which image of a Dixon acquisition."""

    WATER = "water"
    FAT = "fat"
    IN_PHASE = "in_phase"
    OPPOSED_PHASE = "opposed_phase"


@dataclass(kw_only=True, slots=True)
class Evidence:
    """Why a field of a series says what it says."""

    confidence: float
    """From 0 (nothing told) to 1."""
    rule: str
    """Name of the rule that decided."""


@dataclass(kw_only=True, slots=True)
class Statistics:
    """Statistics of a series' body voxels, in the scanner's units."""

    mean: float
    std: float
    percentiles: list[float]
    """The 1st, 5th, 25th, 50th, 75th, 95th and 99th."""
    foreground_share: float
    """Body voxels over all voxels of the volume."""
    quantisation_error: float
    """Largest difference between a body voxel and its stored value."""


@dataclass(kw_only=True, slots=True)
class SeriesMeta:
    """One series of a study. Lengths in mm, times in ms, field strength in T, angles in degrees, b in s/mm²."""

    name: str
    contrast: Contrast
    role: Role
    plane: Plane
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    affine: list[list[float]]
    slice_position_mm: list[float]
    """(D,) position of each slice along the slice axis, from the first."""
    slice_valid: list[bool]
    """(D,) False where a slice is missing; its voxels are zero and must become no tokens."""
    frame_of_reference: int
    """Whole number within the study: equal numbers share patient coordinates."""
    foreground: tuple[tuple[int, int, int], tuple[int, int, int]]
    """Half-open voxel box (start, stop) of the body."""
    intensity_scale: float
    intensity_offset: float
    """value = stored * intensity_scale + intensity_offset, in the scanner's units."""
    intensity_low: float
    intensity_high: float
    """0.5 and 99.5 percentile of foreground voxels in the scanner's units: the range to normalise by."""
    agent: Agent = Agent.UNKNOWN
    repetition_time_ms: float | None = None
    echo_time_ms: float | None = None
    inversion_time_ms: float | None = None
    flip_angle_deg: float | None = None
    b_value: float | None = None
    field_strength_t: float | None = None
    vendor: str | None = None
    region: str = "unknown"
    """Body region word of this series; that of the study is the commonest."""
    fat_suppression: FatSuppression = FatSuppression.UNKNOWN
    acquisition: Acquisition = Acquisition.UNKNOWN
    dixon: DixonPart | None = None
    """None: no Dixon image, or its part is not known."""
    evidence: dict[str, Evidence] = field(default_factory=dict)
    """By name of the field, for those that were recognised."""
    statistics: Statistics | None = None
    quality: dict[str, float] = field(default_factory=dict)
    """Measured value of each quality check, by its name; absent where the series cannot tell."""
    flags: list[str] = field(default_factory=list)
    """Names of the checks that it failed."""
    bias_corrected: bool = False
    """N4 took the receive field out of the voxels."""
    voxel_hash: str = ""
    """Keyed hash of the voxels as decoded: equal for exact copies."""
    likeness: str = ""
    """Perceptual hash, hexadecimal: few bits differ between copies that were saved again."""
    labels: dict[str, LabelValue] = field(default_factory=dict)
    """Labels of this series; those of the study stand there."""
    mask_names: dict[str, str] = field(default_factory=dict)
    """Names of the values of the series' label map (member ``.seg.b2``); empty: it has none."""
    mask_resampled: bool = False
    """Whether the label map was drawn on another grid; False also where there is none."""
    defaced: str | None = None
    """'none', 'quickshear' or 'command'; None where the region holds no face."""


@dataclass(kw_only=True, slots=True)
class Report:
    """De-identified report sections; an absent section is ''."""

    findings: str = ""
    impression: str = ""
    technique: str = ""
    history: str = ""

    @property
    def diagnostic(self) -> str:
        """Findings and impression only: the text that may be matched with images (no technique, age or sex)."""
        return "\n".join(part for part in (self.findings, self.impression) if part)


@dataclass(kw_only=True, slots=True)
class StudyMeta:
    """The JSON member of a study."""

    key: str
    patient: str
    """Keyed pseudonym; one patient has one, everywhere."""
    region: str
    """Body region word: head, abdomen, spine, …, or unknown."""
    series: list[SeriesMeta]
    age: float | str | None = None
    """Years: whole from 2 to 89, decimal under 2, the category '90+' above 89; None where unknown."""
    sex: str | None = None
    """'f', 'm' or 'o'; None where unknown."""
    report: Report | None = None
    labels: dict[str, LabelValue] = field(default_factory=dict)
    site: str = ""
    """Keyed id of the institution; empty where the header names none."""
    format_version: int = FORMAT_VERSION


def to_json(meta: StudyMeta) -> bytes:
    """The JSON member of a study, checked; sorted keys, so equal studies give equal bytes."""
    check(meta)
    return json.dumps(asdict(meta), sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def from_json(payload: bytes | memoryview) -> StudyMeta:
    """Parse and check a JSON member.

    Raises:
        SampleError: the payload is not JSON, has an unknown or missing field, or breaks the contract.
    """
    try:
        raw = json.loads(bytes(payload))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as err:
        raise SampleError(f"study member is not JSON: {err}") from None
    if not isinstance(raw, dict):
        raise SampleError("study member is not a JSON object")
    try:
        series = [_series(entry) for entry in raw.pop("series", [])]
        report = raw.pop("report", None)
        meta = StudyMeta(series=series, report=Report(**report) if report is not None else None, **raw)
    except (TypeError, ValueError, KeyError, AttributeError) as err:
        raise SampleError(f"study member does not fit the contract: {err}") from None
    check(meta)
    return meta


def check(meta: StudyMeta) -> None:
    """Raise :class:`SampleError` where a study breaks the shard contract."""
    if meta.format_version != FORMAT_VERSION:
        raise SampleError(f"format version {meta.format_version}: this code reads version {FORMAT_VERSION}")
    if not STUDY_KEY.fullmatch(meta.key):
        raise SampleError(f"study key {meta.key!r} must match [a-z0-9_]+")
    if meta.site and not SERIES_NAME.fullmatch(meta.site):
        raise SampleError(f"study {meta.key}: its site is no keyed id")
    names = [s.name for s in meta.series]
    if len(set(names)) != len(names):
        raise SampleError(f"study {meta.key}: series names repeat")
    known_age = meta.age is None or (meta.age == "90+" if isinstance(meta.age, str) else 0 <= meta.age < 90)
    if not known_age:
        raise SampleError(f"study {meta.key}: age {meta.age!r} is neither 0–89 years nor '90+'")
    for s in meta.series:
        where = f"study {meta.key}, series {s.name}"
        if not SERIES_NAME.fullmatch(s.name):
            raise SampleError(f"{where}: name must match [a-z0-9_]+")
        depth = s.shape[0]
        if len(s.shape) != 3 or min(s.shape) < 1:
            raise SampleError(f"{where}: shape {s.shape} is not (D, H, W)")
        if len(s.slice_valid) != depth or len(s.slice_position_mm) != depth:
            raise SampleError(f"{where}: slice_valid and slice_position_mm need {depth} entries")
        numbers = [*s.spacing_mm, *(v for row in s.affine for v in row), s.intensity_scale, s.intensity_offset]
        if not all(math.isfinite(v) for v in [*numbers, s.intensity_low, s.intensity_high]):
            raise SampleError(f"{where}: geometry or intensity is not finite")
        if [len(row) for row in s.affine] != [4, 4, 4, 4] or min(s.spacing_mm) <= 0:
            raise SampleError(f"{where}: affine must be 4×4 and spacing positive")
        for name, evidence in s.evidence.items():
            if not 0 <= evidence.confidence <= 1 or not RULE_NAME.fullmatch(evidence.rule):
                raise SampleError(f"{where}: evidence of {name[:20]!r} is not a confidence and a rule's name")
        words = [*s.flags, *s.quality, s.voxel_hash or "0", s.likeness or "0"]
        if not all(SERIES_NAME.fullmatch(word) for word in words) or not all(map(math.isfinite, s.quality.values())):
            raise SampleError(f"{where}: its quality checks or hashes are none")
        values = s.mask_names.items() if isinstance(s.mask_names, dict) else (("", ""),)
        if not all(key.isdigit() and SERIES_NAME.fullmatch(str(word)) for key, word in values):
            raise SampleError(f"{where}: mask_names must map whole numbers to [a-z0-9_]+")
        start, stop = s.foreground
        if any(not 0 <= a < b <= n for a, b, n in zip(start, stop, s.shape, strict=True)):
            raise SampleError(f"{where}: foreground box {s.foreground} is outside the shape {s.shape}")


def _series(raw: dict[str, Any]) -> SeriesMeta:
    known = {f.name for f in fields(SeriesMeta)}
    if unknown := set(raw) - known:
        raise ValueError(f"unknown series field {sorted(unknown)[0]!r}")
    start, stop = raw["foreground"]
    return SeriesMeta(
        **{
            **raw,
            "contrast": Contrast(raw["contrast"]),
            "role": Role(raw["role"]),
            "plane": Plane(raw["plane"]),
            "agent": Agent(raw.get("agent", Agent.UNKNOWN)),
            "fat_suppression": FatSuppression(raw.get("fat_suppression", FatSuppression.UNKNOWN)),
            "acquisition": Acquisition(raw.get("acquisition", Acquisition.UNKNOWN)),
            "dixon": None if raw.get("dixon") is None else DixonPart(raw["dixon"]),
            "statistics": None if raw.get("statistics") is None else Statistics(**raw["statistics"]),
            "evidence": {name: Evidence(**entry) for name, entry in raw.get("evidence", {}).items()},
            "shape": tuple(raw["shape"]),
            "spacing_mm": tuple(raw["spacing_mm"]),
            "foreground": (tuple(start), tuple(stop)),
        }
    )
