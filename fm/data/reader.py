"""The loader: planned batches by ranged reads, as a webdataset pipeline.

The first stage yields the plan of this rank's micro-batches, worker *w* of *n* every *n*th; fetching, views and
collation follow as ordinary webdataset stages. A sample that cannot be read leaves a hole (no tokens, weight zero) and
shifts nothing.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import webdataset as wds
from numpy.typing import NDArray
from torch.utils.data import DataLoader, get_worker_info
from transformers import PreTrainedTokenizerFast

from fm.batch import Late, StudyBatch
from fm.config.data import DataConfig, Order, Place, Sections
from fm.config.errors import UserError
from fm.data.collate import pack
from fm.data.index import DatasetError, Manifest, parse_study
from fm.data.memory import CropMemory
from fm.data.phrases import PhraseTable
from fm.data.plan import BatchPlan, Pick, Shares, keyed_rng, plan_of, shares, stable_hash
from fm.data.sample import SampleError, SeriesMeta, StudyMeta
from fm.data.shared import anchor_of, centre_of, follow
from fm.data.sweep import Fetched, Read
from fm.data.text import augment_text, text_batch
from fm.data.views import Draw, Lattice, SeriesView, crop, draw_view, draw_views, image_of, lattice_of, retouch

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
class SeriesSeen:
    """One drawn series, by view."""

    series: SeriesMeta
    crops: dict[str, SeriesView]
    """All tissue tokens of each crop."""
    touches: dict[str, Draw] = field(default_factory=dict)
    """What each crop was touched with."""
    views: dict[str, SeriesView] = field(default_factory=dict)
    """What the network gets."""


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
        plan=plan_of(manifest, data, seed),
        shares=shares(data.global_batch_size, data.micro_batch_size, world_size),
        rank=rank,
        start_step=start_step,
        max_steps=max_steps,
    )
    reader = StudyReader(manifest, data, lattice_of(data, patch_voxels), tokenizer, seed, phrases)
    # A loader process shuffles and reads its share of the buffer: so many of its micro-batches at once.
    group = max(1, data.stream_buffer // (world_size * max(1, data.workers) * data.micro_batch_size))
    reader.together = group if data.order is Order.stream else 1
    pipeline = wds.DataPipeline(source, reader.fetch, wds.map(reader.batch))
    return StudyLoader(
        DataLoader(
            pipeline,
            batch_size=None,
            num_workers=data.workers,
            prefetch_factor=data.prefetch if data.workers else None,
            persistent_workers=False,
            worker_init_fn=_one_thread,
        )
    )


class StudyLoader:
    """The loader; it raises here, in one line, what a loader process would say with its traceback."""

    def __init__(self, loader: Iterable[StudyBatch | ReadError]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[StudyBatch]:
        """Micro-batches in order."""
        for item in self.loader:
            if isinstance(item, ReadError):
                raise item
            yield item


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
        self.late = data.augment_on is Place.device
        self.together = 1
        """Micro-batches that are fetched at once."""
        self.seen = 0
        self.bad: list[str] = []

    def fetch(self, micros: Iterable[MicroPlan]) -> Iterator[tuple[MicroPlan, Read]]:
        """Each micro-batch with the means to read it.

        From object storage, and in stream order, its bytes have come already: a thread is one group of micro-batches
        ahead of the decoding.
        """
        if self.manifest.store.local and self.data.order is Order.shuffled:
            for micro in micros:
                yield micro, self.manifest.read
            return
        under_way: tuple[list[MicroPlan], Future[Fetched]] | None = None
        rest = iter(micros)
        with ThreadPoolExecutor(1, thread_name_prefix="ahead") as ahead:
            while (group := list(itertools.islice(rest, self.together))) or under_way is not None:
                now, under_way = under_way, (group, ahead.submit(self._fetched, group)) if group else None
                if now is not None:
                    read = now[1].result()
                    yield from ((micro, read) for micro in now[0])

    def _fetched(self, group: Sequence[MicroPlan]) -> Fetched:
        picks = [(self.manifest.key(pick.row), pick.visit) for micro in group for pick in micro.picks]
        fetched = Fetched(self.manifest)
        if self.data.order is Order.stream:
            keys = [key for key, _ in picks]
            whole = [(k, m) for k in keys for m in self.manifest.sample(k).members]
            fetched.fetch([(k, m) for k, m in whole if not m.endswith(".seg.b2")])
            return fetched
        fetched.fetch([(key, "json") for key, _ in picks])
        voxels = []
        for key, visit in picks:
            try:
                meta = parse_study(key, fetched(key, "json"))
            except (DatasetError, SampleError):
                continue  # it is met again, and counted, when its turn comes
            for row in self._chosen(meta, visit, keyed_rng(self.seed, visit, key)):
                places = [self._place(key, meta.series[row], name, visit) for name in view_names(self.data)]
                if not all(place in self.crops for place in places):
                    voxels.append((key, f"{meta.series[row].name}.b2"))
        fetched.fetch(voxels)
        return fetched

    def batch(self, item: tuple[MicroPlan, Read]) -> StudyBatch | ReadError:
        """A micro-batch, decoded, drawn and packed; the error that ends the run where too many samples are bad."""
        micro, read = item
        try:
            return self.collate(micro.step, self.studies(micro, read))
        except ReadError as err:
            return err

    def studies(self, micro: MicroPlan, read: Read) -> list[StudyViews]:
        """Every study of a micro-batch; a study that cannot be read becomes a hole.

        Raises:
            ReadError: too many holes so far.
        """
        studies = []
        for pick in micro.picks:
            key = self.manifest.key(pick.row)
            self.seen += 1
            try:
                studies.append(self.study(key, pick.visit, read))
            except (ValueError, OSError) as err:
                # Every reading error of index, contract and codec is a ValueError whose message names shard and study.
                log.warning("study %s left out: %s", key, err)
                self.bad.append(key)
                studies.append(StudyViews(key=key))
                self._check()
        return studies

    def study(self, key: str, visit: int, read: Read) -> StudyViews:
        """Decode and draw one study; random numbers are keyed by (seed, visit, study)."""
        data, rng = self.data, keyed_rng(self.seed, visit, key)
        meta = parse_study(key, read(key, "json"))
        views: dict[str, list[SeriesView]] = {name: [] for name in view_names(data)}
        for seen in self.see(meta, visit, read, rng, late=True):
            for name, view in seen.views.items():
                views[name].append(view)
        original = _diagnostic(meta)
        text = augment_text(self._section(meta, visit) or original, data, rng) if original else ""
        return StudyViews(key=key, patient=meta.patient, views=views, text=text, original=original)

    def _section(self, meta: StudyMeta, visit: int) -> str:
        """The section of the report that is drawn; '' for all of them."""
        if self.data.report_sections is Sections.joined or meta.report is None:
            return ""
        present = [text for text in (meta.report.findings, meta.report.impression) if text]
        return present[int(keyed_rng(self.seed, "section", visit, meta.key).integers(len(present)))] if present else ""

    def see(
        self, meta: StudyMeta, visit: int, read: Read, rng: np.random.Generator, *, late: bool = False
    ) -> Iterator[SeriesSeen]:
        """The views of the drawn series of a study; `rng` is that of the study and its visit.

        With `late`, gain and noise are only noted, for :func:`fm.data.collate.pack`.
        """
        chosen = self._chosen(meta, visit, rng)
        if chosen.size == 0:
            raise SampleError(f"study {meta.key}: has no series")
        offsets: dict[tuple[int, str], tuple[float, float, float]] = {}
        for row in chosen:
            series = meta.series[row]
            seen = SeriesSeen(series=series, crops=self._crops(meta, series, visit, read))
            for name, cropped in seen.crops.items():
                touch = draw_view(self.data, rng, local=name.startswith("local"))
                if self.data.cross_sequence:
                    place = (series.frame_of_reference, name)
                    touch = replace(touch, offset_mm=offsets.setdefault(place, touch.offset_mm))
                seen.touches[name] = touch
                seen.views[name] = retouch(cropped, touch, rng, late=late)
            yield seen

    def _chosen(self, meta: StudyMeta, visit: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Rows of the series that are drawn, at most ``max_series``; the first numbers of the study's generator."""
        order = rng.permutation(len(meta.series))
        if weights := self.data.contrast_weights:
            # The largest of u^(1/w) are a weighted draw without replacement (Efraimidis and Spirakis 2006).
            drawn = keyed_rng(self.seed, "series", visit, meta.key).random(len(meta.series))
            odds = np.array([weights.get(series.contrast, 1.0) for series in meta.series])
            order = np.argsort(-(drawn ** (1 / odds)), kind="stable")
        return np.sort(order[: self.data.max_series])

    def _place(self, key: str, series: SeriesMeta, name: str, visit: int) -> tuple[str, str, str, int]:
        kept = self.data.crops_per_series
        return key, series.name, name, visit % kept if kept else visit

    def draws(self, meta: StudyMeta, series: SeriesMeta, visit: int) -> dict[str, Draw]:
        """Where the crops of a series lie, by view: where its own numbers say, or where its anchor's are."""
        names, slot = view_names(self.data), self._place(meta.key, series, "", visit)[3]
        drawn = draw_views(self.data, series, names, (self.seed, "crop", slot, meta.key, series.name))
        if not self.data.cross_sequence:
            return drawn
        anchor = anchor_of(series, meta.series)
        wanted = draw_views(self.data, anchor, names, (self.seed, "crop", slot, meta.key, anchor.name))
        return follow(drawn, wanted, anchor, series)

    def _crops(self, meta: StudyMeta, series: SeriesMeta, visit: int, read: Read) -> dict[str, SeriesView]:
        """One crop for each view, from memory or freshly drawn; the same either way."""
        places = {name: self._place(meta.key, series, name, visit) for name in view_names(self.data)}
        crops = {name: kept for name, place in places.items() if (kept := self.crops.get(place)) is not None}
        if len(crops) == len(places):
            return crops
        missing = {name: draw for name, draw in self.draws(meta, series, visit).items() if name not in crops}
        image = image_of(series, read(meta.key, f"{series.name}.b2"), self.lattice, list(missing.values()))
        if self.data.cross_sequence:
            image.centre_mm = centre_of(anchor_of(series, meta.series))
        for name, draw in missing.items():
            cropped = crop(image, self.lattice, draw, late=self.late)
            if self.data.crops_per_series:
                # Half the memory; rounded whether it is kept or not, so that what fits in memory changes nothing.
                cropped = replace(cropped, patches=cropped.patches.astype(np.float16))
                self.crops.put(places[name], cropped)
            crops[name] = cropped
        return {name: crops[name] for name in places}

    def collate(self, step: int, studies: Sequence[StudyViews]) -> StudyBatch:
        """Pack the studies of a micro-batch."""
        patch_size = int(np.prod(self.lattice.patch_voxels))
        packs, late = {}, {}
        for name in view_names(self.data):
            rows = [(row, v) for row, study in enumerate(studies) if study.views for v in study.views[name]]
            packs[name] = pack([v for _, v in rows], [row for row, _ in rows], patch_size, late=self.late)
            late[name] = [v.late or Late() for _, v in rows]
        return StudyBatch(
            step=step,
            keys=[study.key for study in studies],
            weight_B=torch.tensor([float(study.views is not None) for study in studies]),
            patient_B=torch.tensor([stable_hash(s.patient) if s.views else 0 for s in studies], dtype=torch.int64),
            views=packs,
            text=text_batch([s.text for s in studies], self.tokenizer, [s.original for s in studies], self.phrases),
            late=late if self.late else {},
        )

    def _check(self) -> None:
        limit = self.data.max_bad_fraction
        # Below 20 samples one bad one would already be 5 %.
        if (self.seen >= 20 or limit == 0) and len(self.bad) > limit * self.seen:
            listed = list(dict.fromkeys(self.bad))
            log.error("samples that could not be read: %s", ", ".join(listed))
            raise ReadError(
                f"{self.manifest.url}: {len(self.bad)} of {self.seen} samples could not be read, more than "
                f"data.max_bad_fraction={limit}: {', '.join(listed[:20])}{' …' if len(listed) > 20 else ''}; "
                f"run fm verify url={self.manifest.url}"
            )


def view_names(data: DataConfig) -> list[str]:
    """Names of a study's views, global ones first."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [f"global_{c}" for c in letters[: data.global_views]] + [f"local_{c}" for c in letters[: data.local_views]]


def _diagnostic(meta: StudyMeta) -> str:
    return meta.report.diagnostic if meta.report is not None else ""


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
