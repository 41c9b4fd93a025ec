"""Image–text retrieval on the test split, in several galleries, beside matchers that never saw a voxel's place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from evals.cohort import Cohort, word
from evals.results import GalleryResult, MatchScore, Skipped, System
from fm.config.suite import SuiteConfig
from fm.data.sample import StudyMeta
from fm.probes.bootstrap import Interval, interval, patient_weights
from fm.probes.retrieval import chance, mean_reciprocal_rank, median_rank, recall, worst_ranks
from fm.probes.ridge import fit_ridge
from fm.probes.types import Bools, Floats, Ints

KS = (1, 5, 10)
LEAST = 10
"""Fewer test reports make no gallery, fewer training reports no map."""
IMAGE_TO_TEXT, TEXT_TO_IMAGE = "image→text", "text→image"


@dataclass(kw_only=True, slots=True)
class MatchData:
    """What retrieval works on; rows are the cohort's studies."""

    texts: list[str]
    """(N,) matching text of each study, '' where there is none."""
    image_NE: Floats
    """(N, E) the encoder's study embeddings in the shared space."""
    text_NE: Floats
    """(N, E) the encoder's text embeddings in the shared space; rows without a text are not read."""
    features: Mapping[System, Floats]
    """(N, D) features that go through a ridge map into the reports' word space, for every system."""


@dataclass(kw_only=True, slots=True)
class Gallery:
    """Test studies that are matched with each other's reports, and the training studies of the same kind."""

    name: str
    title: str
    region: str | None
    normals: bool
    rows: Ints
    train: Ints
    relevant: Bools
    """(G, G) symmetric."""
    relevance: list[str]
    """(N,) word of every study of the cohort: equal words are relevant to each other."""


def relevance_words(cohort: Cohort, label: str) -> list[str]:
    """(N,) findings of each study; its own key where it has no such label, so that only its own report is a hit."""
    found = [word(s.labels.get(label)) for s in cohort.studies]
    return [f"={w}" if w is not None else f"#{s.key}" for w, s in zip(found, cohort.studies, strict=True)]


def build_galleries(cohort: Cohort, texts: list[str], suite: SuiteConfig) -> tuple[list[Gallery], list[Skipped]]:
    """Galleries of the test split: all, each region, each region without normals; and those too small to be one."""
    relevance = relevance_words(cohort, suite.relevance_label)
    told = {s.key for s, text in zip(cohort.studies, texts, strict=True) if text}
    regions = sorted({s.region for s in cohort.studies}, key=lambda region: (region != suite.bar_region, region))
    wanted: list[tuple[str, str, str | None, bool]] = []
    if len(regions) > 1:
        wanted.append(("all", "All studies", None, True))
    for region in regions:
        wanted.append((region, f"Within region: {region}", region, True))
        if any(s.region == region and word(s.labels.get(suite.lesion_label)) == "0" for s in cohort.studies):
            wanted.append((f"{region}_without_normals", f"Within region: {region}, without normals", region, False))
    galleries, skipped = [], []
    for name, title, within, normals in wanted:
        keep = _member(told, within, normals, suite.lesion_label)
        rows, train = cohort.rows(keep, test=True), cohort.rows(keep, test=False)
        if len(rows) < LEAST:
            reason = f"{len(rows)} test studies have a report; a gallery needs {LEAST}"
            skipped.append(Skipped(name=f"retrieval_{name}", question=f"Retrieval. {title}", reason=reason))
            continue
        words = np.array([relevance[i] for i in rows])
        galleries.append(
            Gallery(
                name=name,
                title=title,
                region=within,
                normals=normals,
                rows=rows,
                train=train,
                relevant=words[:, None] == words[None, :],
                relevance=relevance,
            )
        )
    return galleries, skipped


