"""One DICOM file's header as plain values, read once; pixels are not touched.

Everything here may identify a patient and stays in memory: what may leave is chosen field by field in
:mod:`data_prep.deid`.
"""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset

from data_prep.exclusion import ENHANCED_MR, LEGACY_ENHANCED_MR, left_out
from data_prep.ledger import QuarantineError, Reason, Rule
from data_prep.pixels import check_deflated, check_pixels
from data_prep.tags import (
    DATE_TAGS,
    NUMBER_TAGS,
    OTHER_TAGS,
    PEOPLE_TAGS,
    PLACE_TAGS,
    PRIVATE_B_VALUES,
    PRIVATE_TECHNIQUES,
    SCAN_TAGS,
)
from data_prep.values import number, numbers, words_of
from fm.config.errors import UserError

MAX_SLICE_VOXELS = 2**29
"""Largest image of one file, all frames together."""
_DICOMDIR = "1.2.840.10008.1.3.10"
_SUFFIXES = {".dcm", ".ima", ".dic", ".dicom", ".mr"}

_SHARED_NUMBERS = frozenset(
    tag_for_keyword(name) for name in SCAN_TAGS + PEOPLE_TAGS + NUMBER_TAGS + PLACE_TAGS + DATE_TAGS + OTHER_TAGS
) | {*PRIVATE_B_VALUES, *PRIVATE_TECHNIQUES.values()}
_CACHE_SIZE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Scan:
    """How the image was acquired; equal for all slices of a plain series. Times in ms, angles in degrees."""

    vendor: str
    field_strength_t: float | None
    scanning_sequence: tuple[str, ...]
    sequence_variant: tuple[str, ...]
    scan_options: tuple[str, ...]
    sequence_name: str
    image_type: tuple[str, ...]
    repetition_time_ms: float | None
    echo_time_ms: float | None
    inversion_time_ms: float | None
    flip_angle_deg: float | None
    echo_train_length: float | None
    b_value: float | None
    agent: str
    """Contrast/Bolus Agent as typed."""
    agent_volume_ml: float | None
    description: str
    protocol: str
    body_part: str
    slice_step_mm: float | None
    frame_of_reference: str
    series_number: int
    technique: str = ""
    """Pulse sequence as the scanner itself names it (GE, Philips), where `sequence_name` is not it."""
    acquisition_type: str = ""
    """'2D' or '3D' as tagged."""
    acquisition_contrast: str = ""
    """Acquisition Contrast of enhanced files."""
    angio: bool = False
    """Angio Flag is set."""
    echo_number: int | None = None
    study_description: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Who the study is about and who wrote it: what reports are scrubbed of. Never leaves memory."""

    patient_id: str
    issuer: str
    accession: str
    people: tuple[str, ...]
    numbers: tuple[str, ...]
    places: tuple[str, ...]
    dates: tuple[str, ...]
    """DICOM dates, YYYYMMDD."""
    study_date: str
    birth_date: str
    age: str
    sex: str
    institution: str = ""


@dataclass(kw_only=True, slots=True)
class Header:
    """One file."""

    path: str
    study_uid: str
    series_uid: str
    instance_uid: str
    enhanced: bool
    tiled: bool
    """Siemens mosaic or UIH grid: a volume in one picture."""
    nifti: bool = False
    """No DICOM, but a whole NIfTI file."""
    instance: int
    rows: int
    columns: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    scan: Scan
    identity: Identity


@dataclass(kw_only=True, slots=True)
class _Shared:
    """What the slices of a series have in common."""

    study_uid: str
    series_uid: str
    enhanced: bool
    tiled: bool
    rows: int
    columns: int
    pixel_bytes: int
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    scan: Scan
    identity: Identity


class HeaderReader:
    """Reads headers; remembers the last few series, since converting pydicom's values is nine tenths of the work."""

    def __init__(self) -> None:
        self._cache: dict[tuple[Any, ...], _Shared | Rule] = {}

    def read(self, path: str, stream: BinaryIO | None = None) -> Header | Rule:
        """Read and check one file's header.

        Args:
            path: of the file.
            stream: the file, where it is open already; it is closed.

        Returns:
            The header, or the rule by which the file is left out.

        Raises:
            QuarantineError: the file is damaged, or lacks what every image must have.
        """
        try:
            with stream or open(path, "rb") as file:
                start = file.read(256)
                if not _looks_dicom(start):
                    if Path(path).suffix.lower() in _SUFFIXES:
                        raise QuarantineError(Reason.NOT_DICOM)
                    return Rule.NON_DICOM
                file.seek(0)
                check_deflated(file)
                return self._parse(file, path)
        except OSError:
            raise QuarantineError(Reason.UNREADABLE) from None
        except zlib.error:
            raise QuarantineError(Reason.BAD_HEADER) from None

    def _parse(self, file: BinaryIO, path: str) -> Header | Rule:
        try:
            # pydicom's own choice of elements is a search through a list: reading all is twice as fast
            ds = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            if str(ds.file_meta.get("MediaStorageSOPClassUID", "")) == _DICOMDIR:
                return Rule.DICOMDIR
            shared = self._shared(ds)
            if isinstance(shared, Rule):
                return shared
            instance_uid = str(ds.get("SOPInstanceUID", "") or "").strip()
            if not instance_uid:
                raise QuarantineError(Reason.NO_UID)
            check_pixels(file, ds, shared.pixel_bytes)
            return Header(
                path=path,
                study_uid=shared.study_uid,
                series_uid=shared.series_uid,
                instance_uid=instance_uid,
                enhanced=shared.enhanced,
                tiled=shared.tiled,
                instance=int(number(ds.get("InstanceNumber")) or 0),
                rows=shared.rows,
                columns=shared.columns,
                position=numbers(ds.get("ImagePositionPatient"), 3),
                orientation=shared.orientation,
                pixel_spacing=shared.pixel_spacing,
                scan=shared.scan,
                identity=shared.identity,
            )
        except (QuarantineError, UserError, OSError):
            raise
        except MemoryError:
            raise QuarantineError(Reason.OUT_OF_MEMORY) from None
        except Exception:  # hostile headers fail in every way there is; none of it may stop the run
            raise QuarantineError(Reason.BAD_HEADER) from None

    def _shared(self, ds: Dataset) -> _Shared | Rule:
        raw = tuple((tag, _raw(element)) for tag, element in ds.items() if tag in _SHARED_NUMBERS)
        found = self._cache.get(raw)
        if found is None:
            found = left_out(ds) or _shared(ds)
            if len(self._cache) >= _CACHE_SIZE:
                self._cache.pop(next(iter(self._cache)))
            self._cache[raw] = found
        return found


