"""The jobs that make, widen and check datasets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fm.config.data import DataConfig
from fm.config.errors import ConfigError, at_least
from fm.config.inspect import InspectConfig
from fm.config.model import ModelConfig
from fm.config.phantom import PhantomConfig
from fm.config.prepare import PrepareConfig


@dataclass(kw_only=True, slots=True)
class PhantomJob:
    """Simulate MRI studies as DICOM with reports, labels, masks and a picture sheet; equal seeds give equal bytes."""

    plain_form: ClassVar[str] = "fm phantom out=DIR studies=400 seed=0"

    out: str = "???"
    """Folder to write; run the command again to go on where it stopped."""
    studies: int = 400
    seed: int = 0
    """Random seed; equal seeds give equal files."""
    workers: int = 0
    """Processes; 0: one per CPU core."""
    phantom: PhantomConfig

    def __post_init__(self) -> None:
        """Refuse counts below their range."""
        at_least("studies", self.studies, 1)
        at_least("workers", self.workers, 0)


@dataclass(kw_only=True, slots=True)
class PrepareJob:
    """Turn a folder of DICOM and a file of reports into de-identified, verified shards."""

    plain_form: ClassVar[str] = "fm prepare input=DIR reports=FILE out=URL"

    input: str = "???"
    """Folder of DICOM files or its URL (s3://, gs://, az://), searched through all its subfolders and zip archives; a
    zip archive; a DICOMDIR; or a BIDS tree."""
    reports: str | None = None
    """CSV, JSONL or Parquet with study_uid or accession, patient_id, text; a folder of text files named by accession
    number, or one that holds DICOM structured reports; null: images only."""
    labels: str | None = None
    """CSV, JSONL or Parquet with study_uid, series_uid or accession, and one column per label; null: none."""
    out: str = "???"
    """Folder or URL of the shards; run the command again to go on where it stopped, or with more studies in `input` to
    append them."""
    workers: int = 0
    """Processes, or Slurm jobs; 0: one per CPU core."""
    prepare: PrepareConfig

    def __post_init__(self) -> None:
        """Refuse a negative count."""
        at_least("workers", self.workers, 0)


@dataclass(kw_only=True, slots=True)
class WithdrawJob:
    """Remove a patient who withdrew consent from prepared shards; only those that held the patient are rewritten."""

    plain_form: ClassVar[str] = "fm withdraw url=URL patient=ID"

    url: str = "???"
    """Folder or URL of the shards."""
    patient: str = "???"
    """Pseudonym of the patient, or the patient's number as the headers give it."""
    key_file: str = ""
    """File of the secret key; empty: <url>.key/secret beside the shards."""
    site: str = ""
    """Namespace of patient numbers, where prepare.site was set."""


@dataclass(kw_only=True, slots=True)
class IndexJob:
    """Make WebDataset shards that others wrote into a dataset: an index beside them, or shards of our own at out=URL.

    docs/data.md says which members are read, and how.
    """

    plain_form: ClassVar[str] = "fm index url=URL [out=URL]"

    url: str = "???"
    """Folder or URL of the shards, *.tar."""
    out: str | None = None
    """Where to write shards of this platform; null: the shards at `url` follow its contract already, and need only an
    index."""
    images: dict[str, str] = field(default_factory=dict)
    """Contrast of each voxel member by its extension, e.g. {brain.nii.gz: t1w, image.npy: other}; empty: every nii,
    nii.gz and npy member, its contrast by its name where that is one (t1w.nii.gz), else other."""
    report: str = "txt"
    """Extension of the member that holds the report."""
    metadata: str = "json"
    """Extension of the member that holds fields."""
    fields: dict[str, str] = field(default_factory=dict)
    """Field of the metadata for each of ours, e.g. {patient: subject_id, split: fold}: patient, split, region, age,
    sex, report, spacing_mm, affine; by their own names where not given."""
    labels: list[str] = field(default_factory=list)
    """Fields of the metadata that become labels."""
    spacing_mm: list[float] = field(default_factory=lambda: [1.0, 1.0, 1.0])
    """(D, H, W) of npy members whose metadata has neither spacing_mm nor affine."""
    test_fraction: float = 0.2
    """Share of patients held out in the split `test`, where the metadata names no split; the others are `train`."""
    split_seed: int = 0
    """Another number draws another split."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not 0.0 <= self.test_fraction < 1.0:
            raise ConfigError(f"test_fraction={self.test_fraction}: a share from 0 to below 1 is needed")
        if len(self.spacing_mm) != 3 or min(self.spacing_mm) <= 0:
            raise ConfigError(f"spacing_mm={list(self.spacing_mm)}: give three lengths above 0, (D, H, W)")


@dataclass(kw_only=True, slots=True)
class VerifyJob:
    """Read every byte of a dataset: hashes, counts, members, voxels."""

    plain_form: ClassVar[str] = "fm verify url=URL"

    url: str = "???"
    """Folder or URL of the shards."""
    crops: int = 0
    """Random crops of each series to decode, in place of all its voxels; 0 decodes all."""

    def __post_init__(self) -> None:
        """Refuse a negative count."""
        at_least("crops", self.crops, 0)


@dataclass(kw_only=True, slots=True)
class InspectJob:
    """Show what a dataset holds, as tables and as one HTML page; with views=true, what the network sees of it."""

    plain_form: ClassVar[str] = "fm inspect url=URL [views=true]"
    filled: ClassVar[tuple[str, ...]] = ("data.url",)

    url: str = "???"
    """Folder or URL of the shards."""
    out: str = "inspect.html"
    """Page to write; it needs no other file and no network."""
    views: bool = False
    """Draw contact sheets of what the network sees, with the views of `data` and the patches of `model`."""
    tokenizer: str = ""
    """Folder with the tokenizer to count tokens with, e.g. of an export; '': one trained as fm pretrain would."""
    inspect: InspectConfig
    data: DataConfig
    model: ModelConfig


@dataclass(kw_only=True, slots=True)
class FindingsSheetJob:
    """Write a sheet of reports with what the labeller found in them, for a person to fill in."""

    plain_form: ClassVar[str] = "fm findings sheet url=SHARDS out=FILE"

    url: str = "???"
    """Shards that were prepared with prepare.labeller."""
    out: str = "???"
    """CSV file to write."""
    studies: int = 100
    """Reports to draw."""
    findings_file: str = ""
    """As prepare.findings_file."""
    seed: int = 0
    """Another number draws other reports."""

    def __post_init__(self) -> None:
        """Refuse an empty sheet."""
        at_least("studies", self.studies, 1)


@dataclass(kw_only=True, slots=True)
class FindingsScoreJob:
    """Precision and recall of a labeller by finding, with exact 95 % intervals, from a sheet that is filled in."""

    plain_form: ClassVar[str] = "fm findings score sheet=FILE"

    sheet: str = "???"
    """CSV file of fm findings sheet, its column `truth` filled in with y, n or -."""
