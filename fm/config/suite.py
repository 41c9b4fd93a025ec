"""What an evaluation measures: the suite of tasks, their statistics, and the bars a trained encoder has to pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fm.config.errors import ConfigError


class TaskLevel(StrEnum):
    """What one row of a task is; named as YAML writes them (OmegaConf looks enums up by name)."""

    study = "study"
    series = "series"


@dataclass(kw_only=True, slots=True)
class TaskConfig:
    """One classification task over the labels of the studies.

    A class value is compared as a word: the label 1, 1.0 or '1' is the word ``1``. Studies without the label take no
    part.
    """

    question: str = ""
    """The task in plain words, as the report prints it."""
    label: str = ""
    """A label of the study, or `sex`; at series level `contrast`."""
    level: TaskLevel = TaskLevel.study
    region: str | None = None
    """Only studies of this body region; null: all."""
    positive: list[str] = field(default_factory=list)
    """Values that count as positive; empty: every value of the label is a class of its own."""
    negative: list[str] = field(default_factory=list)
    """Values that count as negative; other values take no part."""
    fit_positive: list[str] = field(default_factory=list)
    """Positive values the probe is fitted on where they differ from the scored ones (all grades, say); empty:
    `positive`.
    """
    prompts_positive: list[str] = field(default_factory=list)
    """Sentences that state the positive class; with `prompts_negative` a two-class task of studies is also answered
    without a fitted probe, by which of the two the scan is nearer to in the space of texts."""
    prompts_negative: list[str] = field(default_factory=list)
    """Sentences that deny it."""
    withheld_headers: list[str] = field(default_factory=list)
    """Columns that the header-only baseline may not see because they state the answer."""
    bar: bool = False
    """Whether the encoder has to beat the untrained one here: shown among the verdicts."""

    def __post_init__(self) -> None:
        self.level = TaskLevel(self.level)
        if not self.label:
            raise ConfigError("suite.tasks: a task needs a `label`")
        if bool(self.positive) != bool(self.negative):
            raise ConfigError(
                f"suite.tasks, label {self.label}: give both `positive` and `negative` values, or neither"
            )
        if bool(self.prompts_positive) != bool(self.prompts_negative):
            raise ConfigError(
                f"suite.tasks, label {self.label}: give both `prompts_positive` and `prompts_negative`, or neither"
            )
        if self.prompts_positive and (not self.positive or self.level is TaskLevel.series):
            raise ConfigError(
                f"suite.tasks, label {self.label}: prompts need `positive` and `negative` values, at study level"
            )
        if both := set(self.negative) & {*self.positive, *self.fit_positive}:
            raise ConfigError(f"suite.tasks, label {self.label}: value {min(both)!r} is both positive and negative")
        if self.level is TaskLevel.series and self.label != "contrast":
            raise ConfigError(f"suite.tasks, label {self.label}: at series level the label is `contrast`")


@dataclass(kw_only=True, slots=True)
class SuiteConfig:
    """One evaluation: tasks, probes, retrieval, statistics."""

    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    seed: int = 0
    """Of the bootstrap, the folds and the untrained encoder's weights."""
    bootstrap_draws: int = 1000
    confidence: float = 0.95
    folds: int = 5
    """Patient-level folds of the training split by which every probe is tuned."""
    min_patients_per_class: int = 5
    """A task with fewer patients of a class, in train or in test, is skipped and the report says so."""
    linear_c: list[float] = field(default_factory=lambda: [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0])
    """Inverse penalties the linear probe chooses from."""
    neighbours: list[int] = field(default_factory=lambda: [5, 10, 20, 40])
    """Neighbour counts the kNN probe chooses from."""
    ridge_penalties: list[float] = field(default_factory=lambda: [1.0, 10.0, 100.0, 1e3, 1e4])
    """Penalties the baseline matchers of retrieval choose from."""
    relevance_label: str = "findings"
    """Reports with the same value of this label are relevant to each other's images; without it, only the own
    report.
    """
    lesion_label: str = "lesion"
    """A study whose value is 0 is a normal: left out of the gallery 'without normals'."""
    min_gallery: int = 50
    """Smaller galleries are marked as such."""
    bar_region: str = "head"
    """Region whose gallery the retrieval verdicts are about."""
    bar_normals: bool = True
    """Whether normals are in that gallery. They resemble each other, so they raise chance."""
    bar_times_chance: float = 4.0
    """R@5 of image→text within that region has to reach this multiple of chance."""
    examples: int = 6
    """Retrieval examples shown in the report."""
    batch_studies: int = 8
    """Studies embedded at once."""

    def __post_init__(self) -> None:
        if self.bootstrap_draws < 20:
            raise ConfigError(f"suite.bootstrap_draws={self.bootstrap_draws}: an interval needs at least 20 draws")
        if not 0.5 <= self.confidence < 1:
            raise ConfigError(f"suite.confidence={self.confidence}: give a share from 0.5 to below 1, 0.95 as a rule")
        if self.folds < 2 or self.min_patients_per_class < 2:
            raise ConfigError("suite.folds and suite.min_patients_per_class must be at least 2")
        if not (self.linear_c and self.neighbours and self.ridge_penalties):
            raise ConfigError("suite.linear_c, suite.neighbours and suite.ridge_penalties must not be empty")
        if min(*self.linear_c, *self.neighbours, *self.ridge_penalties) <= 0:
            raise ConfigError("suite.linear_c, suite.neighbours and suite.ridge_penalties must be positive")
        if self.batch_studies < 1 or self.examples < 0:
            raise ConfigError("suite.batch_studies must be at least 1 and suite.examples at least 0")
