"""The job of the whole line in one go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fm.config.data import DataConfig
from fm.config.errors import ConfigError, at_least
from fm.config.export import ExportConfig
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
            at_least(name, value, 1)
        at_least("workers", self.workers, 0)
        if self.input is None and (self.reports or self.labels):
            raise ConfigError("reports and labels belong to your own DICOM: give input=DIR too")
