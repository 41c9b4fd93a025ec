"""One root dataclass per verb: everything that the verb can be told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from fm.config import registry
from fm.config.data import DataConfig
from fm.config.errors import ConfigError
from fm.config.export import ExportConfig
from fm.config.inspect import InspectConfig
from fm.config.launch import LaunchConfig
from fm.config.model import ModelConfig
from fm.config.objective import ObjectiveConfig
from fm.config.optim import OptimConfig
from fm.config.phantom import PhantomConfig
from fm.config.prepare import PrepareConfig
from fm.config.suite import SuiteConfig
from fm.config.tracker import TrackerConfig
from fm.config.trainer import TrainerConfig, Weights


class CheckpointForm(StrEnum):
    """What a checkpoint is converted to."""

    transformers = "transformers"
    """One safetensors file with its configuration, the same as fm export."""
    run = "run"
    """A run folder that fm pretrain goes on with."""


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
        _at_least("studies", self.studies, 1)
        _at_least("workers", self.workers, 0)


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
        _at_least("workers", self.workers, 0)


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
class PretrainJob:
    """Train an image encoder and a text encoder on prepared shards; run=DIR alone resumes."""

    plain_form: ClassVar[str] = "fm pretrain data.url=URL run=DIR"

    run: str | None = None
    """Run folder; null: runs/<experiment>/<UTC time>."""
    from_run: str | None = None
    """Run folder to repeat: its configuration, into the new folder `run`."""
    seed: int = 0
    """Seed of the weights, the order of the studies and their augmentation."""
    max_steps: int = 1000
    """Optimiser steps of the whole run."""
    data: DataConfig
    model: ModelConfig
    objective: ObjectiveConfig
    optim: OptimConfig
    trainer: TrainerConfig
    tracker: TrackerConfig
    launch: LaunchConfig
    export: ExportConfig = field(default_factory=ExportConfig)

    def __post_init__(self) -> None:
        """Refuse a run without steps."""
        _at_least("max_steps", self.max_steps, 1)


@dataclass(kw_only=True, slots=True)
class ExportJob:
    """Write the encoder of a run as safetensors with its configuration, for plain transformers."""

    plain_form: ClassVar[str] = "fm export from_run=DIR out=DIR"

    from_run: str = "???"
    """Run folder of fm pretrain, or the URL of its checkpoints."""
    out: str = "???"
    """Folder to write."""
    step: int | None = None
    """Checkpoint to export; null: the newest good one."""
    weights: Weights | None = None
    """The averaged teacher or the student; null: the run's trainer.export_weights."""
    export: ExportConfig = field(default_factory=ExportConfig)


@dataclass(kw_only=True, slots=True)
class EvaluateJob:
    """Measure a frozen encoder on held-out studies, beside untrained, intensity-only, header-only and chance."""

    plain_form: ClassVar[str] = "fm evaluate encoder=DIR data.url=URL run=DIR"

    encoder: str = "???"
    """Folder of an exported encoder."""
    run: str | None = None
    """Folder of the evaluation; null: runs/<experiment>/<UTC time>."""
    data: DataConfig
    suite: SuiteConfig


@dataclass(kw_only=True, slots=True)
class EmbedJob:
    """Write the embeddings of images with a frozen encoder."""

    plain_form: ClassVar[str] = "fm embed encoder=DIR input=PATH out=FILE"
    filled: ClassVar[tuple[str, ...]] = ("data.url",)

    encoder: str = "???"
    """Folder of an exported encoder."""
    input: str = "???"
    """A NIfTI file, a folder of them, or the URL of shards."""
    out: str = "???"
    """Parquet file to write."""
    data: DataConfig
    """How object storage is read; the encoder itself says how studies are sampled."""


