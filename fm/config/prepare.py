"""Preparation configuration: how a hospital's DICOM and reports become de-identified shards."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from enum import StrEnum

from fm.config.errors import ConfigError
from fm.config.quality import Action, LimitsConfig

PHANTOM_LABELS = (
    "lesion",
    "lesion_kind",
    "lesion_side",
    "lesion_site",
    "lesion_grade",
    "lesion_size_mm",
    "lesion_voxels",
    "lesion_cnr",
    "atrophy",
    "atrophy_grade",
    "sinus",
    "findings",
)

LOCAL, SLURM = "local", "slurm"
"""Values of `cluster` that are no address."""

REPORT_SECTIONS = ("findings", "impression", "technique", "history")
TABLE_COLUMNS = ("study_uid", "series_uid", "accession", "patient_id", "text", "status", "time")
"""Columns of tables of reports and labels that have a meaning of their own."""


class Volumes(StrEnum):
    """What is kept of a series that holds several volumes; named as YAML writes them."""

    all = "all"
    """Every volume, in order."""
    mean = "mean"
    """b = 0, the mean of each diffusion shell, and the mean of everything else."""


class Source(StrEnum):
    """What an input folder holds."""

    auto = "auto"
    """A BIDS tree where dataset_description.json stands in it, else DICOM."""
    dicom = "dicom"
    """DICOM, also in zip archives; NIfTI files among it are left out."""
    bids = "bids"
    """A BIDS tree: patients by sub-, studies by ses-, sidecars and participants.tsv read."""
    nifti_files = "nifti_files"
    """NIfTI files, each a study of its own patient."""
    nifti_folders = "nifti_folders"
    """NIfTI files, each folder a study of its own patient."""


class Gaps(StrEnum):
    """What happens to a series with slices missing."""

    keep = "keep"
    """Kept on the true grid; the missing slices are zero and marked invalid."""
    quarantine = "quarantine"


class BurnedIn(StrEnum):
    """What happens to a series whose pixels seem to hold text."""

    quarantine = "quarantine"
    keep = "keep"
    """Nothing is looked for in the pixels; series that call themselves annotated are left out all the same."""


class ReportSource(StrEnum):
    """What ``reports`` is."""

    auto = "auto"
    """A file is a table; a folder is text files where it holds any, else DICOM structured reports."""
    table = "table"
    """CSV, JSONL or Parquet, a row per report."""
    text = "text"
    """A folder with one .txt file per report, named by accession number or StudyInstanceUID."""
    sr = "sr"
    """A folder that holds DICOM structured reports, among whatever else; it may be `input` itself."""


class ReportRule(StrEnum):
    """Which of several reports of a study counts."""

    final = "final"
    """The latest final or corrected one, its later addenda behind it; a preliminary one only where there is no final
    one. Reports under several accession numbers of the study are joined."""
    final_only = "final_only"
    """As `final`, but a study with preliminary reports alone goes without text."""
    last = "last"
    """The last row, whatever its status."""


class Labeller(StrEnum):
    """What finds structured findings in reports."""

    none = "none"
    rules = "rules"
    """Words, negation and uncertainty (prepare.findings_file)."""
    model = "model"
    """A local causal language model (prepare.labeller_model)."""


class Deface(StrEnum):
    """What is done about faces in series of the head, and of regions that no header names."""

    unset = "unset"
    """Not decided: an input that holds such series is refused."""
    none = "none"
    """Faces stay: for images without faces, or for shards that stay where the images are."""
    quickshear = "quickshear"
    """All in front of and below the brain is removed; needs a brain mask, without one the series is quarantined."""
    command = "command"
    """A program of yours removes them (prepare.deface_command)."""


class UnknownReports(StrEnum):
    """What a report for a study that is not in the input means."""

    refuse = "refuse"
    """The dataset is finished without it, then the command fails and says so."""
    allow = "allow"
    """Counted and quarantined."""


class Duplicates(StrEnum):
    """What happens where two studies hold the same volume."""

    report = "report"
    """Both stay, their patients in one split; the pairs are in ``duplicates.parquet`` and counted."""
    drop = "drop"
    """One study of each pair is in no split: it is neither trained on nor evaluated."""


@dataclass(kw_only=True, slots=True)
class PrepareConfig:
    """How DICOM becomes shards."""

    key_file: str = ""
    """File of the secret key (made if absent, mode 0600); empty: <out>.key/secret beside the output. Whoever holds it
    can link pseudonyms to patients."""
    site: str = ""
    """Namespace of PatientIDs that name no issuer: the same number at two sites is two patients."""
    link_file: str = ""
    """CSV of issuer, patient_id, person that joins a person's numbers, across hospitals too; issuer as in the header,
    or `site` where it names none. Keep it as restricted as the key."""
    source: Source = Source.auto
    """What the input holds."""
    volumes: Volumes = Volumes.mean
    """What is kept of a series with several volumes (diffusion, BOLD)."""
    gaps: Gaps = Gaps.keep
    """What happens to a series with slices missing."""
    burned_in: BurnedIn = BurnedIn.quarantine
    """What happens to a series whose pixels seem to hold text; most scanners do not say it in the header."""
    labels: list[str] = field(default_factory=lambda: list(PHANTOM_LABELS))
    """Columns of the labels file that may enter the shards; numbers or short words."""
    columns: dict[str, str] = field(default_factory=dict)
    """What tables of reports and labels call study_uid, series_uid, accession, patient_id, text, status and time, where
    they call them otherwise: prepare.columns={text: Befund}."""
    masks: str = ""
    """Folder of segmentations: NIfTI named by SeriesInstanceUID (for NIfTI input: as the image), or DICOM SEG."""
    mask_names: dict[str, str] = field(default_factory=dict)
    """Names of a mask's values, or of the segments of a DICOM SEG by their label: prepare.mask_names={1: lesion}. A
    segment's own label is never copied."""
    test_fraction: float = 0.2
    """Share of patients held out in the split `test`; the others are `train`."""
    split_seed: int = 0
    """Another number draws another split under the same key."""
    stratify: list[str] = field(default_factory=list)
    """Labels, or sex, region, site, vendor: the share is held out within each combination of their values, by the
    patient's first study."""
    external_sites: list[str] = field(default_factory=list)
    """Institutions as InstitutionName has them (the issuer where it is absent): their patients are the split
    `external`, whole."""
    external_after: str = ""
    """Day as YYYYMMDD: patients with a study on it or later are the split `later`, with all their studies; the date
    stays here."""
    duplicates: Duplicates = Duplicates.report
    """What happens where two studies hold the same volume."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    """Limits of the checks of image quality."""
    actions: dict[str, Action] = field(default_factory=dict)
    """What happens to a series beyond a limit, by the check's name; flag where none is given."""
    n4: bool = False
    """Estimate the receive field inside the body and divide it out (N4); needs SimpleITK, and seconds a series."""
    n4_shrink: int = 4
    """N4 works on every n-th voxel in the plane."""
    unknown_reports: UnknownReports = UnknownReports.refuse
    """What a report for a study that is not in the input means."""
    report_sections: list[str] = field(default_factory=lambda: list(REPORT_SECTIONS))
    """Sections of a report that enter the shards, among findings, impression, technique and history."""
    report_max_chars: int = 20_000
    """A longer report is quarantined; its study stays, without text."""
    report_source: ReportSource = ReportSource.auto
    """What `reports` is."""
    report_rule: ReportRule = ReportRule.final
    """Which of several reports of a study counts."""
    ner_model: str = ""
    """Folder of a local token classification model that searches reports for names after the rules; empty: rules
    alone."""
    ner_labels: list[str] = field(default_factory=list)
    """Entities of that model that are removed (PER, LOC); empty: all of them."""
    labeller: Labeller = Labeller.none
    """What finds structured findings in reports; they become labels named report_FINDING, 1 or 0."""
    labeller_model: str = ""
    """Folder of the local causal language model of labeller=model."""
    findings_file: str = ""
    """YAML of findings and their words; empty: brain, spine, abdomen and knee as data_prep/reports/findings.yaml."""
    deface: Deface = Deface.unset
    """What is done about faces."""
    deface_command: str = ""
    """Program of deface=command, with {input} and {output} for NIfTI files on one grid."""
    brain_masks: str = ""
    """Folder of brain masks for deface=quickshear: NIfTI named by SeriesInstanceUID, or as the image."""
    brain_mask_command: str = ""
    """Program that makes a brain mask where no file does: "hd-bet -i {input} -o {output}"."""
    face_margin_mm: float = 10.0
    """Distance that quickshear keeps from the brain."""
    quantisation_bits: int = 12
    """Bits a voxel, 8 to 16; whole numbers that fit are stored exactly."""
    shard_mib: int = 128
    """A shard is closed once it holds this much."""
    convert_timeout_s: float = 120.0
    """Longest conversion of one series."""
    memory_limit_gib: float = 16.0
    """Address space of one worker process; a file that needs more is quarantined."""
    study_timeout_s: float = 1800.0
    """Longest work on one study, which is quarantined beyond it."""
    cluster: str = LOCAL
    """Where the workers run: `local` (Dask's on this machine; a lone one without Dask), `slurm` (jobs of one process,
    through dask-jobqueue), or the address of a Dask scheduler, tcp:// or tls://, whose workers see the same files."""
    studies_in_flight: int = 4
    """Studies under way at once for each worker, the finished ones that wait for their turn included: bounds memory."""
    worker_retries: int = 1
    """How often a study whose worker was killed is tried again, alone, before it is quarantined."""
    slurm_partition: str = ""
    """Partition of Slurm workers; empty: Slurm's default."""
    slurm_account: str = ""
    """Account of Slurm workers; empty: Slurm's default."""
    slurm_walltime: str = "24:00:00"
    """Time limit of each Slurm worker."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not 0.0 <= self.test_fraction < 1.0:
            raise ConfigError(f"prepare.test_fraction={self.test_fraction}: a share from 0 to below 1 is needed")
        if not 8 <= self.quantisation_bits <= 16:
            raise ConfigError(f"prepare.quantisation_bits={self.quantisation_bits}: choose 8 to 16")
        for name in self.mask_names.values():
            if not re.fullmatch(r"[a-z0-9_]{1,40}", name):
                raise ConfigError(f"prepare.mask_names: {name} must be letters a-z, digits and _, at most 40")
        self.mask_names = {key.strip().lower(): name for key, name in self.mask_names.items()}
        if not self.report_sections or set(self.report_sections) - set(REPORT_SECTIONS):
            raise ConfigError(
                f"prepare.report_sections={self.report_sections}: choose among {', '.join(REPORT_SECTIONS)}"
            )
        known = {check.name for check in fields(LimitsConfig)}
        if unknown := sorted(set(self.actions) - known):
            raise ConfigError(f"prepare.actions.{unknown[0]}: no such check; choose among {', '.join(sorted(known))}")
        if self.external_after and not (len(self.external_after) == 8 and self.external_after.isdigit()):
            raise ConfigError(f"prepare.external_after={self.external_after}: give a day as YYYYMMDD")
        if unknown := sorted(set(self.columns) - set(TABLE_COLUMNS)):
            raise ConfigError(f"prepare.columns: {unknown[0]} is none of {', '.join(TABLE_COLUMNS)}")
        self._check_programs()
        for name, value in (
            ("n4_shrink", self.n4_shrink),
            ("report_max_chars", self.report_max_chars),
            ("shard_mib", self.shard_mib),
            ("convert_timeout_s", self.convert_timeout_s),
            ("memory_limit_gib", self.memory_limit_gib),
            ("study_timeout_s", self.study_timeout_s),
            ("studies_in_flight", self.studies_in_flight),
        ):
            if value <= 0:
                raise ConfigError(f"prepare.{name}={value}: a number above 0 is needed")
        if self.worker_retries < 0:
            raise ConfigError(f"prepare.worker_retries={self.worker_retries}: zero or more is needed")
        if self.cluster not in (LOCAL, SLURM) and not self.cluster.startswith(("tcp://", "tls://")):
            raise ConfigError(
                f"prepare.cluster={self.cluster}: choose {LOCAL}, {SLURM}, or a scheduler's address like tcp://host:8786"
            )

    def _check_programs(self) -> None:
        """Refuse steps without their program, model or mask."""
        for name, kind, needs, given in (
            ("labeller", self.labeller == Labeller.model, "labeller_model=DIR", self.labeller_model),
            ("deface", self.deface == Deface.command, "deface_command=PROGRAM", self.deface_command),
            (
                "deface",
                self.deface == Deface.quickshear,
                "brain_masks=DIR or prepare.brain_mask_command=PROGRAM",
                self.brain_masks or self.brain_mask_command,
            ),
        ):
            if kind and not given:
                raise ConfigError(f"prepare.{name}={getattr(self, name)}: needs prepare.{needs}")
        for name in ("deface_command", "brain_mask_command"):
            command = getattr(self, name)
            if command and not all(place in command for place in ("{input}", "{output}")):
                raise ConfigError(f"prepare.{name}={command}: say where its files go with {{input}} and {{output}}")
        if self.face_margin_mm < 0:
            raise ConfigError(f"prepare.face_margin_mm={self.face_margin_mm}: must not be negative")
