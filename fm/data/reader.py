"""The loader: planned batches by ranged reads, as a webdataset pipeline.

The first stage yields the plan of this rank's micro-batches, worker *w* of *n* every *n*th; reading, views and
collation follow as ordinary webdataset stages. A sample that cannot be read leaves a hole (no tokens, weight zero) and
shifts nothing.
"""

from __future__ import annotations

import itertools
import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import DataLoader, get_worker_info
from transformers import PreTrainedTokenizerFast

from fm.batch import StudyBatch
from fm.config.data import DataConfig
from fm.config.errors import UserError
from fm.data.collate import pack
from fm.data.index import Manifest
from fm.data.phrases import PhraseTable
from fm.data.plan import BatchPlan, Pick, Shares, keyed_rng, shares, stable_hash
from fm.data.sample import SampleError, SeriesMeta, StudyMeta
from fm.data.text import augment_text, text_batch
from fm.data.views import Lattice, SeriesView, crop, draw_view, lattice_of, retouch
from fm.data.volume import SeriesImage, from_sample

log = logging.getLogger(__name__)


class ReadError(UserError):
    """Too many samples of a dataset could not be read."""


@dataclass(kw_only=True, slots=True)
class MicroPlan:
    """One micro-batch of one rank."""

    step: int
    picks: list[Pick]


@dataclass(kw_only=True, slots=True)
class PlannedSource:
    """First stage of the pipeline: this rank's micro-batches in order, worker *w* of *n* every *n*th."""

    plan: BatchPlan
    shares: Shares
    rank: int
    start_step: int
    max_steps: int

    def __call__(self) -> Iterator[MicroPlan]:
        """Yield the plan; nothing is read yet."""
        worker = get_worker_info()
        index, count = (worker.id, worker.num_workers) if worker else (0, 1)
        turns = (
            (step, turn) for step in range(self.start_step, self.max_steps) for turn in range(self.shares.accumulation)
        )
        for step, turn in itertools.islice(turns, index, None, count):
            yield MicroPlan(step=step, picks=self.plan.batch(step)[self.shares.rows(self.rank, turn)])


@dataclass(kw_only=True, slots=True)
class StudyViews:
    """One study, decoded and drawn; None views mean a hole."""

    key: str
    patient: str = ""
    views: dict[str, list[SeriesView]] | None = None
    text: str = ""
    original: str = ""


def build_loader(
    manifest: Manifest,
    data: DataConfig,
    patch_voxels: tuple[int, int, int],
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    rank: int,
    world_size: int,
    start_step: int,
    max_steps: int,
    phrases: PhraseTable | None = None,
) -> Iterable[StudyBatch]:
    """Micro-batches of one rank from global batch `start_step` up to, not including, `max_steps`.

    Each global batch comes as ``accumulation`` consecutive micro-batches with the same ``step``. The views are
    ``global_a``, ``global_b``, … and ``local_a``, …, as many as `data` says, with the same series in the same order.

    Args:
        manifest: the studies to train on, already the training split.
        data: batch sizes, views, workers.
        patch_voxels: (D, H, W) of the model's patches.
        tokenizer: for the reports.
        seed: of the run.
        rank: this process.
        world_size: all processes.
        start_step: first global batch.
        max_steps: global batches in the whole run.
        phrases: to look for in the reports.

    Raises:
        PlanError: batch sizes, processes and studies do not fit together.
        ReadError: while iterating, where more than ``data.max_bad_fraction`` of the samples could not be read.
    """
    source = PlannedSource(
        plan=BatchPlan(manifest.keys, seed, data.global_batch_size),
        shares=shares(data.global_batch_size, data.micro_batch_size, world_size),
        rank=rank,
        start_step=start_step,
        max_steps=max_steps,
    )
    reader = StudyReader(manifest, data, lattice_of(data, patch_voxels), tokenizer, seed, phrases)
    pipeline = wds.DataPipeline(source, wds.map(reader.read), wds.map(reader.collate))
    return DataLoader(
        pipeline,
        batch_size=None,
        num_workers=data.workers,
        prefetch_factor=data.prefetch if data.workers else None,
        persistent_workers=False,
        worker_init_fn=_one_thread,
    )


