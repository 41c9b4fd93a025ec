"""One root dataclass per verb: everything that the verb can be told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fm.config import registry
from fm.config.data import DataConfig
from fm.config.errors import ConfigError
from fm.config.launch import LaunchConfig
from fm.config.model import ModelConfig
from fm.config.objective import ObjectiveConfig
from fm.config.optim import OptimConfig
from fm.config.phantom import PhantomConfig
from fm.config.prepare import PrepareConfig
from fm.config.suite import SuiteConfig
from fm.config.tracker import TrackerConfig
from fm.config.trainer import TrainerConfig


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
    """Folder of DICOM files, searched through all its subfolders and zip archives; a zip archive; a DICOMDIR; or a
    BIDS tree."""
    reports: str | None = None
    """CSV, JSONL or Parquet with study_uid or accession, patient_id, text; a folder of text files named by accession
    number, or one that holds DICOM structured reports; null: images only."""
    labels: str | None = None
    """CSV, JSONL or Parquet with study_uid, series_uid or accession, and one column per label; null: none."""
    out: str = "???"
    """Folder or URL of the shards; run the command again to go on where it stopped."""
    workers: int = 0
    """Processes; 0: one per CPU core."""
    prepare: PrepareConfig

    def __post_init__(self) -> None:
        """Refuse a negative count."""
        _at_least("workers", self.workers, 0)


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

    def __post_init__(self) -> None:
        """Refuse a run without steps."""
        _at_least("max_steps", self.max_steps, 1)


@dataclass(kw_only=True, slots=True)
class ExportJob:
    """Write the encoder of a run as safetensors with its configuration, for plain transformers."""

    plain_form: ClassVar[str] = "fm export from_run=DIR out=DIR"

    from_run: str = "???"
    """Run folder of fm pretrain."""
    out: str = "???"
    """Folder to write."""
    step: int | None = None
    """Checkpoint to export; null: the newest good one."""


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

    encoder: str = "???"
    """Folder of an exported encoder."""
    input: str = "???"
    """A NIfTI file, a folder of them, or the URL of shards."""
    out: str = "???"
    """Parquet file to write."""


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

    def __post_init__(self) -> None:
        """Refuse counts below their range, and reports without the images they belong to."""
        for name, value in (("studies", self.studies), ("max_steps", self.max_steps)):
            _at_least(name, value, 1)
        _at_least("workers", self.workers, 0)
        if self.input is None and (self.reports or self.labels):
            raise ConfigError("reports and labels belong to your own DICOM: give input=DIR too")


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
class RunsJob:
    """List the runs below a folder with their state, newest first."""

    plain_form: ClassVar[str] = "fm runs list"

    folder: str = "runs"
    """Folder to search."""


@dataclass(kw_only=True, slots=True)
class CheckpointListJob:
    """List the checkpoints of a run with their size and layout."""

    plain_form: ClassVar[str] = "fm checkpoint list from_run=DIR"

    from_run: str = "???"
    """Run folder of fm pretrain."""


@dataclass(kw_only=True, slots=True)
class CheckpointVerifyJob:
    """Check every file of a run's checkpoints against the SHA-256 of its manifest."""

    plain_form: ClassVar[str] = "fm checkpoint verify from_run=DIR"

    from_run: str = "???"
    """Run folder of fm pretrain."""
    step: int | None = None
    """Checkpoint to check; null: all."""


JOBS: dict[str, type] = {
    "phantom": PhantomJob,
    "prepare": PrepareJob,
    "pretrain": PretrainJob,
    "export": ExportJob,
    "evaluate": EvaluateJob,
    "embed": EmbedJob,
    "demo": DemoJob,
    "doctor": DoctorJob,
    "findings sheet": FindingsSheetJob,
    "findings score": FindingsScoreJob,
    "runs list": RunsJob,
    "checkpoint list": CheckpointListJob,
    "checkpoint verify": CheckpointVerifyJob,
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
