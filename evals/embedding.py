"""Frozen features of every study: one pass over the shards feeds encoder, untrained twin and pixel baseline."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from evals.cohort import Cohort, CohortError
from evals.intensity import series_statistics
from fm.data.codec import CodecError
from fm.data.index import DatasetError, Manifest
from fm.data.sample import Agent, Contrast, SampleError, StudyMeta
from fm.data.volume import SeriesImage, from_sample
from fm.models.encoder import Encoder
from fm.probes.types import Floats

log = logging.getLogger(__name__)

Progress = Callable[[int], None]


@dataclass(kw_only=True, slots=True)
class Embeddings:
    """Features of one encoder, rows as in the cohort."""

    study_ND: Floats
    """(N, D) what probes read, see :class:`fm.models.encoder.StudyFeatures`."""
    series_MD: Floats
    """(M, D) the same of each series alone, its contrast and contrast agent hidden from the encoder."""
    image_NE: Floats
    """(N, E) in the space shared with texts, length 1."""


@dataclass(kw_only=True, slots=True)
class Embedded:
    """What one pass over the shards gives."""

    cohort: Cohort
    """Without the studies that could not be read."""
    encoders: list[Embeddings]
    """In the order of the encoders given."""
    statistics: list[Floats]
    """(M) pixel statistics of each series."""
    unreadable: list[str] = field(default_factory=list)
    """One line per study that could not be read."""
    seconds: float = 0.0


def read_cohort(manifest: Manifest) -> Cohort:
    """Metadata of the train and test studies of a dataset, in the manifest's order.

    Raises:
        CohortError: no study of these splits, a patient in both, or an index that names other patients.
        DatasetError: a JSON member that is missing or damaged.
    """
    samples = [s for s in manifest.samples if s.split in ("train", "test")]
    studies = [manifest.study(s.key) for s in samples]
    for sample, study in zip(samples, studies, strict=True):
        if sample.patient != study.patient:
            raise CohortError(
                f"study {study.key}: the index and the study name different patients, so the split cannot be trusted; "
                "prepare the data again"
            )
    return Cohort(
        studies=studies,
        test_N=np.array([s.split == "test" for s in samples], dtype=bool),
        dataset_id=manifest.dataset_id,
    )


def read_images(manifest: Manifest, study: StudyMeta) -> list[SeriesImage]:
    """The decoded series of a study, in order.

    Raises:
        DatasetError, CodecError, SampleError: a member that is missing or damaged.
    """
    return [from_sample(series, manifest.read(study.key, f"{series.name}.b2")) for series in study.series]


def embed_cohort(
    manifest: Manifest,
    cohort: Cohort,
    encoders: Sequence[Encoder],
    batch_studies: int,
    progress: Progress | None = None,
) -> Embedded:
    """Features of every study under each encoder.

    A study that cannot be read is left out and named; nothing shifts.

    Args:
        manifest: where the voxels lie.
        cohort: the studies.
        encoders: this encoder and those it is held against.
        batch_studies: studies encoded at once.
        progress: told how many studies are done.
    """
    start = time.monotonic()
    statistics: dict[str, list[Floats]] = {}
    parts: list[list[_Part]] = [[] for _ in encoders]
    unreadable: list[str] = []
    for first in range(0, len(cohort.studies), batch_studies):
        batch: list[list[SeriesImage]] = []
        for study in cohort.studies[first : first + batch_studies]:
            try:
                images = read_images(manifest, study)
            except (DatasetError, CodecError, SampleError) as err:
                unreadable.append(f"study {study.key}: {err}")
                log.warning("left out: study %s: %s", study.key, err)
                continue
            statistics[study.key] = [series_statistics(image) for image in images]
            batch.append(images)
        if batch:
            for encoder, found in zip(encoders, parts, strict=True):
                found.append(_encode(encoder, batch))
        if progress is not None:
            progress(min(first + batch_studies, len(cohort.studies)))
    left = cohort.without(s.key for s in cohort.studies if s.key not in statistics) if unreadable else cohort
    return Embedded(
        cohort=left,
        encoders=[_join(found) for found in parts],
        statistics=[values for study in left.studies for values in statistics[study.key]],
        unreadable=unreadable,
        seconds=time.monotonic() - start,
    )


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(kw_only=True, slots=True)
class _Part:
    study: Floats
    series: Floats
    image: Floats


def _encode(encoder: Encoder, studies: Sequence[Sequence[SeriesImage]]) -> _Part:
    found = encoder.encode_studies(studies)
    blind = encoder.encode_studies([[_without_condition(image) for image in images] for images in studies])
    return _Part(
        study=found.study.astype(np.float64),
        series=blind.series.astype(np.float64),
        image=found.projected.astype(np.float64),
    )


def _without_condition(image: SeriesImage) -> SeriesImage:
    """The same voxels, contrast and contrast agent unknown: told, they would answer the sequence task."""
    return replace(image, contrast=Contrast.OTHER, agent=Agent.UNKNOWN)


def _join(parts: Sequence[_Part]) -> Embeddings:
    if not parts:
        return Embeddings(study_ND=np.zeros((0, 1)), series_MD=np.zeros((0, 1)), image_NE=np.zeros((0, 1)))
    return Embeddings(
        study_ND=np.concatenate([p.study for p in parts]),
        series_MD=np.concatenate([p.series for p in parts]),
        image_NE=np.concatenate([p.image for p in parts]),
    )