def run_gallery(gallery: Gallery, data: MatchData, cohort: Cohort, suite: SuiteConfig) -> list[GalleryResult]:
    """Both directions of one gallery; every system but the encoder's own space goes through a ridge map.

    The map leads from the system's features to the TF-IDF space of the reports and is learnt on the training studies of
    the same gallery, its penalty chosen by retrieval among held-out training patients.
    """
    own = np.asarray(data.image_NE[gallery.rows] @ data.text_NE[gallery.rows].T, dtype=np.float64)
    matrices: list[tuple[System, bool, Floats]] = [(System.ENCODER, False, own)]
    matrices += [(system, True, scores) for system, scores in _mapped(gallery, data, cohort, suite).items()]
    patients = [cohort.studies[i].patient for i in gallery.rows]
    weights_RQ = patient_weights(patients, suite.bootstrap_draws, suite.seed)
    results = []
    for direction in (IMAGE_TO_TEXT, TEXT_TO_IMAGE):
        scores = []
        reference: Floats | None = None
        for system, through_map, matrix in matrices:
            ranks = worst_ranks(matrix if direction == IMAGE_TO_TEXT else matrix.T, gallery.relevant)
            score = _score(system, through_map, ranks, weights_RQ, suite.confidence)
            at_5 = recall(ranks, 5, weights_RQ)
            if reference is None:
                reference = at_5
            else:
                score.recall_difference = interval(reference - at_5, suite.confidence)
            scores.append(score)
        assert reference is not None
        scores.append(_chance(gallery, reference, suite.confidence))
        results.append(
            GalleryResult(
                gallery=gallery.name,
                title=gallery.title,
                direction=direction,
                size=len(gallery.rows),
                distinct=len({gallery.relevance[i] for i in gallery.rows}),
                small=len(gallery.rows) < suite.min_gallery,
                region=gallery.region,
                normals=gallery.normals,
                scores=scores,
            )
        )
    return results


def _mapped(gallery: Gallery, data: MatchData, cohort: Cohort, suite: SuiteConfig) -> dict[System, Floats]:
    train, rows = gallery.train, gallery.rows
    if len(train) < LEAST:
        return {}
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2)
    try:
        train_texts = words.fit_transform([data.texts[i] for i in train]).toarray()
    except ValueError:
        # No word occurs in two training reports: there is no space to map into.
        return {}
    test_texts = words.transform([data.texts[i] for i in rows]).toarray()
    relevance = [gallery.relevance[i] for i in train]
    patients = [cohort.studies[i].patient for i in train]
    return {
        system: fit_ridge(features[train], train_texts, relevance, patients, suite.ridge_penalties, suite.folds).match(
            features[rows], test_texts
        )
        for system, features in data.features.items()
    }


def _score(system: System, through_map: bool, ranks: Ints, weights_RQ: Ints, confidence: float) -> MatchScore:
    return MatchScore(
        system=system,
        through_map=through_map,
        recall={str(k): interval(recall(ranks, k, weights_RQ), confidence) for k in KS},
        median_rank=interval(median_rank(ranks, weights_RQ), confidence),
        mrr=interval(mean_reciprocal_rank(ranks, weights_RQ), confidence),
    )


def _chance(gallery: Gallery, reference: Floats, confidence: float) -> MatchScore:
    """Chance under the gallery's own relevance, exact; a constant, so only the encoder's draws make its difference."""
    exact = chance(gallery.relevant.sum(axis=1), len(gallery.rows), KS)
    return MatchScore(
        system=System.CHANCE,
        through_map=False,
        recall={str(k): Interval(value=exact.recall[k], low=None, high=None) for k in KS},
        median_rank=Interval(value=exact.median_rank, low=None, high=None),
        mrr=Interval(value=exact.mrr, low=None, high=None),
        recall_difference=interval(reference - exact.recall[5], confidence),
    )


def _member(told: set[str], region: str | None, normals: bool, lesion_label: str) -> Callable[[StudyMeta], bool]:
    def keep(study: StudyMeta) -> bool:
        if study.key not in told or (region is not None and study.region != region):
            return False
        return normals or word(study.labels.get(lesion_label)) != "0"

    return keep
