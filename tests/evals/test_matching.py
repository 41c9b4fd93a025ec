from __future__ import annotations

import numpy as np
import pytest

from evals.bars import judge
from evals.cohort import Cohort
from evals.examples import choose_gallery, make_examples
from evals.matching import IMAGE_TO_TEXT, MatchData, build_galleries, relevance_words, run_gallery
from evals.results import GalleryResult, MatchScore, System
from fm.config.suite import SuiteConfig
from fm.data.sample import StudyMeta

KINDS = ["tumour.left", "tumour.right", "stroke.left", "stroke.right", "cyst.left", "cyst.right", "none", "none"]
SUITE = SuiteConfig(bootstrap_draws=200, folds=3, examples=4, min_gallery=50)


def cohort(count: int = 240) -> Cohort:
    studies = []
    for i in range(count):
        kind = KINDS[(i * 5 + i // 7) % 8]
        labels = {"findings": kind, "lesion": 0 if kind == "none" else 1}
        region = "head" if i % 3 else "abdomen"
        studies.append(StudyMeta(key=f"s{i}", patient=f"p{i // 2}", region=region, series=[], labels=labels))
    return Cohort(studies=studies, test_N=(np.arange(count) // 2) % 2 == 1)


def words(some: Cohort) -> list[str]:
    found = [str(s.labels["findings"]).replace(".", " on the ") for s in some.studies]
    return [f"There is {kind}. Item {i % 9}." for i, kind in enumerate(found)]


def data(some: Cohort, image: np.ndarray, text: np.ndarray) -> MatchData:
    rng = np.random.default_rng(0)
    kinds = [KINDS.index(str(s.labels["findings"])) for s in some.studies]
    telling = np.eye(8)[kinds] + 0.1 * rng.normal(size=(len(kinds), 8))
    features = {
        System.ENCODER: telling,
        System.UNTRAINED: rng.normal(size=(len(kinds), 5)),
        System.HEADER: rng.normal(size=(len(kinds), 3)),
    }
    return MatchData(texts=words(some), image_NE=image, text_NE=text, features=features)


def one_hot(some: Cohort) -> np.ndarray:
    return np.eye(8)[[KINDS.index(str(s.labels["findings"])) for s in some.studies]]


def score(result: GalleryResult, system: System, mapped: bool) -> MatchScore:
    return next(s for s in result.scores if s.system is system and s.through_map is mapped)


def test_galleries_are_all_each_region_and_each_region_without_normals() -> None:
    some = cohort()
    galleries, skipped = build_galleries(some, words(some), SUITE)
    assert [g.name for g in galleries] == ["all", "head", "head_without_normals", "abdomen", "abdomen_without_normals"]
    assert not skipped
    assert all(some.test_N[g.rows].all() and not some.test_N[g.train].any() for g in galleries)
    head = galleries[1]
    assert {some.studies[i].region for i in head.rows} == {"head"}
    assert {some.studies[i].labels["lesion"] for i in galleries[2].rows} == {1}


def test_studies_without_a_report_are_neither_queries_nor_gallery() -> None:
    some = cohort()
    texts = words(some)
    texts[int(np.flatnonzero(some.test_N)[0])] = ""
    galleries, _ = build_galleries(some, texts, SUITE)
    assert len(galleries[0].rows) == some.test_N.sum() - 1


def test_without_the_label_only_the_own_report_is_relevant() -> None:
    some = cohort()
    assert len(set(relevance_words(some, "findings"))) == 7
    assert len(set(relevance_words(some, "absent"))) == 240
    galleries, _ = build_galleries(some, words(some), SuiteConfig(relevance_label="absent"))
    assert (galleries[0].relevant == np.eye(len(galleries[0].rows), dtype=bool)).all()


def test_small_groups_make_no_gallery_and_say_so() -> None:
    some = cohort(16)
    galleries, skipped = build_galleries(some, words(some), SUITE)
    assert not galleries
    assert "a gallery needs 10" in skipped[0].reason


def test_a_perfect_encoder_hits_at_once_and_a_collapsed_one_never() -> None:
    some = cohort()
    galleries, _ = build_galleries(some, words(some), SUITE)
    perfect = run_gallery(galleries[1], data(some, one_hot(some), one_hot(some)), some, SUITE)
    flat = np.ones((240, 8)) / np.sqrt(8)
    collapsed = run_gallery(galleries[1], data(some, flat, flat), some, SUITE)
    for result in perfect:
        assert score(result, System.ENCODER, False).recall["1"].value == 1.0
        assert not result.small and result.distinct == 7
    for result in collapsed:
        assert score(result, System.ENCODER, False).recall["10"].value == 0.0
    exact = score(perfect[0], System.CHANCE, False)
    assert 0.1 < exact.recall["5"].value < 0.7 and exact.recall["5"].low is None
    assert score(collapsed[0], System.CHANCE, False).recall["5"].value == exact.recall["5"].value


def test_maps_reach_what_their_features_know_and_differences_are_paired() -> None:
    some = cohort()
    galleries, _ = build_galleries(some, words(some), SUITE)
    result = run_gallery(galleries[1], data(some, one_hot(some), one_hot(some)), some, SUITE)[0]
    assert score(result, System.ENCODER, True).recall["5"].value > 0.95
    header = score(result, System.HEADER, True)
    own = score(result, System.ENCODER, False)
    gain = header.recall_difference
    assert gain is not None and gain.low is not None and gain.low > 0
    assert gain.value == pytest.approx(own.recall["5"].value - header.recall["5"].value)


def test_verdicts_follow_the_numbers() -> None:
    some = cohort()
    galleries, skipped = build_galleries(some, words(some), SUITE)
    result = run_gallery(galleries[1], data(some, one_hot(some), one_hot(some)), some, SUITE)
    base = score(result[0], System.CHANCE, False).recall["5"].value
    for times, met in ((0.9 / base, True), (1.1 / base, False)):
        suite = SuiteConfig(bar_times_chance=times)
        ratio, over = judge(suite, [], result, skipped)
        assert ratio.value == pytest.approx(1 / base) and ratio.met is met
        assert over.met is True and over.low is not None and over.low > 0
    assert result[0].direction == IMAGE_TO_TEXT


def test_verdicts_are_left_open_where_the_gallery_is_small_or_absent() -> None:
    some = cohort()
    suite = SuiteConfig(min_gallery=500)
    galleries, skipped = build_galleries(some, words(some), suite)
    result = run_gallery(galleries[1], data(some, one_hot(some), one_hot(some)), some, suite)
    for bars in (judge(suite, [], result, skipped), judge(suite, [], [], [])):
        assert [b.met for b in bars] == [None, None]
        assert all(b.value is None and "500" in b.why for b in bars)


def test_examples_go_from_the_best_ranked_lesion_to_the_worst() -> None:
    some = cohort()
    galleries, _ = build_galleries(some, words(some), SUITE)
    rng = np.random.default_rng(3)
    image, text = one_hot(some) + rng.normal(size=(240, 8)), one_hot(some)
    gallery = choose_gallery(galleries, "head")
    assert gallery is not None and gallery.name == "head"
    examples = make_examples(gallery, data(some, image, text), some, SUITE)
    ranks = [e.rank for e in examples]
    assert len(examples) == 4 and ranks == sorted(ranks) and ranks[0] == 1 and ranks[-1] > 1
    by_key = {s.key: str(s.labels["findings"]) for s in some.studies}
    for example in examples:
        assert by_key[example.key] != "none"
        assert [m.hit for m in example.matches] == [by_key[m.key] == by_key[example.key] for m in example.matches]
    missing = choose_gallery(galleries, "spine")
    assert missing is not None and missing.name == "all" and choose_gallery([], "head") is None
