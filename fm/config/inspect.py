"""Inspection configuration: how much of a dataset is looked at."""

from __future__ import annotations

from dataclasses import dataclass

from fm.config.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class InspectConfig:
    """How much of a dataset is looked at."""

    most_studies: int = 0
    """Studies whose metadata and reports are read, spread evenly over the dataset; 0 reads all."""
    studies: int = 6
    """Studies drawn on contact sheets, spread evenly over the split."""
    series: int = 4
    """Series drawn per study at most; data.max_series is the other limit."""
    visit: int = 0
    """Which of a study's visits is drawn: its crops and augmentation are those of this epoch of a run."""
    seed: int = 0
    """Of the run whose views are drawn."""

    def __post_init__(self) -> None:
        """Refuse counts below their range."""
        for name, value, least in (
            ("most_studies", self.most_studies, 0),
            ("studies", self.studies, 1),
            ("series", self.series, 1),
            ("visit", self.visit, 0),
        ):
            if value < least:
                raise ConfigError(f"inspect.{name}={value}: must be ≥ {least}")
