"""The studies of an evaluation: their metadata, their split, and the refusal of patients that stand in both."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from fm.config.errors import UserError
from fm.data.sample import SeriesMeta, StudyMeta
from fm.probes.types import Bools, Ints


class CohortError(UserError):
    """Studies that cannot be evaluated honestly, or at all."""


@dataclass(kw_only=True, slots=True)
class Cohort:
    """Studies in a fixed order; every table of an evaluation has these rows."""

    studies: list[StudyMeta]
    test_N: Bools
    """(N,) True for the scored split, False for the one that probes are fitted on."""
    dataset_id: str = ""
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    """Pairs of studies that share a volume, as far as the dataset knows."""

    def __post_init__(self) -> None:
        if not self.studies:
            raise CohortError("the shards hold no study of the train or test split: prepare them again, or name others")
        train = {s.patient for s, test in zip(self.studies, self.test_N, strict=True) if not test}
        both = sorted({s.patient for s, test in zip(self.studies, self.test_N, strict=True) if test} & train)
        if both:
            raise CohortError(
                f"{len(both)} patient(s) stand in both train and test, first {both[0]}: "
                "scores would be flattered; prepare the data again with patient-level splits"
            )
        split = {s.key: bool(test) for s, test in zip(self.studies, self.test_N, strict=True)}
        shared = [pair for pair in self.duplicates if {split.get(pair[0]), split.get(pair[1])} == {True, False}]
        if shared:
            raise CohortError(
                f"{len(shared)} volume(s) stand in both train and test, first in the studies "
                f"{' and '.join(shared[0])}: scores would be flattered; prepare the data again with "
                "prepare.duplicates=drop"
            )

    @property
    def patients(self) -> list[str]:
        """(N,) pseudonym of each study's patient."""
        return [s.patient for s in self.studies]

    @property
    def series(self) -> list[tuple[int, SeriesMeta]]:
        """(M) every series with the row of its study."""
        return [(row, series) for row, study in enumerate(self.studies) for series in study.series]

    @property
    def probed(self) -> list[tuple[int, SeriesMeta]]:
        """(P) the rows of series-level tasks: one series of each study that has any, with the row of its study."""
        chosen = [(row, probed_series(study)) for row, study in enumerate(self.studies)]
        return [(row, self.studies[row].series[at]) for row, at in chosen if at is not None]

    def rows(self, keep: Callable[[StudyMeta], bool], *, test: bool) -> Ints:
        """Rows of one split whose study passes."""
        pairs = zip(self.studies, self.test_N, strict=True)
        return np.array([i for i, (s, t) in enumerate(pairs) if bool(t) == test and keep(s)], dtype=np.int64)

    def without(self, keys: Iterable[str]) -> Cohort:
        """The cohort less some studies, those that could not be read."""
        gone = set(keys)
        kept = np.array([s.key not in gone for s in self.studies])
        return Cohort(
            studies=[s for s in self.studies if s.key not in gone],
            test_N=self.test_N[kept],
            dataset_id=self.dataset_id,
            duplicates=self.duplicates,
        )


def probed_series(study: StudyMeta) -> int | None:
    """Which series stands for a study in series-level tasks, chosen by the hash of its key; None where it has none."""
    return zlib.crc32(study.key.encode()) % len(study.series) if study.series else None


def word(value: object) -> str | None:
    """A label as a word: 1, 1.0 and '1' are equal; None stays None."""
    if value is None:
        return None
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def label_of(study: StudyMeta, name: str) -> str | None:
    """The word of a study's label, or of its `sex` or `region`; None where it is missing."""
    if name == "sex":
        return word(study.sex)
    if name == "region":
        return study.region
    return word(study.labels.get(name))