@dataclass(kw_only=True, slots=True)
class DemoJob:
    """Phantom (or your own DICOM), prepare, pretrain and evaluate in one go; run=DIR alone goes on."""

    plain_form: ClassVar[str] = "fm demo run=DIR [input=DIR reports=FILE]"
    filled: ClassVar[tuple[str, ...]] = ("data.url",)

    run: str | None = None
    """Folder of everything the demo writes; null: runs/<experiment>/<UTC time>."""
    input: str | None = None
    """Folder of your own DICOM; null: simulate studies."""
    reports: str | None = None
    """Reports of your own studies, as for fm prepare."""
    labels: str | None = None
    """Labels of your own studies, as for fm prepare."""
    studies: int = 400
    """Studies to simulate."""
    seed: int = 0
    """Seed of the simulation and of the training."""
    workers: int = 0
    """Processes of simulation and preparation; 0: one per CPU core."""
    max_steps: int = 1000
    """Optimiser steps of the training."""
    phantom: PhantomConfig
    prepare: PrepareConfig
    data: DataConfig
    model: ModelConfig
    objective: ObjectiveConfig
    optim: OptimConfig
    trainer: TrainerConfig
    tracker: TrackerConfig
    launch: LaunchConfig
    suite: SuiteConfig
    export: ExportConfig = field(default_factory=ExportConfig)

    def __post_init__(self) -> None:
        """Refuse counts below their range, and reports without the images they belong to."""
        for name, value in (("studies", self.studies), ("max_steps", self.max_steps)):
            _at_least(name, value, 1)
        _at_least("workers", self.workers, 0)
        if self.input is None and (self.reports or self.labels):
            raise ConfigError("reports and labels belong to your own DICOM: give input=DIR too")


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
        _at_least("crops", self.crops, 0)


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
        _at_least("studies", self.studies, 1)


@dataclass(kw_only=True, slots=True)
class FindingsScoreJob:
    """Precision and recall of a labeller by finding, with exact 95 % intervals, from a sheet that is filled in."""

    plain_form: ClassVar[str] = "fm findings score sheet=FILE"

    sheet: str = "???"
    """CSV file of fm findings sheet, its column `truth` filled in with y, n or -."""


@dataclass(kw_only=True, slots=True)
class DoctorJob:
    """Say what this machine has, and what it lacks for GPU, Slurm and S3."""

    plain_form: ClassVar[str] = "fm doctor"

    folder: str = "."
    """Folder whose free disk space is shown."""


@dataclass(kw_only=True, slots=True)
class SubmitJob:
    """Send any verb to a cluster; the keys of that verb follow, launch= says which engine and how much of it."""

    plain_form: ClassVar[str] = "fm submit verb=pretrain launch=slurm launch.nodes=2 data.url=URL run=DIR"

    verb: str = "???"
    """The verb to run there."""
    dry_run: bool = False
    """Print what would be sent, and send and write nothing."""
    jobs: str = "jobs"
    """Folder for the jobs of verbs that have no run folder of their own."""
    launch: LaunchConfig


@dataclass(kw_only=True, slots=True)
class JobsListJob:
    """List the jobs that were submitted for the runs below a folder, with their state as the engine says now."""

    plain_form: ClassVar[str] = "fm jobs list"

    folder: str = "."
    """Folder to search."""


@dataclass(kw_only=True, slots=True)
class JobsLogsJob:
    """Print what the newest job of a run folder wrote."""

    plain_form: ClassVar[str] = "fm jobs logs folder=DIR"

    folder: str = "???"
    """The run folder."""


@dataclass(kw_only=True, slots=True)
class JobsCancelJob:
    """Stop the newest job of a run folder for good; what it has saved stays."""

    plain_form: ClassVar[str] = "fm jobs cancel folder=DIR"

    folder: str = "???"
    """The run folder."""


@dataclass(kw_only=True, slots=True)
class JobsResubmitJob:
    """Send a run that is not done once more; it goes on from its last checkpoint."""

    plain_form: ClassVar[str] = "fm jobs resubmit folder=DIR"

    folder: str = "???"
    """The run folder."""


