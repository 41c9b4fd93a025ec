"""The jobs that start others, and look after machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fm.config.launch import LaunchConfig


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
class DoctorJob:
    """Say what this machine has, and what it lacks for GPU, Slurm and S3."""

    plain_form: ClassVar[str] = "fm doctor"

    folder: str = "."
    """Folder whose free disk space is shown."""
