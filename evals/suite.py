"""One evaluation: embed, probe, match, judge, and write ``results.json``, ``report.html`` and ``features.parquet``."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from evals.bars import judge
from evals.classify import ProbeCache, run_task
from evals.cohort import Cohort
from evals.embedding import Embedded, embed_cohort, embed_texts, file_hash, read_cohort, read_images
from evals.examples import choose_gallery, make_examples
from evals.features import write_features
from evals.frozen import FrozenEncoder, architecture, fresh, load_frozen
from evals.headers import series_headers, study_headers
from evals.intensity import series_table, study_table
from evals.matching import Gallery, MatchData, build_galleries, run_gallery
from evals.pictures import Picture, picture
from evals.report import render
from evals.results import Example, GalleryResult, Results, Skipped, System, TaskResult
from evals.tables import FeatureTable
from evals.tasks import build_task
from evals.texts import matching_text
from evals.training import read_training
from evals.zero_shot import EmbedTexts, zero_shot
from fm.config.load import plain, read
from fm.config.suite import SuiteConfig, TaskConfig, TaskLevel
from fm.data.index import Manifest
from fm.data.store import Access
from fm.probes.types import Floats, Ints

Progress = Callable[[str, int, int], None]
"""Told the stage, how much of it is done, and how much there is."""

SHOWN = 6
"""Studies pictured in the report beside the examples."""
MAX_SERIES = 4
"""Series pictured per study."""


def evaluate(
    encoder: Path,
    data_url: str,
    run_dir: Path,
    suite: SuiteConfig,
    progress: Progress | None = None,
    access: Access | None = None,
) -> Results:
    """Measure a frozen encoder on the held-out studies of a dataset, beside four baselines.

    Args:
        encoder: folder of an exported encoder.
        data_url: prepared shards; probes are fitted on their train split and scored on their test split.
        run_dir: where ``results.json``, ``report.html`` and ``features.parquet`` are written.
        suite: tasks and statistics.
        progress: told how far it came.
        access: how object storage is read; its defaults where None.

    Raises:
        EncoderError: the folder holds no readable encoder.
        DatasetError: no dataset at the URL, or a damaged one.
        CohortError: a patient stands in train and in test, or no study can be read.
    """
    tell = progress or (lambda stage, done, total: None)
    clock = _Clock()
    trained = load_frozen(encoder)
    manifest = Manifest.open(data_url, access)
    cohort = read_cohort(manifest)
    both, total = [trained, fresh(trained, suite.seed)], len(cohort.studies)
    embedded = embed_cohort(manifest, cohort, both, suite.batch_studies, lambda done: tell("embed", done, total))
    cohort = embedded.cohort
    texts = [matching_text(study) for study in cohort.studies]
    text_NE = embed_texts(trained, texts)
    clock.lap("Embedding")
    # Thousands of small fits: threads cost more than they give, forty times more on a busy machine.
    with threadpool_limits(limits=1):
        tasks, skipped = _run_tasks(cohort, embedded, suite, tell, lambda sentences: embed_texts(trained, sentences))
        clock.lap("Probes")
        retrieval, examples, unmatched = _run_retrieval(cohort, embedded, texts, text_NE, suite, tell)
        skipped += unmatched
        clock.lap("Retrieval")
    run_dir.mkdir(parents=True, exist_ok=True)
    write_features(run_dir / "features.parquet", cohort, embedded.encoders[0], text_NE)
    shown = _shown_keys(cohort)
    pictures = _pictures(manifest, cohort, [*shown, *(e.key for e in examples)])
    clock.lap("Pictures and features")
    facts, run_values = _run_file(run_dir)
    results = Results(
        created_utc=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        commit=str(facts.get("commit") or "not recorded"),
        versions=_versions(),
        encoder=_encoder_facts(encoder, trained),
        dataset=_dataset_facts(manifest, cohort, texts, embedded.unreadable)
        | {"texts_cut": trained.texts_cut, "text_tokens_cut": trained.text_tokens_cut},
        suite=plain(suite),
        bars=judge(suite, tasks, retrieval, skipped),
        tasks=tasks,
        retrieval=retrieval,
        examples=examples,
        skipped=skipped,
        training=read_training(encoder),
        seconds=clock.laps,
        run=run_values,
    )
    results.write(run_dir / "results.json")
    _write_page(run_dir / "report.html", render(results, pictures, shown))
    return results


def _write_page(path: Path, page: str) -> None:
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)


def _run_tasks(
    cohort: Cohort, embedded: Embedded, suite: SuiteConfig, tell: Progress, embed: EmbedTexts
) -> tuple[list[TaskResult], list[Skipped]]:
    systems = SystemFeatures(cohort, embedded)
    cache = ProbeCache(suite)
    tasks: list[TaskResult] = []
    skipped: list[Skipped] = []
    for at, (name, config) in enumerate(suite.tasks.items()):
        task = build_task(name, config, cohort, suite)
        if isinstance(task, Skipped):
            skipped.append(task)
        else:
            prompted = partial(zero_shot, task, embedded.encoders[0].image_NE, embed, suite)
            tasks.append(run_task(task, systems.for_task(config, task.fit_rows), suite, cache, prompted))
        tell("probe", at + 1, len(suite.tasks))
    return tasks, skipped


class SystemFeatures:
    """The features of every system, at study and at series level."""

    def __init__(self, cohort: Cohort, embedded: Embedded) -> None:
        trained, untrained = embedded.encoders
        study, series = TaskLevel.study, TaskLevel.series
        self._dense: dict[TaskLevel, dict[System, Floats]] = {
            study: {System.ENCODER: trained.study_ND, System.UNTRAINED: untrained.study_ND},
            series: {System.ENCODER: trained.probed_PD, System.UNTRAINED: untrained.probed_PD},
        }
        self._tables: dict[TaskLevel, dict[System, FeatureTable]] = {
            study: {
                System.INTENSITY: study_table(cohort, embedded.statistics),
                System.HEADER: study_headers(cohort),
            },
            series: {
                System.INTENSITY: series_table(cohort, embedded.statistics),
                System.HEADER: series_headers(cohort),
            },
        }

    def for_task(self, config: TaskConfig, fit_rows: Ints) -> dict[System, Floats]:
        """Features by system, this encoder first; headers that state the task's answer withheld."""
        pixel = self._tables[config.level][System.INTENSITY]
        header = self._tables[config.level][System.HEADER].without(config.withheld_headers)
        return {
            **self._dense[config.level],
            System.INTENSITY: pixel.filled(fit_rows),
            System.HEADER: header.filled(fit_rows),
        }

    def for_matching(self, fit_rows: Ints) -> dict[System, Floats]:
        """Study features by system, for the maps of retrieval."""
        tables = self._tables[TaskLevel.study]
        return {**self._dense[TaskLevel.study], **{s: table.filled(fit_rows) for s, table in tables.items()}}


