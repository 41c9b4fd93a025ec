"""What became of every input: counts by outcome, and the quarantine with a reason for each item.

Items appear by keyed id only; the table from id to path is a restricted file beside the key.
"""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

NO_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
"""Error numbers of a disk, quota or file size limit that is full: the run stops, nothing is quarantined for it."""

MAX_PICTURES = 12
"""Thumbnails kept of each reason."""


class Reason(StrEnum):
    """Why something was quarantined; the code stands in ``quarantine.jsonl``."""

    UNREADABLE = "unreadable"
    """The file system refuses the file, or the link leads nowhere."""
    BAD_ARCHIVE = "bad_archive"
    """A zip archive, or a member of one, that cannot be unpacked."""
    ENCRYPTED = "encrypted"
    """A member of a zip archive that needs a password."""
    NOT_DICOM = "not_dicom"
    """Named like DICOM, but empty, cut short, or something else."""
    BAD_HEADER = "bad_header"
    """The header is cut, damaged, or nested beyond sense."""
    NO_UID = "no_uid"
    """Study, series or instance UID is missing."""
    TRUNCATED = "truncated"
    """Fewer pixel bytes than the header promises."""
    NO_PIXELS = "no_pixels"
    """An MR image without pixel data."""
    TRANSFER_SYNTAX = "transfer_syntax"
    """The pixel data contradict the transfer syntax, or it is unknown."""
    TOO_LARGE = "too_large"
    """Larger than any volume may be."""
    NO_GEOMETRY = "no_geometry"
    """PixelSpacing, ImageOrientationPatient or ImagePositionPatient is missing, not finite or impossible."""
    IRREGULAR_SLICES = "irregular_slices"
    """Slice positions fit no regular grid."""
    MISSING_SLICES = "missing_slices"
    """Slices are missing, and prepare.gaps or prepare.actions says quarantine."""
    DUPLICATE_CONFLICT = "duplicate_conflict"
    """Two slices at one place, or under one UID, hold different pixels."""
    BAD_RESCALE = "bad_rescale"
    """Rescale slope or intercept is zero, not finite or absurd."""
    CONVERTER_FAILED = "converter_failed"
    """dcm2niix gave nothing."""
    CONVERTER_TIMEOUT = "converter_timeout"
    """dcm2niix took longer than prepare.convert_timeout_s."""
    CONVERTER_MISMATCH = "converter_mismatch"
    """dcm2niix's volume contradicts the slices' own headers."""
    CONSTANT = "constant"
    """Every voxel is the same."""
    NOT_FINITE = "not_finite"
    """The volume holds NaN or infinite voxels."""
    NO_TISSUE = "no_tissue"
    """Nothing but air."""
    BURNED_IN = "burned_in"
    """Text seems to be written into the pixels: look at it, and set prepare.burned_in=keep if it is none."""
    CLIPPED = "clipped"
    LOW_CONTRAST = "low_contrast"
    BLANK_SLICES = "blank_slices"
    LOW_SNR = "low_snr"
    GHOSTING = "ghosting"
    BANDING = "banding"
    SLICE_OUTLIER = "slice_outlier"
    SLICE_SHIFT = "slice_shift"
    SHORT_COVERAGE = "short_coverage"
    CUT_OFF = "cut_off"
    UNEVEN_SLICES = "uneven_slices"
    SHEARED = "sheared"
    COARSE_VOXELS = "coarse_voxels"
    """Beyond prepare.limits.<this>, where prepare.actions says quarantine; docs/quality.md says what each means."""
    NO_BRAIN_MASK = "no_brain_mask"
    """prepare.deface=quickshear, and no brain mask that fits the series."""
    DEFACE_FAILED = "deface_failed"
    """prepare.deface_command failed, or gave another grid."""
    MASK_UNKNOWN_SERIES = "mask_unknown_series"
    """A segmentation of no series of the input."""
    MASK_AMBIGUOUS = "mask_ambiguous"
    """Several segmentations of one series, or one whose name fits several."""
    MASK_DAMAGED = "mask_damaged"
    """A segmentation that cannot be read, or holds other than whole numbers from 0 to 65535."""
    MASK_OTHER_FRAME = "mask_other_frame"
    """A segmentation on another grid in another frame of reference."""
    MASK_MISMATCH = "mask_mismatch"
    """A segmentation that changes its size or place when it is brought onto the grid of its series."""
    OUT_OF_MEMORY = "out_of_memory"
    """Needs more than prepare.memory_limit_gib."""
    WORKER_DIED = "worker_died"
    """The process that converted it was killed."""
    STUDY_TIMEOUT = "study_timeout"
    """Work on it took longer than prepare.study_timeout_s."""
    INTERNAL = "internal"
    """A fault of this code; the study is left out, the run goes on."""
    REPORT_EMPTY = "report_empty"
    REPORT_NOT_UTF8 = "report_not_utf8"
    REPORT_TOO_LONG = "report_too_long"
    REPORT_OTHER_PATIENT = "report_other_patient"
    """The report's patient is not the patient of its study."""
    REPORT_UNKNOWN_STUDY = "report_unknown_study"
    REPORT_AMBIGUOUS = "report_ambiguous"
    """Its accession number belongs to several studies."""
    REPORT_SUPERSEDED = "report_superseded"
    """Another version of the study's report counts (prepare.report_rule)."""
    REPORT_PRELIMINARY = "report_preliminary"
    """The study has preliminary reports alone, and prepare.report_rule says final_only."""
    REPORT_STATUS = "report_status"
    """Its status is a word that is not known."""
    REPORT_VOID = "report_void"
    """Its status says that it was withdrawn."""
    REPORT_DAMAGED = "report_damaged"
    """The file of the report cannot be read."""
    REPORT_RESIDUAL = "report_residual"
    """An identifier of the patient survived the scrubbing."""


