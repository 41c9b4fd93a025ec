"""From a task's configuration to rows and classes, or to the reason why it cannot be measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evals.cohort import Cohort, label_of
from evals.results import Skipped
from fm.config.suite import SuiteConfig, TaskConfig, TaskLevel
from fm.probes.types import Ints


@dataclass(kw_only=True, slots=True)
class Task:
    """Rows of one task: of the studies, or at series level of :attr:`evals.cohort.Cohort.probed`."""

    name: str
    config: TaskConfig
    classes: list[str]
    """Class words; for two classes the second is the positive one."""
    fit_rows: Ints
    fit_labels: Ints
    fit_patients: list[str]
    test_rows: Ints
    test_labels: Ints
    test_patients: list[str]
    note: str = ""


def build_task(name: str, config: TaskConfig, cohort: Cohort, suite: SuiteConfig) -> Task | Skipped:
    """The rows of a task, or why it is skipped: no such label, or too few patients of a class."""
    words, study_of_row = _rows(config, cohort)
    test = cohort.test_N[study_of_row]
    patients = [cohort.studies[s].patient for s in study_of_row]
    if not any(w is not None for w in words):
        where = f" in region {config.region}" if config.region else ""
        return Skipped(name=name, question=config.question, reason=f"no study{where} has the label {config.label}")
    if config.positive:
        classes = ["negative", "positive"]
        fit = _binary(words, config.negative, config.fit_positive or config.positive)
        score = _binary(words, config.negative, config.positive)
        scarce = _scarce(classes, fit, score, test, patients, suite.min_patients_per_class)
        note = ""
    else:
        found = sorted({w for w in words if w is not None})
        every = [found.index(w) if w is not None else -1 for w in words]
        scarce_found = _scarce(found, every, every, test, patients, suite.min_patients_per_class)
        classes = [w for w in found if w not in scarce_found]
        fit = score = [classes.index(w) if w in classes else -1 for w in words]
        scarce = scarce_found if len(classes) < 2 else {}
        note = f"left out, too rare: {', '.join(sorted(scarce_found))}" if scarce_found and not scarce else ""
    if scarce:
        counts = "; ".join(f"{word}: {train} in train, {tested} in test" for word, (train, tested) in scarce.items())
        need = suite.min_patients_per_class
        return Skipped(name=name, question=config.question, reason=f"fewer than {need} patients ({counts})")
    fit_rows = np.flatnonzero(~test & (np.array(fit) >= 0))
    test_rows = np.flatnonzero(test & (np.array(score) >= 0))
    return Task(
        name=name,
        config=config,
        classes=classes,
        fit_rows=fit_rows,
        fit_labels=np.array(fit, dtype=np.int64)[fit_rows],
        fit_patients=[patients[i] for i in fit_rows],
        test_rows=test_rows,
        test_labels=np.array(score, dtype=np.int64)[test_rows],
        test_patients=[patients[i] for i in test_rows],
        note=note,
    )


def _rows(config: TaskConfig, cohort: Cohort) -> tuple[list[str | None], Ints]:
    inside = [config.region is None or s.region == config.region for s in cohort.studies]
    if config.level is TaskLevel.series:
        words = [str(series.contrast) if inside[row] else None for row, series in cohort.probed]
        return words, np.array([row for row, _ in cohort.probed], dtype=np.int64)
    studies = zip(cohort.studies, inside, strict=True)
    return [label_of(s, config.label) if ok else None for s, ok in studies], np.arange(len(cohort.studies))


def _binary(words: Sequence[str | None], negative: Sequence[str], positive: Sequence[str]) -> list[int]:
    return [1 if w in positive else 0 if w in negative else -1 for w in words]


def _scarce(
    classes: Sequence[str],
    fit: Sequence[int],
    score: Sequence[int],
    test: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    patients: Sequence[str],
    least: int,
) -> dict[str, tuple[int, int]]:
    """Classes with too few patients, and how many they have in train and in test."""
    found = {}
    for k, name in enumerate(classes):
        train = {p for p, label, t in zip(patients, fit, test, strict=True) if label == k and not t}
        tested = {p for p, label, t in zip(patients, score, test, strict=True) if label == k and t}
        if min(len(train), len(tested)) < least:
            found[name] = (len(train), len(tested))
    return found