@dataclass(kw_only=True, slots=True)
class RunsListJob:
    """List the runs below a folder with their state, newest first."""

    plain_form: ClassVar[str] = "fm runs list"

    folder: str = "runs"
    """Folder to search."""


@dataclass(kw_only=True, slots=True)
class RunsShowJob:
    """Tell what became of a run: its attempts, what they ran on, what they cost, and what happened."""

    plain_form: ClassVar[str] = "fm runs show from_run=DIR"

    from_run: str = "???"
    """Run folder."""


@dataclass(kw_only=True, slots=True)
class CheckpointListJob:
    """List the checkpoints of a run with their size and layout."""

    plain_form: ClassVar[str] = "fm checkpoint list from_run=DIR"

    from_run: str = "???"
    """Run folder of fm pretrain, or the URL of its checkpoints."""


@dataclass(kw_only=True, slots=True)
class CheckpointVerifyJob:
    """Check every file of a run's checkpoints against the SHA-256 of its manifest."""

    plain_form: ClassVar[str] = "fm checkpoint verify from_run=DIR"

    from_run: str = "???"
    """Run folder of fm pretrain, or the URL of its checkpoints."""
    step: int | None = None
    """Checkpoint to check; null: all."""


@dataclass(kw_only=True, slots=True)
class CheckpointConvertJob:
    """Write a checkpoint as plain transformers reads it, or as a run folder with another number of moment shards."""

    plain_form: ClassVar[str] = "fm checkpoint convert from_run=DIR out=DIR form=transformers|run"

    from_run: str = "???"
    """Run folder of fm pretrain, or the URL of its checkpoints."""
    out: str = "???"
    """Folder to write."""
    form: CheckpointForm = CheckpointForm.transformers
    step: int | None = None
    """Checkpoint to convert; null: the newest good one."""
    ranks: int = 1
    """Shards of the optimiser's moments with form=run; whatever their number, any number of processes goes on."""

    def __post_init__(self) -> None:
        """Refuse a layout without shards."""
        _at_least("ranks", self.ranks, 1)


JOBS: dict[str, type] = {
    "phantom": PhantomJob,
    "prepare": PrepareJob,
    "index": IndexJob,
    "verify": VerifyJob,
    "inspect": InspectJob,
    "withdraw": WithdrawJob,
    "pretrain": PretrainJob,
    "export": ExportJob,
    "evaluate": EvaluateJob,
    "embed": EmbedJob,
    "demo": DemoJob,
    "submit": SubmitJob,
    "jobs list": JobsListJob,
    "jobs logs": JobsLogsJob,
    "jobs cancel": JobsCancelJob,
    "jobs resubmit": JobsResubmitJob,
    "doctor": DoctorJob,
    "findings sheet": FindingsSheetJob,
    "findings score": FindingsScoreJob,
    "runs list": RunsListJob,
    "runs show": RunsShowJob,
    "checkpoint list": CheckpointListJob,
    "checkpoint verify": CheckpointVerifyJob,
    "checkpoint convert": CheckpointConvertJob,
}
"""The job of every verb, in the order of the help."""


def plain_form(job: type) -> str:
    """The shortest useful command line of a job class."""
    return str(vars(job)["plain_form"])


def filled_keys(job: type) -> tuple[str, ...]:
    """Dotted keys that the verb fills itself, so that nobody has to, or may, give them."""
    return tuple(vars(job).get("filled", ()))


def group_options(verb: str, config_dirs: Iterable[Path] = ()) -> dict[str, list[str]]:
    """The groups of a verb with the options they offer; ``experiment`` belongs to every verb that has a group."""
    own = [name for name in registry.GROUPS if name in registry.keys(JOBS[verb])]
    found = {name: registry.options(name, config_dirs) for name in (["experiment", *own] if own else [])}
    return {name: names for name, names in found.items() if names}


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name}={value} must be at least {least}")