def _raw(element: DataElement | RawDataElement) -> Any:
    """An element as it stands in the file, in a form that compares; sequences never match one another."""
    if isinstance(element, RawDataElement):
        return element.value if isinstance(element.value, bytes) else None
    return object() if element.VR == "SQ" else str(element.value)


def silence_pydicom() -> None:
    """Stop pydicom and highdicom from writing header values into warnings and logs: they may name a patient."""
    for package in ("pydicom", "highdicom"):
        warnings.filterwarnings("ignore", module=package)
        logging.getLogger(package).setLevel(logging.CRITICAL + 1)


def _looks_dicom(start: bytes) -> bool:
    """Part 10 magic, or (old files) a data set that starts with a little-endian group 2 or 8 element."""
    if start[128:132] == b"DICM":
        return True
    group, element = struct.unpack_from("<HH", start.ljust(4, b"\0"))
    return len(start) >= 132 and group in (2, 8) and element in (0, 1, 5, 8, 0x10, 0x12, 0x16, 0x18)


def _shared(ds: Dataset) -> _Shared:
    uids = [str(ds.get(name, "") or "").strip() for name in ("StudyInstanceUID", "SeriesInstanceUID")]
    if not all(uids):
        raise QuarantineError(Reason.NO_UID)
    rows, columns = int(ds.get("Rows", 0) or 0), int(ds.get("Columns", 0) or 0)
    voxels = rows * columns * int(ds.get("NumberOfFrames", 1) or 1)
    if rows < 1 or columns < 1 or voxels < 1:
        raise QuarantineError(Reason.NO_PIXELS)
    if voxels > MAX_SLICE_VOXELS:
        raise QuarantineError(Reason.TOO_LARGE)
    for name in ("RescaleSlope", "RescaleIntercept"):
        value = number(ds.get(name))
        if ds.get(name) is not None and (value is None or (name == "RescaleSlope" and value == 0) or abs(value) > 1e12):
            raise QuarantineError(Reason.BAD_RESCALE)
    scan = scan_of(ds)
    return _Shared(
        study_uid=uids[0],
        series_uid=uids[1],
        enhanced=str(ds.get("SOPClassUID", "")) in (ENHANCED_MR, LEGACY_ENHANCED_MR),
        tiled=_tiled(ds, scan, rows, columns),
        rows=rows,
        columns=columns,
        pixel_bytes=voxels * int(ds.get("BitsAllocated", 16)) // 8,
        orientation=numbers(ds.get("ImageOrientationPatient"), 6),
        pixel_spacing=numbers(ds.get("PixelSpacing"), 2),
        scan=scan,
        identity=_identity(ds),
    )


def _tiled(ds: Dataset, scan: Scan, rows: int, columns: int) -> bool:
    """Whether a picture is a mosaic or grid of slices: it says so, or it is three or more times its own matrix.

    Image type gets lost where software rewrites headers; no scanner interpolates echo-planar images threefold.
    """
    if {word.upper() for word in scan.image_type} & {"MOSAIC", "VFRAME"}:
        return True
    matrix = max((int(size) for size in words_of(ds.get("AcquisitionMatrix")) if size.isdigit()), default=0)
    planar = "EP" in {word.upper() for word in scan.scanning_sequence}
    return planar and matrix > 0 and min(rows, columns) >= 3 * matrix