def _run_retrieval(
    cohort: Cohort, embedded: Embedded, texts: list[str], text_NE: Floats | None, suite: SuiteConfig, tell: Progress
) -> tuple[list[GalleryResult], list[Example], list[Skipped]]:
    question = "Retrieval between scans and reports"
    if text_NE is None:
        return [], [], [Skipped(name="retrieval", question=question, reason="the encoder came without a tokenizer")]
    if not any(texts):
        return [], [], [Skipped(name="retrieval", question=question, reason="no study has a report")]
    galleries, skipped = build_galleries(cohort, texts, suite)
    systems = SystemFeatures(cohort, embedded)
    found: list[GalleryResult] = []
    for at, gallery in enumerate(galleries):
        data = _match_data(gallery, systems, embedded, texts, text_NE)
        found += run_gallery(gallery, data, cohort, suite)
        tell("match", at + 1, len(galleries))
    chosen = choose_gallery(galleries, suite.bar_region)
    if chosen is None:
        return found, [], skipped
    data = _match_data(chosen, systems, embedded, texts, text_NE)
    return found, make_examples(chosen, data, cohort, suite), skipped


def _match_data(
    gallery: Gallery, systems: SystemFeatures, embedded: Embedded, texts: list[str], text_NE: Floats
) -> MatchData:
    features: Mapping[System, Floats] = systems.for_matching(gallery.train)
    return MatchData(texts=texts, image_NE=embedded.encoders[0].image_NE, text_NE=text_NE, features=features)


def _shown_keys(cohort: Cohort) -> list[str]:
    """Studies to picture: spread over the held-out ones, or over all where none is held out."""
    held = [s for s, test in zip(cohort.studies, cohort.test_N, strict=True) if test] or cohort.studies
    count = min(SHOWN, len(held))
    return [held[round(i * (len(held) - 1) / max(count - 1, 1))].key for i in range(count)]


def _pictures(manifest: Manifest, cohort: Cohort, keys: list[str]) -> dict[str, list[Picture]]:
    studies = {s.key: s for s in cohort.studies}
    found = {}
    for key in dict.fromkeys(keys):
        images = read_images(manifest.read, studies[key])
        pairs = list(zip(studies[key].series, images, strict=True))[:MAX_SERIES]
        found[key] = [picture(meta, image) for meta, image in pairs]
    return found


def _dataset_facts(manifest: Manifest, cohort: Cohort, texts: list[str], unreadable: list[str]) -> dict[str, Any]:
    facts: dict[str, Any] = {"id": manifest.dataset_id, "versions": dict(manifest.versions), "unreadable": unreadable}
    for name, test in (("train", False), ("test", True)):
        rows = [i for i, t in enumerate(cohort.test_N) if bool(t) == test]
        studies = [cohort.studies[i] for i in rows]
        series = [s for study in studies for s in study.series]
        fields = [f"{s.field_strength_t:g} T" if s.field_strength_t is not None else "unknown" for s in series]
        facts[name] = {
            "patients": len({s.patient for s in studies}),
            "studies": len(studies),
            "series": len(series),
            "reports": sum(bool(texts[i]) for i in rows),
            "region": dict(Counter(s.region for s in studies)),
            "sex": dict(Counter(s.sex or "unknown" for s in studies)),
            "contrast": dict(Counter(s.contrast.value for s in series)),
            "vendor": dict(Counter(s.vendor or "unknown" for s in series)),
            "field strength": dict(Counter(fields)),
        }
    return facts


def _encoder_facts(folder: Path, encoder: FrozenEncoder) -> dict[str, Any]:
    hashes = [file_hash(path) for path in sorted(folder.glob("*.safetensors"))]
    return {
        "name": _encoder_name(folder.resolve()),
        "weights_sha256": hashes[0] if len(hashes) == 1 else ",".join(hashes),
        **architecture(encoder),
    }


def _encoder_name(folder: Path) -> str:
    """What a reader calls an encoder: the run that exported it, with the demo's name where the run is one's stage."""
    run = folder.parent if folder.name == "export" else folder
    return f"{run.parent.name}/{run.name}" if run.name == "pretrain" else run.name


def _run_file(run_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts and configuration of the run folder; empty where evaluate was called from Python without one."""
    path = run_dir / "run.yaml"
    return read(path) if path.is_file() else ({}, {})


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in ("fm", "torch", "transformers", "scikit-learn", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "from its clone"
    return found


class _Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 2)
        self._last = now
