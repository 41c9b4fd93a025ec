"""The jobs of training, its runs and its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from fm.config.data import DataConfig
from fm.config.errors import ConfigError, at_least
from fm.config.export import ExportConfig
from fm.config.launch import LaunchConfig
from fm.config.model import ModelConfig
from fm.config.objective import ObjectiveConfig
from fm.config.optim import OptimConfig
from fm.config.price import PriceConfig
from fm.config.task import TaskBase, gauges_of
from fm.config.tracker import TrackerConfig
from fm.config.trainer import TrainerConfig, Weights


class CheckpointForm(StrEnum):
    """What a checkpoint is converted to."""

    transformers = "transformers"
    """One safetensors file with its configuration, the same as fm export."""
    run = "run"
    """A run folder that fm pretrain goes on with."""


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
        at_least("max_steps", self.max_steps, 1)


@dataclass(kw_only=True, slots=True)
class FinetuneJob:
    """Train an exported encoder and a head to tell a label of the study; run=DIR alone resumes."""

    plain_form: ClassVar[str] = "fm finetune encoder=DIR task.label=NAME data.url=URL run=DIR"

    encoder: str | None = None
    """Folder of an exported encoder; null: train from scratch what `model` says."""
    run: str | None = None
    """Run folder; null: runs/<experiment>/<UTC time>."""
    from_run: str | None = None
    """Run folder to repeat: its configuration, into the new folder `run`."""
    seed: int = 0
    """Seed of new weights, the order of the studies and their augmentation."""
    max_steps: int = 1000
    """Optimiser steps of the whole run."""
    task: TaskBase
    data: DataConfig
    """One global view of each series is drawn; spacings and tissue threshold are those of the encoder."""
    model: ModelConfig
    """Architecture where no encoder is given."""
    optim: OptimConfig
    trainer: TrainerConfig
    tracker: TrackerConfig
    launch: LaunchConfig
    export: ExportConfig = field(default_factory=ExportConfig)

    def __post_init__(self) -> None:
        """Refuse a run without steps, and a best checkpoint by what fine-tuning does not measure."""
        at_least("max_steps", self.max_steps, 1)
        known = gauges_of(self.task)
        if self.trainer.keep_best and self.trainer.best_metric not in known:
            raise ConfigError(
                f"trainer.best_metric={self.trainer.best_metric}: task.kind={self.task.kind} measures "
                + ", ".join(known)
            )


TrainingJob = PretrainJob | FinetuneJob
"""The jobs that the engine trains."""


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
    price: PriceConfig = field(default_factory=PriceConfig)


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
        at_least("ranks", self.ranks, 1)
