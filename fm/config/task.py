"""Task configuration: what an encoder is fine-tuned for."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fm.config.errors import ConfigError


class Mode(StrEnum):
    """What is trained beside the head; named as YAML writes them (OmegaConf looks enums up by name)."""

    full = "full"
    """The whole image encoder, its lower layers more slowly."""
    frozen = "frozen"
    """Nothing: the encoder stays as it is, bit for bit."""


class ClassWeights(StrEnum):
    """How much a study counts in the loss."""

    none = "none"
    """All studies alike."""
    balanced = "balanced"
    """All classes alike: a study counts in inverse proportion to the size of its class."""


@dataclass(kw_only=True, slots=True)
class TaskBase:
    """Base of the polymorphic group `task`; `kind` picks the subclass.

    A task is three things, found by its kind in :mod:`fm.adapt.tasks`: the target of each study, read by its key; how
    many outputs the head has; and a loss over outputs and targets that is a sum over studies divided by the sum of
    their weights over all ranks. Survival is a subclass with two labels (time and event) and a loss over the risk set,
    whose outputs the objective's `gather` brings together from all ranks; an adversary is a second head behind a
    reversed gradient, with a label and a loss of its own; segmentation and image-to-image put a decoder on the patch
    tokens in place of the head, with targets that the reader crops as it crops the image.
    """

    kind: str = "???"
    label: str = "???"
    """A label of the study. Studies without it take no part."""
    mode: Mode = Mode.full
    layer_decay: float = 0.8
    """The learning rate of each layer below the head is this share of the one above; without encoder all learn alike.
    """
    validation_share: float = 0.0
    """Share of the patients of data.split that are held out of training and probed every trainer.probe_every_steps; 0
    probes the split trainer.probe_split."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        self.mode = Mode(self.mode)
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"task.layer_decay={self.layer_decay}: must be above 0 and at most 1")
        if not 0 <= self.validation_share < 1:
            raise ConfigError(f"task.validation_share={self.validation_share}: must be at least 0 and below 1")


@dataclass(kw_only=True, slots=True)
class ClassificationTask(TaskBase):
    """Two or more classes, one of which each study has."""

    kind: str = "classification"
    classes: list[str] = field(default_factory=list)
    """Values of the label, in the order of the outputs; studies with others take no part. Empty: all that there are."""
    class_weights: ClassWeights = ClassWeights.balanced

    def __post_init__(self) -> None:
        """Refuse what is no classification."""
        TaskBase.__post_init__(self)
        self.class_weights = ClassWeights(self.class_weights)
        if len(self.classes) == 1 or len(set(self.classes)) < len(self.classes):
            raise ConfigError(f"task.classes={self.classes}: give two or more different values of the label, or none")


@dataclass(kw_only=True, slots=True)
class RegressionTask(TaskBase):
    """A number that each study has, such as an age."""

    kind: str = "regression"


def gauges_of(task: TaskBase) -> tuple[str, ...]:
    """What a probe of the task measures, as metrics.jsonl names it."""
    if isinstance(task, RegressionTask):
        return "probe_r2", "probe_mae"
    return "probe_auroc", "probe_balanced_accuracy"