class Rule(StrEnum):
    """Why a readable file is left out on purpose."""

    NOT_A_FILE = "not_a_file"
    NON_DICOM = "non_dicom"
    SIDECAR = "sidecar"
    """A file that describes scans of a tree of NIfTI files."""
    BIDS_OTHER = "bids_other"
    """Under ``derivatives``, ``sourcedata``, ``code`` or ``stimuli``."""
    DICOMDIR = "dicomdir"
    ARCHIVE = "archive"
    """A zip archive; its members are counted one by one."""
    OTHER_MODALITY = "other_modality"
    STRUCTURED_REPORT = "structured_report"
    SECONDARY_CAPTURE = "secondary_capture"
    COLOUR = "colour"
    LOCALIZER = "localizer"
    PROJECTION = "projection"
    DERIVED_SCREEN = "derived_screen"
    BURNED_IN = "burned_in"
    WITHDRAWN = "withdrawn"
    """Of a patient who withdrew consent (fm withdraw)."""
    DUPLICATE = "duplicate"
    """The same slice once more, pixel for pixel."""


class QuarantineError(Exception):
    """Raised inside a worker where an item must be quarantined; holds no text of the item."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason
        self.picture = ""
        """Thumbnail of what a quality check refused."""


@dataclass(kw_only=True, slots=True)
class Entry:
    """One line of ``quarantine.jsonl``."""

    item: str
    """Keyed id; its path or UID stands in the table beside the key."""
    kind: str
    """'file', 'series', 'volume', 'study', 'report', 'label' or 'mask'."""
    reason: Reason
    files: int = 0
    """Input files that this line accounts for."""
    study: str = ""
    """Study key, where it belongs to one."""

    def as_json(self) -> dict[str, Any]:
        """Plain values, for a JSON line."""
        return asdict(self)


@dataclass(kw_only=True, slots=True)
class Tally:
    """Counts of files by outcome; tallies add up."""

    used: int = 0
    excluded: Counter[str] = field(default_factory=Counter)
    entries: list[Entry] = field(default_factory=list)
    series: int = 0
    """Series (by SeriesInstanceUID) of which something entered the shards."""
    volumes: int = 0
    """3D volumes that were converted."""
    members: int = 0
    """Series members written."""
    contrasts: Counter[str] = field(default_factory=Counter)
    invalid_slices: int = 0
    masks: int = 0
    """Label maps written."""
    split_series: int = 0
    """Series that held several geometries or echoes and were split."""
    pictures: dict[str, list[str]] = field(default_factory=dict)
    """Thumbnails of some volumes that a quality check refused, by reason."""

    def show(self, reason: str, picture: str) -> None:
        """Keep a thumbnail, unless there is none or its reason has enough."""
        kept = self.pictures.setdefault(reason, []) if picture else []
        if len(kept) < MAX_PICTURES:
            kept.append(picture)

    def add(self, other: Tally) -> None:
        """Take in another tally."""
        self.used += other.used
        self.excluded.update(other.excluded)
        self.entries.extend(other.entries)
        self.series += other.series
        self.volumes += other.volumes
        self.members += other.members
        self.contrasts.update(other.contrasts)
        self.invalid_slices += other.invalid_slices
        self.masks += other.masks
        self.split_series += other.split_series
        for reason, pictures in other.pictures.items():
            for picture in pictures:
                self.show(reason, picture)

    @property
    def quarantined_files(self) -> int:
        """Files that quarantine lines account for."""
        return sum(entry.files for entry in self.entries)

    @property
    def files(self) -> int:
        """All files accounted for: used, excluded by rule, or quarantined."""
        return self.used + sum(self.excluded.values()) + self.quarantined_files

    def as_json(self) -> dict[str, Any]:
        """Plain values; :meth:`from_json` restores them."""
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        plain["entries"] = [entry.as_json() for entry in self.entries]
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in plain.items()}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Tally:
        """Restore :meth:`as_json`."""
        entries = [Entry(**{**entry, "reason": Reason(entry["reason"])}) for entry in raw["entries"]]
        counters = {name: Counter(raw[name]) for name in ("excluded", "contrasts")}
        return cls(**{**raw, **counters, "entries": entries})


@dataclass(kw_only=True, slots=True)
class Account:
    """What became of one study: a line of ``ledger.jsonl``, by keyed ids alone."""

    study: str
    patient: str
    source: str
    """Keyed hash of what it was made from: another one says that files, report or labels changed since."""
    tally: Tally
    members: bool
    """Whether anything of it is in the shards."""
    report: bool

    def as_json(self) -> dict[str, Any]:
        """Plain values; :meth:`from_json` restores them."""
        return {**{entry.name: getattr(self, entry.name) for entry in fields(self)}, "tally": self.tally.as_json()}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Account:
        """Restore :meth:`as_json`."""
        return cls(**{**raw, "tally": Tally.from_json(raw["tally"])})
