"""How good the teacher is while it trains: every so many steps it embeds a fixed set of studies that are held out."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from fm.config.errors import UserError
from fm.config.trainer import TrainerConfig
from fm.data.codec import CodecError
from fm.data.index import DatasetError, Manifest
from fm.data.plan import stable_hash
from fm.data.sample import SampleError
from fm.data.text import text_batch
from fm.data.volume import SeriesImage, from_sample
from fm.engine.module import TrainingModule
from fm.models.pool import mean_max
from fm.objectives.student import StudentModule
from fm.parallel.collectives import gather_objects, rank, world_size
from fm.probes.online import neighbours_accuracy, retrieval_recall
from fm.probes.retrieval import chance
from fm.probes.types import Floats

log = logging.getLogger(__name__)

_VIEW = "probe"
_Read = tuple[list[SeriesImage], str]
"""Series and report of a study."""


@dataclass(kw_only=True, slots=True)
class ProbedStudy:
    """What the teacher makes of one study."""

    row: int
    """Of the study within the probed set."""
    text: int
    """Hash of its report; 0 without one."""
    feature_D: Floats
    """Mean class token of its series."""
    image_E: Floats
    text_E: Floats


class Prober(pl.Callback):
    """Adds ``probe_…`` gauges to the row of metrics of every so many steps; put it before the recorder.

    The ranks share the studies. Nothing of the training is touched: the views are whole and unaugmented, the teacher
    draws no random numbers.
    """

    def __init__(
        self,
        config: TrainerConfig,
        manifest: Manifest,
        tokenizer: PreTrainedTokenizerFast,
        batch_studies: int,
        max_series: int,
    ) -> None:
        """Choose the studies.

        Args:
            config: how often, which split, how many, which label.
            manifest: the whole dataset.
            tokenizer: for the reports.
            batch_studies: studies that a rank embeds at once.
            max_series: series of each study, its first ones.

        Raises:
            UserError: the split holds no study, or no study has the label.
        """
        self._every = config.probe_every_steps
        self._tokenizer = tokenizer
        self._batch = batch_studies
        self._max_series = max_series
        self._manifest = manifest.select(split=config.probe_split)
        if not len(self._manifest):
            there = ", ".join(sorted(manifest.samples.codes("split")[1]))
            raise UserError(
                f"trainer.probe_split={config.probe_split}: no study there, the splits are {there}; name one that is "
                "not trained on"
            )
        self._keys = sorted(self._manifest.keys, key=stable_hash)[: config.probe_studies]
        samples = [self._manifest.sample(key) for key in self._keys]
        self._patients = [sample.patient for sample in samples]
        self._labels = [sample.labels.get(config.probe_label) for sample in samples] if config.probe_label else []
        if config.probe_label and all(value is None for value in self._labels):
            known = sorted({name for sample in samples for name in sample.labels})
            raise UserError(f"trainer.probe_label={config.probe_label}: no probed study has it; there are {known}")
        self._told = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Probe where it is due; the same on every rank."""
        if not isinstance(pl_module, TrainingModule) or pl_module.result is None:
            raise RuntimeError("a batch ended without a step")
        if pl_module.completed_steps % self._every:
            return
        gauges = self._gauges(pl_module)
        pl_module.result.report |= {f"probe_{name}": torch.tensor(value) for name, value in gauges.items()}
        pl_module.phases.enter("record")

    def _gauges(self, module: TrainingModule) -> dict[str, float]:
        mine = list(self._embed(module))
        found = sorted((s for part in gather_objects(mine) for s in part), key=lambda study: study.row)
        told = [study for study in found if study.text]
        texts = np.array([study.text for study in told], dtype=np.int64)
        self._tell_chance(texts, len(found))
        gauges = retrieval_recall(_stack([s.image_E for s in told]), _stack([s.text_E for s in told]), texts)
        if self._labels:
            known = [study for study in found if self._labels[study.row] is not None]
            words = [str(self._labels[study.row]) for study in known]
            _, classes = np.unique(words, return_inverse=True)
            owners = [self._patients[study.row] for study in known]
            gauges["knn"] = (
                neighbours_accuracy(_stack([s.feature_D for s in known]), classes.astype(np.int64), owners)
                if known
                else math.nan
            )
        return gauges

    def _embed(self, module: TrainingModule) -> Iterator[ProbedStudy]:
        """This rank's studies; each rank makes as many passes, which a sharded teacher needs."""
        rows = list(range(len(self._keys)))[rank() :: world_size()]
        longest = math.ceil(len(self._keys) / world_size())
        for first in range(0, longest, self._batch):
            module.phases.enter("probe")  # anew for each batch: it is no hang
            chunk = rows[first : first + self._batch]
            studies = {row: read for row in chunk if (read := self._read(row)) is not None}
            yield from self._encode(module.teacher.module, studies)

    @torch.no_grad()
    def _encode(self, teacher: Any, studies: dict[int, _Read]) -> Iterator[ProbedStudy]:
        assert isinstance(teacher, StudentModule)
        texts = [text for _, text in studies.values()]
        views = teacher.fm.pack_series([images for images, _ in studies.values()])
        text = text_batch(texts, self._tokenizer)
        out = teacher({_VIEW: views}, len(studies), _VIEW, text.to(views.patches_TP.device))
        if out.image_BE is None or out.text_BE is None:
            raise RuntimeError("the teacher aligned no view")
        features, _ = mean_max(out.class_tokens[_VIEW].float(), views.study_S, len(studies))
        arrays = [part.double().cpu().numpy() for part in (features, out.image_BE, out.text_BE)]
        for at, row in enumerate(studies):
            feature, image, said = (array[at] for array in arrays)
            identity = stable_hash(texts[at]) if texts[at] else 0
            yield ProbedStudy(row=row, text=identity, feature_D=feature, image_E=image, text_E=said)

    def _read(self, row: int) -> _Read | None:
        """The first series and the report of a study; None where it cannot be read."""
        key = self._keys[row]
        try:
            study = self._manifest.study(key)
            series = study.series[: self._max_series]
            images = [from_sample(one, self._manifest.read(key, f"{one.name}.b2")) for one in series]
        except (DatasetError, CodecError, SampleError) as err:
            log.warning("not probed: study %s: %s", key, err)
            return None
        return images, study.report.diagnostic if study.report is not None else ""

    def _tell_chance(self, texts: Any, studies: int) -> None:
        """Once, what a random order would reach: the gauges mean nothing without it."""
        if not self._told and rank() == 0 and len(texts) > 1:
            equal = (texts[:, None] == texts[None, :]).sum(axis=1)
            reached = chance(equal, len(texts), [5]).recall[5]
            log.info("probed: %d studies, %d with a report; chance has an R@5 of %.3f", studies, len(texts), reached)
        self._told = True


def _stack(rows: Sequence[Floats]) -> Floats:
    return np.stack(rows) if rows else np.zeros((0, 1))