def scan_of(ds: Dataset) -> Scan:
    """How an image was acquired, from its header."""
    inner = _functional_groups(ds)
    echo = number(ds.get("EchoNumbers"))
    return Scan(
        vendor=str(ds.get("Manufacturer", "") or ""),
        field_strength_t=number(ds.get("MagneticFieldStrength")),
        scanning_sequence=words_of(ds.get("ScanningSequence")),
        sequence_variant=words_of(ds.get("SequenceVariant")),
        scan_options=words_of(ds.get("ScanOptions")),
        sequence_name=str(ds.get("SequenceName", "") or ds.get("PulseSequenceName", "") or ""),
        image_type=words_of(ds.get("ImageType")),
        repetition_time_ms=number(inner.get("RepetitionTime", ds.get("RepetitionTime"))),
        echo_time_ms=number(inner.get("EffectiveEchoTime", ds.get("EchoTime"))),
        inversion_time_ms=number(inner.get("InversionTimes", ds.get("InversionTime"))),
        flip_angle_deg=number(inner.get("FlipAngle", ds.get("FlipAngle"))),
        echo_train_length=number(inner.get("EchoTrainLength", ds.get("EchoTrainLength"))),
        b_value=_b_value(ds),
        agent=str(ds.get("ContrastBolusAgent", "") or "").strip(),
        agent_volume_ml=number(ds.get("ContrastBolusVolume")),
        description=str(ds.get("SeriesDescription", "") or ""),
        protocol=str(ds.get("ProtocolName", "") or ""),
        body_part=str(ds.get("BodyPartExamined", "") or ""),
        slice_step_mm=number(ds.get("SpacingBetweenSlices")) or number(ds.get("SliceThickness")),
        frame_of_reference=str(ds.get("FrameOfReferenceUID", "") or ""),
        series_number=int(number(ds.get("SeriesNumber")) or 0),
        technique=_technique(ds),
        acquisition_type=str(ds.get("MRAcquisitionType", "") or ""),
        acquisition_contrast=str(ds.get("AcquisitionContrast", "") or ""),
        angio=str(ds.get("AngioFlag", "") or "").strip().upper() == "Y",
        echo_number=None if echo is None else int(echo),
        study_description=str(ds.get("StudyDescription", "") or ""),
    )


def _functional_groups(ds: Dataset) -> dict[str, Any]:
    """Times and angles of an enhanced file, which keeps them in its functional groups (PS3.3 C.8.13.5)."""
    found: dict[str, Any] = {}
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in list(ds.get(name) or ())[:1]:
            for macro in ("MRTimingAndRelatedParametersSequence", "MREchoSequence", "MRModifierSequence"):
                for item in list(group.get(macro) or ())[:1]:
                    found = {element.keyword: element.value for element in item} | found
    return found


def _technique(ds: Dataset) -> str:
    """Name of the pulse sequence in the vendor's own element; the element means this under that vendor only."""
    for vendor, tag in PRIVATE_TECHNIQUES.items():
        if tag in ds and vendor in str(ds.get("Manufacturer", "") or "").lower():
            value = ds[tag].value
            return value.decode("ascii", "replace").strip() if isinstance(value, bytes) else str(value or "").strip()
    return ""


def _b_value(ds: Dataset) -> float | None:
    """Diffusion weighting in s/mm²: the standard element, else Siemens' or United Imaging's private one."""
    if "DiffusionBValue" in ds:
        return number(ds.DiffusionBValue)
    for tag in PRIVATE_B_VALUES:
        if tag in ds:
            value = ds[tag].value
            return number(value.decode("ascii", "replace") if isinstance(value, bytes) else value)
    return None


def _identity(ds: Dataset) -> Identity:
    def texts(names: Iterable[str]) -> tuple[str, ...]:
        found = (word for name in names for word in words_of(ds.get(name)))
        return tuple(dict.fromkeys(word for word in found if word))

    return Identity(
        patient_id=str(ds.get("PatientID", "") or "").strip(),
        issuer=str(ds.get("IssuerOfPatientID", "") or "").strip(),
        accession=str(ds.get("AccessionNumber", "") or "").strip(),
        people=texts(PEOPLE_TAGS),
        numbers=texts(NUMBER_TAGS),
        places=texts(PLACE_TAGS),
        dates=texts(DATE_TAGS),
        study_date=str(ds.get("StudyDate", "") or ""),
        birth_date=str(ds.get("PatientBirthDate", "") or ""),
        age=str(ds.get("PatientAge", "") or ""),
        sex=str(ds.get("PatientSex", "") or ""),
        institution=str(ds.get("InstitutionName", "") or "").strip(),
    )
