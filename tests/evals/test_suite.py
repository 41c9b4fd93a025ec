from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from evals.cohort import Cohort, CohortError
from evals.results import Results, System
from evals.suite import evaluate
from fm.config.load import build
from fm.config.registry import CONFIGS
from fm.config.suite import SuiteConfig
from fm.data.index import DatasetError
from fm.models.encoder import EncoderError

SHORT = {"bootstrap_draws": 100, "folds": 3, "linear_c": [0.01, 1.0], "neighbours": [5, 10]}


def shipped(**changes: Any) -> SuiteConfig:
    values = yaml.safe_load((CONFIGS / "suite" / "default.yaml").read_text(encoding="utf-8"))
    suite: SuiteConfig = build(SuiteConfig, {**values, **SHORT, **changes})
    return suite


@pytest.fixture(scope="module")
def run_dir(dataset: str, encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    rows = [{"step": s, "loss": 3 / s, "volumes_per_s": 20.0 + s, "volumes": 8, "applied": True} for s in range(1, 40)]
    (encoder_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "run.yaml").write_text(
        "about:\n  verb: evaluate\n  commit: abc123\nencoder: somewhere\n", encoding="utf-8"
    )
    evaluate(encoder_dir, dataset, folder, shipped(min_gallery=20))
    return folder


@pytest.fixture(scope="module")
def results(run_dir: Path) -> dict[str, Any]:
    def refuse(name: str) -> float:
        raise AssertionError(f"{name} in results.json")

    loaded: dict[str, Any] = json.loads((run_dir / "results.json").read_text(encoding="utf-8"), parse_constant=refuse)
    return loaded


@pytest.fixture(scope="module")
def page(run_dir: Path) -> str:
    return (run_dir / "report.html").read_text(encoding="utf-8")


def test_planted_lesions_are_found_and_headers_know_nothing_of_them(results: dict[str, Any]) -> None:
    task = next(t for t in results["tasks"] if t["name"] == "lesion_head")
    found = {(s["system"], s["probe"]): s for s in task["scores"]}
    assert found["encoder", "linear"]["auroc"]["value"] > 0.95
    assert found["intensity", "linear"]["auroc"]["value"] > 0.95
    assert found["header", "linear"]["auroc"]["value"] < 0.75
    gain = found["header", "linear"]["auroc_difference"]
    assert gain["low"] > 0 and gain["value"] == pytest.approx(
        found["encoder", "linear"]["auroc"]["value"] - found["header", "linear"]["auroc"]["value"]
    )
    assert found["chance", "knn"]["balanced_accuracy"]["value"] == 0.5


def test_every_task_shows_every_baseline_through_both_probes(results: dict[str, Any]) -> None:
    expected = {(system.value, probe) for system in System for probe in ("linear", "knn")}
    assert len(results["tasks"]) >= 5
    for task in results["tasks"]:
        prompted = {("encoder", "zero-shot")} if task["name"] in ("lesion_head", "atrophy") else set()
        assert {(s["system"], s["probe"]) for s in task["scores"]} == expected | prompted


def test_the_sequence_is_no_gift_of_the_encoders_condition(results: dict[str, Any]) -> None:
    task = next(t for t in results["tasks"] if t["name"] == "contrast")
    found = {(s["system"], s["probe"]): s["auroc"]["value"] for s in task["scores"]}
    # Normalised noise discs look the same in both sequences: only scanner units and headers tell them apart.
    assert found["encoder", "linear"] < 0.85
    assert found["header", "linear"] == 1.0


def test_untrained_weights_against_themselves_differ_by_nothing(results: dict[str, Any]) -> None:
    bar = next(b for b in results["bars"] if b["name"] == "atrophy")
    assert (bar["value"], bar["met"]) == (0.0, False)


def test_what_could_not_be_measured_is_said(results: dict[str, Any], page: str) -> None:
    reasons = {s["name"]: s["reason"] for s in results["skipped"]}
    assert reasons["lesion_abdomen"] == "no study in region abdomen has the label lesion"
    assert "0 in test" in reasons["lesion_head_hard"]
    assert all(reason in page for reason in reasons.values())


def test_the_report_states_every_number_of_the_results(results: dict[str, Any], page: str) -> None:
    text = page.replace("−", "-").replace(",", "")
    stated = set(re.findall(r"[+-]?\d+\.?\d*", text))
    for number in numbers(results):
        whole = {f"{number:.0f}"} if number == round(number) or number >= 1000 else set()
        forms = whole | {f"{number:.3f}", f"{number:+.3f}", f"{number:.4g}"}
        assert forms & stated, number


def numbers(results: dict[str, Any]) -> Iterator[float]:
    """Every figure that a table of the report shows; curves are drawn."""
    for task in results["tasks"]:
        yield from [*task["train"].values(), *task["test"].values(), task["test_patients"]]
        for score in task["scores"]:
            for name in ("auroc", "balanced_accuracy", "auroc_difference"):
                yield from (v for v in (score[name] or {}).values() if v is not None)
            if score["setting"] is not None:
                yield score["setting"]
    for gallery in results["retrieval"]:
        yield from (gallery["size"], gallery["distinct"])
        for score in gallery["scores"]:
            parts = [*score["recall"].values(), score["median_rank"], score["mrr"], score["recall_difference"] or {}]
            yield from (v for part in parts for v in part.values() if v is not None)
    for bar in results["bars"]:
        yield from (bar[name] for name in ("value", "low", "high", "threshold") if bar[name] is not None)
        yield from bar["beside"].values()
    for split in ("train", "test"):
        counts = results["dataset"][split]
        yield from (v for group in counts.values() for v in (group.values() if isinstance(group, dict) else [group]))
    yield from results["training"]["summary"].values()
    for example in results["examples"]:
        yield from (example["rank"], example["relevant"], example["gallery_size"])


def test_the_report_needs_nothing_else(page: str) -> None:
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", page)
    assert "@import" not in page and "<script" not in page and "url(" not in page
    assert "abc123" in page


def test_age_and_sex_of_reports_reach_neither_the_report_nor_the_results(run_dir: Path) -> None:
    for name in ("report.html", "results.json"):
        assert "54 year old" not in (run_dir / name).read_text(encoding="utf-8")


def test_examples_show_slices_beside_texts(results: dict[str, Any], page: str) -> None:
    assert results["examples"]
    assert page.count("data:image/png;base64,") >= len(results["examples"])
    for example in results["examples"]:
        assert example["key"] in page and len(example["matches"]) == 3


def test_training_is_summarised_from_the_metrics_beside_the_weights(results: dict[str, Any]) -> None:
    training = results["training"]
    assert training["curves"]["loss"]["value"][0] == 3.0
    assert training["summary"]["Steps"] == 39.0
    assert training["summary"]["Volumes per second, median"] == 40.0


def test_features_are_kept_with_their_split(run_dir: Path, results: dict[str, Any]) -> None:
    rows = pq.read_table(run_dir / "features.parquet").to_pylist()
    studies = [row for row in rows if not row["series"]]
    assert len(studies) == 90 and len(rows) - 90 == sum(results["dataset"][s]["series"] for s in ("train", "test"))
    assert {row["split"] for row in studies} == {"train", "test"}
    length = math.sqrt(sum(v * v for v in studies[0]["embedding"]))
    assert length == pytest.approx(1, abs=1e-4) and len(studies[0]["text_embedding"]) == 16


def test_a_second_evaluation_gives_the_same_figures(
    dataset: str, encoder_dir: Path, tmp_path: Path, results: dict[str, Any]
) -> None:
    evaluate(encoder_dir, dataset, tmp_path, shipped(min_gallery=20))
    again = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    for name in ("tasks", "retrieval", "bars", "examples"):
        assert again[name] == results[name]


@pytest.mark.parametrize(
    ("studies", "share", "told"), [(4, 0.5, False), (2, 1.0, False), (3, 0.0, True), (14, 0.5, True)]
)
def test_a_handful_of_studies_gives_a_report_that_says_why_nothing_was_measured(
    drawn: SimpleNamespace, encoder_dir: Path, tmp_path: Path, studies: int, share: float, told: bool
) -> None:
    url = drawn.write_dataset(tmp_path / "shards", studies, test_share=share, told=told)
    found: Results = evaluate(encoder_dir, url, tmp_path / "run", shipped())
    assert not found.retrieval and all(bar.met is None for bar in found.bars)
    assert len(found.skipped) >= 9
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "No verdict could be measured" in text and "data:image/png" in text and "Not measured" in text


def test_without_a_tokenizer_retrieval_is_skipped(drawn: SimpleNamespace, dataset: str, tmp_path: Path) -> None:
    encoder = drawn.write_encoder(tmp_path / "encoder", tokenizer=False)
    found = evaluate(encoder, dataset, tmp_path / "run", shipped(tasks={}))
    assert [s.reason for s in found.skipped] == ["the encoder came without a tokenizer"]
    assert not found.tasks and not found.retrieval


def test_a_study_that_cannot_be_read_is_left_out_and_named(
    drawn: SimpleNamespace, encoder_dir: Path, tmp_path: Path
) -> None:
    url = drawn.write_dataset(tmp_path / "shards", 12)
    from fm.data.index import Manifest

    member = Manifest.open(url).sample("study003").members["t1w.b2"]
    shard = Path(url) / "shard-000000.tar"
    damaged = bytearray(shard.read_bytes())
    damaged[member.offset + member.length // 2] ^= 0xFF
    shard.write_bytes(damaged)
    found = evaluate(encoder_dir, url, tmp_path / "run", shipped())
    counts = found.dataset
    assert counts["train"]["studies"] + counts["test"]["studies"] == 11
    assert len(counts["unreadable"]) == 1 and "study003" in counts["unreadable"][0]
    assert "study003" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_row_33_a_patient_in_both_splits_is_refused(drawn: SimpleNamespace, tmp_path: Path) -> None:
    """By the index already, and again where studies meet."""
    with pytest.raises(DatasetError, match="p002"):
        drawn.write_dataset(tmp_path / "shards", 8, split_of=lambda row: "test" if row in (0, 1, 5) else "train")
    studies = [drawn.make_study(np.random.default_rng(0), row)[0] for row in range(8)]
    with pytest.raises(CohortError, match="p002"):
        Cohort(studies=studies, test_N=np.isin(np.arange(8), (0, 1, 5)), dataset_id="made up")


def test_a_folder_without_an_encoder_is_refused(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="no encoder"):
        evaluate(tmp_path, dataset, tmp_path / "run", shipped())