class StudyReader:
    """The stages behind the plan: decode, draw views, collate."""

    def __init__(
        self,
        manifest: Manifest,
        data: DataConfig,
        lattice: Lattice,
        tokenizer: PreTrainedTokenizerFast,
        seed: int,
        phrases: PhraseTable | None = None,
    ) -> None:
        self.manifest = manifest
        self.data = data
        self.lattice = lattice
        self.tokenizer = tokenizer
        self.seed = seed
        self.phrases = phrases
        self.crops = CropMemory(data.crop_memory_mb * 2**20 if data.crops_per_series else 0)
        self.seen = 0
        self.bad: list[str] = []

    def read(self, micro: MicroPlan) -> tuple[int, list[StudyViews]]:
        """Every study of a micro-batch; a study that cannot be read becomes a hole.

        Raises:
            ReadError: too many holes so far.
        """
        studies = []
        for pick in micro.picks:
            key = self.manifest.samples[pick.row].key
            self.seen += 1
            try:
                studies.append(self.study(key, pick.epoch))
            except (ValueError, OSError) as err:
                # Every reading error of index, contract and codec is a ValueError whose message names shard and study.
                log.warning("study %s left out: %s", key, err)
                self.bad.append(key)
                studies.append(StudyViews(key=key))
                self._check()
        return micro.step, studies

    def study(self, key: str, epoch: int) -> StudyViews:
        """Decode and draw one study; random numbers are keyed by (seed, epoch, study)."""
        data, rng = self.data, keyed_rng(self.seed, epoch, key)
        meta = self.manifest.study(key)
        chosen = np.sort(rng.permutation(len(meta.series))[: data.max_series])
        if chosen.size == 0:
            raise SampleError(f"study {key}: has no series")
        views: dict[str, list[SeriesView]] = {name: [] for name in view_names(data)}
        for row in chosen:
            cropped = self._crops(key, meta.series[row], epoch)
            for name, drawn in views.items():
                drawn.append(retouch(cropped[name], draw_view(data, rng, local=name.startswith("local")), rng))
        original = _diagnostic(meta)
        text = augment_text(original, data, rng) if original else ""
        return StudyViews(key=key, patient=meta.patient, views=views, text=text, original=original)

    def _crops(self, key: str, series: SeriesMeta, epoch: int) -> dict[str, SeriesView]:
        """One crop for each view, from memory or freshly drawn; the same either way."""
        kept = self.data.crops_per_series
        slot = epoch % kept if kept else epoch
        image: SeriesImage | None = None
        crops = {}
        for name in view_names(self.data):
            place = (key, series.name, name, slot)
            cropped = self.crops.get(place)
            if cropped is None:
                if image is None:
                    image = from_sample(series, self.manifest.read(key, f"{series.name}.b2"), series.foreground)
                rng = keyed_rng(self.seed, "crop", slot, key, series.name, name)
                cropped = crop(image, self.lattice, draw_view(self.data, rng, local=name.startswith("local")))
                if kept:
                    # Half the memory; rounded whether it is kept or not, so that what fits in memory changes nothing.
                    cropped = replace(cropped, patches=cropped.patches.astype(np.float16))
                    self.crops.put(place, cropped)
            crops[name] = cropped
        return crops

    def collate(self, item: tuple[int, list[StudyViews]]) -> StudyBatch:
        """Pack the studies of a micro-batch."""
        step, studies = item
        patch_size = int(np.prod(self.lattice.patch_voxels))
        packs = {}
        for name in view_names(self.data):
            rows = [(row, v) for row, study in enumerate(studies) if study.views for v in study.views[name]]
            packs[name] = pack([v for _, v in rows], [row for row, _ in rows], patch_size)
        return StudyBatch(
            step=step,
            keys=[study.key for study in studies],
            weight_B=torch.tensor([float(study.views is not None) for study in studies]),
            patient_B=torch.tensor([stable_hash(s.patient) if s.views else 0 for s in studies], dtype=torch.int64),
            views=packs,
            text=text_batch([s.text for s in studies], self.tokenizer, [s.original for s in studies], self.phrases),
        )

    def _check(self) -> None:
        # Below 20 samples one bad one would already be 5 %.
        if self.seen >= 20 and len(self.bad) > self.data.max_bad_fraction * self.seen:
            listed = ", ".join(self.bad[-10:])
            raise ReadError(
                f"{self.manifest.url}: {len(self.bad)} of {self.seen} samples could not be read, more than "
                f"data.max_bad_fraction={self.data.max_bad_fraction}; the last: {listed}; "
                f"run fm verify url={self.manifest.url}"
            )


class CropMemory:
    """Crops in memory up to a size, the least recently used forgotten first."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit = limit_bytes
        self.size = 0
        self._crops: OrderedDict[tuple[str, str, str, int], SeriesView] = OrderedDict()

    def get(self, place: tuple[str, str, str, int]) -> SeriesView | None:
        """The crop of (study, series, view, slot), or None."""
        if place in self._crops:
            self._crops.move_to_end(place)
        return self._crops.get(place)

    def put(self, place: tuple[str, str, str, int], cropped: SeriesView) -> None:
        """Keep a crop, if it fits at all."""
        self._crops[place] = cropped
        self.size += cropped.patches.nbytes
        while self.size > self.limit:
            _, gone = self._crops.popitem(last=False)
            self.size -= gone.patches.nbytes


def view_names(data: DataConfig) -> list[str]:
    """Names of a study's views, global ones first."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [f"global_{c}" for c in letters[: data.global_views]] + [f"local_{c}" for c in letters[: data.local_views]]


def _diagnostic(meta: StudyMeta) -> str:
    return meta.report.diagnostic if meta.report is not None else ""


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
