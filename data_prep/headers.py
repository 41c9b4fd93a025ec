"""One DICOM file's header as plain values, read once; pixels are not touched.

Everything here may identify a patient and stays in memory: what may leave is chosen field by field in
:mod:`data_prep.deid`.
"""

from __future__ import annotations

import logging
import math
import struct
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset

from data_prep.ledger import QuarantineError, Reason, Rule
from data_prep.pixels import check_pixels
from data_prep.tags import (
    DATE_TAGS,
    NUMBER_TAGS,
    OTHER_TAGS,
    PEOPLE_TAGS,
    PLACE_TAGS,
    PRIVATE_B_VALUES,
    SCAN_TAGS,
)

MAX_SLICE_VOXELS = 2**29
"""Largest image of one file, all frames together."""
MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
LEGACY_ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.4"
_IMAGE_CLASSES = {MR_IMAGE, ENHANCED_MR, LEGACY_ENHANCED_MR}
_DICOMDIR = "1.2.840.10008.1.3.10"
_SUFFIXES = {".dcm", ".ima", ".dic", ".dicom", ".mr"}

_CAPTURED = ("DV", "DI", "DF", "WSD", "SD", "SI", "DRW")
"""Conversion types of secondary captures: scans of film and paper, screens of workstations, drawings, video."""
_SHARED_NUMBERS = frozenset(
    tag_for_keyword(name) for name in SCAN_TAGS + PEOPLE_TAGS + NUMBER_TAGS + PLACE_TAGS + DATE_TAGS + OTHER_TAGS
) | set(PRIVATE_B_VALUES)
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

    def read(self, path: str) -> Header | Rule:
        """Read and check one file's header.

        Returns:
            The header, or the rule by which the file is left out.

        Raises:
            QuarantineError: the file is damaged, or lacks what every image must have.
        """
        try:
            with open(path, "rb") as file:
                start = file.read(256)
                if not _looks_dicom(start):
                    if Path(path).suffix.lower() in _SUFFIXES:
                        raise QuarantineError(Reason.NOT_DICOM)
                    return Rule.NON_DICOM
                file.seek(0)
                return self._parse(file, path)
        except OSError:
            raise QuarantineError(Reason.UNREADABLE) from None

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
            check_pixels(file, ds, path, shared.pixel_bytes)
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
                position=_numbers(ds.get("ImagePositionPatient"), 3),
                orientation=shared.orientation,
                pixel_spacing=shared.pixel_spacing,
                scan=shared.scan,
                identity=shared.identity,
            )
        except (QuarantineError, OSError):
            raise
        except MemoryError:
            raise QuarantineError(Reason.OUT_OF_MEMORY) from None
        except Exception:  # hostile headers fail in every way there is; none of it may stop the run
            raise QuarantineError(Reason.BAD_HEADER) from None

    def _shared(self, ds: Dataset) -> _Shared | Rule:
        raw = tuple((tag, _raw(element)) for tag, element in ds.items() if tag in _SHARED_NUMBERS)
        found = self._cache.get(raw)
        if found is None:
            found = _left_out(ds) or _shared(ds)
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
    """Stop pydicom from writing header values into warnings and logs: they may name a patient."""
    warnings.filterwarnings("ignore", module="pydicom")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)


def _looks_dicom(start: bytes) -> bool:
    """Part 10 magic, or (old files) a data set that starts with a little-endian group 2 or 8 element."""
    if start[128:132] == b"DICM":
        return True
    group, element = struct.unpack_from("<HH", start.ljust(4, b"\0"))
    return len(start) >= 132 and group in (2, 8) and element in (0, 1, 5, 8, 0x10, 0x12, 0x16, 0x18)


