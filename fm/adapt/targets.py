"""What each study is to be told as: the values of a label, read from the index."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from fm.config.errors import UserError
from fm.config.jobs.training import FinetuneJob
from fm.config.task import ClassificationTask, ClassWeights, RegressionTask, TaskBase
from fm.data.index import Manifest
from fm.data.plan import keyed_rng
from fm.data.sample import LabelValue
from fm.data.store import access_of

Targets = dict[str, float]
"""Target of each study that takes part, by key."""


class TaskError(UserError):
    """A task that the labels of a dataset do not allow."""


@dataclass(kw_only=True, slots=True)
class Scheme:
    """How outputs are read; it is kept with the weights."""

    kind: str
    label: str
    classes: list[str] = field(default_factory=list)
    """Values of the label, one for each output; empty for a regression."""
    weights: list[float] = field(default_factory=list)
    """Weight of each class in the loss."""
    mean: float = 0.0
    scale: float = 1.0
    """A regression's output is (value − mean) / scale."""

    @property
    def outputs(self) -> int:
        """Outputs of the head."""
        return len(self.classes) or 1

    def target(self, value: LabelValue) -> float | None:
        """Number of the class, or the standardised value; None for what takes no part.

        Raises:
            TaskError: a value that is no number, where one is needed.
        """
        if self.classes:
            word = _word(value)
            return float(self.classes.index(word)) if word in self.classes else None
        return (_number(self.label, value) - self.mean) / self.scale


def prepare(job: FinetuneJob) -> tuple[Scheme, Targets, Targets]:
    """The scheme, and the targets of the studies to train on and of those to probe, by key.

    Raises:
        TaskError: nothing can be learnt, or probed, from these labels.
    """
    whole = Manifest.open(job.data.url, access_of(job.data))
    manifest, task = whole.select(split=job.data.split), job.task
    where = f"split {job.data.split} of {job.data.url}"
    labels = labels_of(manifest, task.label, where)
    out = held_out(manifest, task.validation_share)
    trained = {key: value for key, value in labels.items() if not out(key)}
    if not trained:
        raise TaskError(f"task.validation_share={task.validation_share} leaves no study of {where} to train on")
    scheme = make_scheme(task, trained, where)
    probed = {key: value for key, value in labels.items() if out(key)}
    if job.trainer.probe_every_steps and not task.validation_share:
        split = job.trainer.probe_split
        probed = labels_of(whole.select(split=split), task.label, f"split {split} of {job.data.url}")
    return scheme, targets_of(scheme, trained), targets_of(scheme, probed)


def make_scheme(task: TaskBase, labels: Mapping[str, LabelValue], where: str) -> Scheme:
    """The scheme of the studies that are trained on.

    Args:
        task: what is asked for.
        labels: value of each study that has the label.
        where: the studies in words, for errors.

    Raises:
        TaskError: nothing can be learnt from these labels, or this version does not build the kind.
    """
    if isinstance(task, ClassificationTask):
        counts = Counter(_word(value) for value in labels.values())
        classes = list(task.classes) or sorted(counts)
        present = [word for word in classes if counts[word]]
        if len(present) < len(classes) or len(classes) < 2:
            lacking = (
                f"lacks {[word for word in classes if not counts[word]]}" if task.classes else "has only one class"
            )
            raise TaskError(
                f"task.label={task.label}: {where} {lacking}; its values are {dict(sorted(counts.items()))}"
            )
        weights = [1.0] * len(classes)
        if task.class_weights is ClassWeights.balanced:
            total = sum(counts[word] for word in classes)
            weights = [total / len(classes) / counts[word] for word in classes]
        return Scheme(kind=task.kind, label=task.label, classes=classes, weights=weights)
    if isinstance(task, RegressionTask):
        values = np.array([_number(task.label, value) for value in labels.values()])
        if float(values.std()) == 0:
            raise TaskError(f"task.label={task.label}: {where} has only the value {values[0]:g}")
        return Scheme(kind=task.kind, label=task.label, mean=float(values.mean()), scale=float(values.std()))
    raise TaskError(f"task.kind={task.kind!r}: this version builds 'classification' and 'regression'")


def labels_of(manifest: Manifest, name: str, where: str) -> dict[str, LabelValue]:
    """Value of a label by key, of the studies that have it.

    Raises:
        TaskError: none has it.
    """
    samples = manifest.samples
    rows = zip(samples.column("key").to_pylist(), samples.column("labels").to_pylist(), strict=True)
    every = {str(key): json.loads(labels) for key, labels in rows}
    found = {key: labels[name] for key, labels in every.items() if labels.get(name) is not None}
    if not found:
        known = sorted({word for labels in every.values() for word in labels})
        raise TaskError(f"task.label={name}: no study of {where} has it; there are {known}")
    return found


def targets_of(scheme: Scheme, labels: Mapping[str, LabelValue]) -> Targets:
    """The target of every study that takes part, by key."""
    found = {key: scheme.target(value) for key, value in labels.items()}
    return {key: value for key, value in found.items() if value is not None}


def held_out(manifest: Manifest, share: float) -> Callable[[str], bool]:
    """Whether a study belongs to the patients that are held out: a draw of each patient's own, the same for ever."""
    samples = manifest.samples
    owners = dict(zip(samples.column("key").to_pylist(), samples.column("patient").to_pylist(), strict=True))
    return lambda key: bool(keyed_rng(0, "validation", owners[key]).random() < share)


def _word(value: LabelValue) -> str:
    """A label as a word: 1, 1.0, true and '1' are equal."""
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return str(value)


def _number(label: str, value: LabelValue) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise TaskError(f"task.label={label}: {value!r} is no number; use task=classification")
    return number
