"""Frozen features of every study: one pass over the shards feeds encoder, untrained twin and pixel baseline."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from evals.cohort import Cohort, CohortError, probed_series
from evals.frozen import FrozenEncoder
from evals.intensity import series_statistics
from evals.workers import in_workers
from fm.data.codec import CodecError
from fm.data.index import DatasetError, Manifest
from fm.data.sample import Agent, Contrast, SampleError, StudyMeta
from fm.data.sweep import Read, Sweep, read_studies
from fm.data.volume import SeriesImage, from_sample
from fm.probes.types import Floats

log = logging.getLogger(__name__)

Progress = Callable[[int], None]
TEXTS = 64
"""Texts embedded at once."""


@dataclass(kw_only=True, slots=True)
class Embeddings:
    """Features of one encoder, rows as in the cohort."""

    study_ND: Floats
    """(N, D) what probes read, see :class:`fm.models.encoder.StudyFeatures`."""
    series_MD: Floats
    """(M, D) the same of each series alone."""
    probed_PD: Floats
    """(P, D) the same of each study's probed series, its contrast and contrast agent hidden from the encoder."""
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


def read_cohort(manifest: Manifest) -> Cohort:
    """Metadata of the train and test studies of a dataset, in the manifest's order.

    Raises:
        CohortError: no study of these splits, a patient or a known duplicate in both, or an index that names other
            patients.
        DatasetError: a JSON member that is missing or damaged.
    """
    samples = [s for s in manifest.samples if s.split in ("train", "test")]
    studies = read_studies(manifest, [s.key for s in samples])
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
        duplicates=_duplicates(manifest),
    )


def _duplicates(manifest: Manifest) -> list[tuple[str, str]]:
    """Pairs of studies that fm prepare found to share a volume."""
    table = manifest.table("duplicates.parquet")
    if table is None:
        return []
    return list(zip(table["study"].to_pylist(), table["other_study"].to_pylist(), strict=True))


def read_images(read: Read, study: StudyMeta) -> list[SeriesImage]:
    """The decoded series of a study, in order.

    Args:
        read: gives the bytes of its members.
        study: which series there are.

    Raises:
        DatasetError, CodecError, SampleError: a member that is missing or damaged.
    """
    return [from_sample(series, read(study.key, f"{series.name}.b2")) for series in study.series]


def embed_cohort(
    manifest: Manifest,
    cohort: Cohort,
    encoders: Sequence[FrozenEncoder],
    batch_studies: int,
    progress: Progress | None = None,
) -> Embedded:
    """Features of every study under each encoder.

    Voxels come in the order of the shards, a few batches ahead of their turn. A study that cannot be read is left out
    and named; nothing shifts.

    Args:
        manifest: where the voxels lie.
        cohort: the studies.
        encoders: this encoder and those it is held against.
        batch_studies: studies encoded at once.
        progress: told how many studies are done.
    """
    batches = [cohort.studies[i : i + batch_studies] for i in range(0, len(cohort.studies), batch_studies)]
    sweep = Sweep(manifest, [[study.key for study in batch] for batch in batches])
    found: list[_Batch] = []
    done = 0
    for studies, batch in zip(
        batches, in_workers(encoders[0], lambda batch: _embed_batch(sweep, encoders, batch), batches), strict=True
    ):
        found.append(batch)
        done += len(studies)
        if progress is not None:
            progress(done)
    gone = [key for batch in found for key in batch.unreadable]
    return Embedded(
        cohort=cohort.without(gone) if gone else cohort,
        encoders=[_join([batch.parts[i] for batch in found if batch.parts]) for i in range(len(encoders))],
        statistics=[values for batch in found for values in batch.statistics],
        unreadable=[f"study {key}: {why}" for batch in found for key, why in batch.unreadable.items()],
    )


def embed_texts(encoder: FrozenEncoder, texts: Sequence[str]) -> Floats | None:
    """(N, E) texts in the space shared with images, zeros for an empty one; None where the encoder has no tokenizer."""
    if encoder.tokenizer is None:
        return None
    batches = [texts[i : i + TEXTS] for i in range(0, len(texts), TEXTS)]
    return np.concatenate([v.astype(np.float64) for v in in_workers(encoder, encoder.embed_text, batches)])


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(kw_only=True, slots=True)
class _Part:
    study: Floats
    series: Floats
    probed: Floats
    image: Floats


@dataclass(kw_only=True, slots=True)
class _Batch:
    parts: list[_Part]
    """One per encoder; empty where no study of the batch could be read."""
    statistics: list[Floats]
    unreadable: dict[str, str]


def _embed_batch(sweep: Sweep, encoders: Sequence[FrozenEncoder], studies: Sequence[StudyMeta]) -> _Batch:
    images: list[list[SeriesImage]] = []
    probed: list[SeriesImage] = []
    unreadable: dict[str, str] = {}
    for study in studies:
        try:
            images.append(read_images(sweep.take(study.key), study))
            if (at := probed_series(study)) is not None:
                probed.append(images[-1][at])
        except (DatasetError, CodecError, SampleError) as err:
            unreadable[study.key] = str(err)
            log.warning("left out: study %s: %s", study.key, err)
    return _Batch(
        parts=[_encode(encoder, images, probed) for encoder in encoders] if images else [],
        statistics=[series_statistics(image) for study_images in images for image in study_images],
        unreadable=unreadable,
    )


def _encode(encoder: FrozenEncoder, studies: Sequence[Sequence[SeriesImage]], probed: Sequence[SeriesImage]) -> _Part:
    found = encoder.encode_studies(studies)
    blind = encoder.encode_studies([[_without_condition(image)] for image in probed])
    return _Part(
        study=found.study.astype(np.float64),
        series=found.series.astype(np.float64),
        probed=blind.series.astype(np.float64),
        image=found.projected.astype(np.float64),
    )


def _without_condition(image: SeriesImage) -> SeriesImage:
    """The same voxels, contrast and contrast agent unknown: told, they would answer the sequence task."""
    return replace(image, contrast=Contrast.OTHER, agent=Agent.UNKNOWN)


def _join(parts: Sequence[_Part]) -> Embeddings:
    if not parts:
        none = np.zeros((0, 1))
        return Embeddings(study_ND=none, series_MD=none, probed_PD=none, image_NE=none)
    return Embeddings(
        study_ND=np.concatenate([p.study for p in parts]),
        series_MD=np.concatenate([p.series for p in parts]),
        probed_PD=np.concatenate([p.probed for p in parts]),
        image_NE=np.concatenate([p.image for p in parts]),
    )