def _left_out(ds: Dataset) -> Rule | None:
    """The exclusion rules that a header decides."""
    sop_class = str(ds.get("SOPClassUID", ""))
    modality = str(ds.get("Modality", ""))
    kinds = {word.upper() for word in words_of(ds.get("ImageType"))}
    text = f"{ds.get('SeriesDescription', '')} {ds.get('ProtocolName', '')}".lower()
    if modality == "SR" or sop_class.startswith("1.2.840.10008.5.1.4.1.1.88."):
        return Rule.STRUCTURED_REPORT
    captured = str(ds.get("ConversionType", "")).upper() in _CAPTURED
    if sop_class.startswith("1.2.840.10008.5.1.4.1.1.7") or captured:
        return Rule.SECONDARY_CAPTURE
    if not sop_class and not modality:
        raise QuarantineError(Reason.BAD_HEADER)
    if modality not in ("MR", "") or (sop_class not in _IMAGE_CLASSES and sop_class):
        return Rule.OTHER_MODALITY
    if ds.get("SamplesPerPixel", 1) != 1:
        return Rule.COLOUR
    if str(ds.get("BurnedInAnnotation", "")).upper() == "YES":
        return Rule.BURNED_IN
    if kinds & {"LOCALIZER", "SCOUT"} or any(word in text for word in ("localizer", "localiser", "scout", "survey")):
        return Rule.LOCALIZER
    if kinds & {"PROJECTION IMAGE", "MIP", "MNIP", "MINIP"}:
        return Rule.PROJECTION
    if kinds & {"SCREEN SAVE", "SCREENSAVE", "CSA REPORT", "CSAPARALLEL", "REPORT"}:
        return Rule.DERIVED_SCREEN
    return None


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
    scan = _scan(ds)
    return _Shared(
        study_uid=uids[0],
        series_uid=uids[1],
        enhanced=str(ds.get("SOPClassUID", "")) in (ENHANCED_MR, LEGACY_ENHANCED_MR),
        tiled=bool({word.upper() for word in scan.image_type} & {"MOSAIC", "VFRAME"}),
        rows=rows,
        columns=columns,
        pixel_bytes=voxels * int(ds.get("BitsAllocated", 16)) // 8,
        orientation=_numbers(ds.get("ImageOrientationPatient"), 6),
        pixel_spacing=_numbers(ds.get("PixelSpacing"), 2),
        scan=scan,
        identity=_identity(ds),
    )


def _scan(ds: Dataset) -> Scan:
    return Scan(
        vendor=str(ds.get("Manufacturer", "") or ""),
        field_strength_t=number(ds.get("MagneticFieldStrength")),
        scanning_sequence=words_of(ds.get("ScanningSequence")),
        sequence_variant=words_of(ds.get("SequenceVariant")),
        scan_options=words_of(ds.get("ScanOptions")),
        sequence_name=str(ds.get("SequenceName", "") or ds.get("PulseSequenceName", "") or ""),
        image_type=words_of(ds.get("ImageType")),
        repetition_time_ms=number(ds.get("RepetitionTime")),
        echo_time_ms=number(ds.get("EchoTime")),
        inversion_time_ms=number(ds.get("InversionTime")),
        flip_angle_deg=number(ds.get("FlipAngle")),
        echo_train_length=number(ds.get("EchoTrainLength")),
        b_value=_b_value(ds),
        agent=str(ds.get("ContrastBolusAgent", "") or "").strip(),
        agent_volume_ml=number(ds.get("ContrastBolusVolume")),
        description=str(ds.get("SeriesDescription", "") or ""),
        protocol=str(ds.get("ProtocolName", "") or ""),
        body_part=str(ds.get("BodyPartExamined", "") or ""),
        slice_step_mm=number(ds.get("SpacingBetweenSlices")) or number(ds.get("SliceThickness")),
        frame_of_reference=str(ds.get("FrameOfReferenceUID", "") or ""),
        series_number=int(number(ds.get("SeriesNumber")) or 0),
    )


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
    )


def words_of(value: Any) -> tuple[str, ...]:
    """A DICOM value of any multiplicity as strings."""
    if value is None or value == "":
        return ()
    if isinstance(value, str) or not isinstance(value, Iterable) or hasattr(value, "family_name"):
        return (str(value).strip(),)
    return tuple(str(part).strip() for part in value)


def number(value: Any) -> float | None:
    """A DICOM number, the first of several; None where it is absent, unparsable or not finite."""
    if value is None or value == "":
        return None
    if isinstance(value, Iterable) and not isinstance(value, str):
        value = next(iter(value), None)
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    if value is None or isinstance(value, str) or not isinstance(value, Iterable):
        return None
    found = [number(part) for part in value]
    if len(found) != count or any(part is None for part in found):
        return None
    return tuple(part for part in found if part is not None)
