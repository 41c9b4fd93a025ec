"""Probes of every system on one task, with intervals by patient and paired differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from evals.results import Score, System, TaskResult
from evals.tasks import Task
from fm.config.suite import SuiteConfig
from fm.probes.bootstrap import Interval, interval, patient_weights
from fm.probes.knn import fit_knn
from fm.probes.linear import fit_linear
from fm.probes.metrics import auroc, balanced_accuracy, macro_auroc, roc_points
from fm.probes.tuning import patient_folds
from fm.probes.types import Floats, Ints

PROBES = ("linear", "knn")


class ProbeCache:
    """Class scores of a probe, fitted once for all tasks that share its training rows."""

    def __init__(self, suite: SuiteConfig) -> None:
        self.suite = suite
        self._fitted: dict[tuple[object, ...], tuple[Floats, float]] = {}
        self._folds: dict[tuple[object, ...], list[tuple[Ints, Ints]]] = {}

    def scores(self, probe: str, system: System, features_ND: Floats, task: Task) -> tuple[Floats, float]:
        """(N, K) class scores of all rows, and the chosen setting."""
        withheld = tuple(task.config.withheld_headers) if system is System.HEADER else ()
        rows, labels = task.fit_rows.tobytes(), task.fit_labels.tobytes()
        key = (probe, system, task.config.level, withheld, rows, labels)
        if key not in self._fitted:
            self._fitted[key] = self._fit(probe, features_ND, task)
        return self._fitted[key]

    def _fit(self, probe: str, features_ND: Floats, task: Task) -> tuple[Floats, float]:
        suite, train = self.suite, features_ND[task.fit_rows]
        folds = self._folds_of(task)
        if probe == "linear":
            linear = fit_linear(train, task.fit_labels, folds, suite.linear_c)
            return linear.scores(features_ND), linear.c
        knn = fit_knn(train, task.fit_labels, folds, suite.neighbours)
        return knn.scores(features_ND), float(knn.neighbours)

    def _folds_of(self, task: Task) -> list[tuple[Ints, Ints]]:
        key = (task.config.level, task.fit_rows.tobytes(), task.fit_labels.tobytes())
        if key not in self._folds:
            suite = self.suite
            self._folds[key] = patient_folds(task.fit_labels, task.fit_patients, suite.folds, suite.seed)
        return self._folds[key]


def run_task(
    task: Task,
    features: Mapping[System, Floats],
    suite: SuiteConfig,
    cache: ProbeCache,
    prompted: Callable[[Floats], Score | None] = lambda draws: None,
) -> TaskResult:
    """Score every system on a task.

    Args:
        task: rows and classes.
        features: (N, D) of each system, rows as the task counts them; the encoder's must be there.
        suite: settings of probes and statistics.
        cache: fitted probes of earlier tasks.
        prompted: the score of the task's prompts, held against the AUROC of this encoder's linear probe per draw.
    """
    weights_RN = patient_weights(task.test_patients, suite.bootstrap_draws, suite.seed)
    scores, linear = [], None
    for probe in PROBES:
        mine: Floats | None = None
        for system, features_ND in features.items():
            class_scores, setting = cache.scores(probe, system, features_ND, task)
            score, draws = _score(task, class_scores[task.test_rows], weights_RN, suite.confidence)
            score.system, score.probe, score.setting = system, probe, setting
            if mine is None:
                mine = draws
            else:
                score.auroc_difference = interval(mine - draws, suite.confidence)
            scores.append(score)
        assert mine is not None
        scores.append(_chance(task, probe, mine, suite.confidence))
        linear = mine if linear is None else linear
    if linear is not None and (told := prompted(linear)) is not None:
        scores.append(told)
    return TaskResult(
        name=task.name,
        question=task.config.question or task.name,
        level=task.config.level.value,
        region=task.config.region,
        classes=task.classes,
        bar=task.config.bar,
        train=_counts(task.classes, task.fit_labels),
        test=_counts(task.classes, task.test_labels),
        test_patients=len(set(task.test_patients)),
        note=task.note,
        scores=scores,
    )


def _score(task: Task, scores_NK: Floats, weights_RN: Ints, confidence: float) -> tuple[Score, Floats]:
    labels = task.test_labels
    binary = len(task.classes) == 2
    draws = auroc(scores_NK[:, 1], labels == 1, weights_RN) if binary else macro_auroc(scores_NK, labels, weights_RN)
    accuracy = balanced_accuracy(scores_NK.argmax(axis=1), labels, weights_RN)
    score = Score(
        system=System.ENCODER,
        probe="",
        setting=None,
        auroc=interval(draws, confidence),
        balanced_accuracy=interval(accuracy, confidence),
        roc=roc_points(scores_NK[:, 1], labels == 1) if binary else None,
    )
    return score, draws


def _chance(task: Task, probe: str, mine: Floats, confidence: float) -> Score:
    share = 1 / len(task.classes)
    return Score(
        system=System.CHANCE,
        probe=probe,
        setting=None,
        auroc=Interval(value=0.5, low=None, high=None),
        balanced_accuracy=Interval(value=share, low=None, high=None),
        auroc_difference=interval(mine - 0.5, confidence),
    )


def _counts(classes: list[str], labels: Ints) -> dict[str, int]:
    sizes = np.bincount(labels, minlength=len(classes))
    return {name: int(size) for name, size in zip(classes, sizes, strict=True)}
