"""Two real processes, DeepSpeed on gloo. A launch costs ten seconds, so one serves many checks (see conftest)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel

from fm.data.index import Manifest
from fm.data.volume import from_sample
from fm.engine.checkpoint import CheckpointStore
from fm.engine.export import export_model
from fm.models.encoder import load_encoder
from fm.probes.online import retrieval_recall

Rows = Callable[[Path], list[dict[str, Any]]]
COMPARED = ("loss", "self_distillation", "image_text", "koleo", "gradient_norm")


def trace(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(row["step"], *(row[name] for name in COMPARED)) for row in rows]


def test_rows_39_41_and_49_hold_in_every_process(two_rank_runs: dict[str, Path]) -> None:
    """What scenarios.py asserts on each rank: teacher averages, skipped steps, refusal of damaged checkpoints."""
    assert (two_rank_runs["out"].read_text()).count("holds") == 2 * 6


def test_row_41_a_bad_batch_is_skipped_by_all_and_its_samples_kept(two_rank_runs: dict[str, Path], rows: Rows) -> None:
    run = two_rank_runs["skipped"]
    kept = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in kept] == [2, 4]
    assert all(len(set(entry["keys"])) == 8 for entry in kept), "both ranks' samples are kept"
    assert [row["applied"] for row in rows(run)] == [True, False, True, False, True, True]
    assert rows(run)[1]["loss"] is None


def test_row_37_two_processes_equal_one_that_accumulates(
    tmp_path: Path,
    dataset: str,
    two_rank_runs: dict[str, Path],
    new_run: Callable[..., Path],
    scenarios: Callable[..., str],
    rows: Rows,
) -> None:
    sharded = two_rank_runs["sharded"]
    single = new_run(tmp_path / "single", dataset, "max_steps=5", "trainer.precision=fp32", "launch.processes=1")
    shutil.copytree(sharded / "tokenizer", single / "tokenizer")
    scenarios(1, f"plain={single}")
    for mine, theirs in zip(trace(rows(single)), trace(rows(sharded)), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    weights = [load_file(run / "export" / "model.safetensors") for run in (single, sharded)]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-5)


def test_a_run_leaves_an_account_of_all_ranks_and_hands_it_on_with_the_encoder(
    two_rank_runs: dict[str, Path], rows: Rows
) -> None:
    run = two_rank_runs["bf16"]
    account = json.loads((run / "cost" / "attempt-1.json").read_text())
    assert (account["unit"], account["devices"], account["first_step"], account["step"]) == ("CPU core", 2, 1, 5)
    assert 0 < account["cpu_hours"] < account["device_hours"] * 2
    last = rows(run)[-1]
    assert account["peak_host_gb"] == pytest.approx(last["host_memory_gb"]) and last["host_memory_gb"] > 0.1
    assert account["gpu_kwh"] is None and account["not_measured"]["gpu_kwh"] == "no GPU was used"
    handed_on = json.loads((run / "export" / "cost.json").read_text())
    assert handed_on["total"]["attempts"] == 1 and handed_on["attempts"][0]["step"] == 5


def test_each_rank_leaves_a_profile_and_the_attempt_its_environment(two_rank_runs: dict[str, Path]) -> None:
    run = two_rank_runs["bf16"]
    for rank in (0, 1):
        trace_of = json.loads((run / f"profile/attempt-1-rank-{rank:05d}-steps-2-3.json").read_text())
        names = {event.get("name", "") for event in trace_of["traceEvents"]}
        assert any("all_reduce" in name for name in names) and "aten::addmm" in names
    facts = json.loads((run / "environment" / "attempt-1.json").read_text())
    assert f"torch=={torch.__version__.partition('+')[0]}" in "\n".join(facts["packages"])
    assert facts["topology"]["ranks"] == len(facts["ranks"]) == 2 and facts["ranks"][1]["threads"] == 1


def test_a_row_says_where_the_time_went(two_rank_runs: dict[str, Path], rows: Rows) -> None:
    """The phases add up to the step, and both ranks are in it."""
    for row in rows(two_rank_runs["calm"])[1:]:
        phases = ("data_s", "forward_s", "backward_s", "optimizer_s", "teacher_s", "record_s", "save_s")
        assert sum(row[name] for name in phases) == pytest.approx(row["step_s"], rel=0.05, abs=0.02)
        assert 0 <= row["data_wait_share"] < 1 and row["tflops_per_device"] > 0 and row["mfu"] is None
        assert 0 < row["median_rank_s"] <= row["slowest_rank_s"] < row["step_s"] and row["slowest_rank"] in (0, 1)
        assert 0.1 < row["peak_memory_gb"] < 16


def test_the_loss_falls(two_rank_runs: dict[str, Path], rows: Rows) -> None:
    losses = [row["loss"] for row in rows(two_rank_runs["calm"])]
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])


def test_row_49_the_export_is_the_teacher(two_rank_runs: dict[str, Path]) -> None:
    run = two_rank_runs["bf16"]
    model = AutoModel.from_pretrained(run / "export")
    teacher = load_file(run / "checkpoints" / "step-00000005" / "teacher.safetensors")
    assert all(torch.equal(value, teacher[f"fm.{name}"]) for name, value in model.state_dict().items())
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}


def test_the_probe_measures_the_teacher_and_leaves_the_training_as_it_is(
    two_rank_runs: dict[str, Path], split_dataset: str, rows: Rows
) -> None:
    """Every third step has gauges; the last are those of the exported teacher, and the losses of the run without."""
    run = two_rank_runs["probed"]
    assert trace(rows(run)) == trace(rows(two_rank_runs["calm"]))
    probed = [row for row in rows(run) if "probe_retrieval_r5" in row]
    assert [row["step"] for row in probed] == [3, 6, 9, 12] and all(0 <= row["probe_knn"] <= 1 for row in probed)
    assert all(rows(run)[row["step"]]["probe_s"] > 0 for row in probed), "its time stands in the step that follows"

    store, best = CheckpointStore(run / "checkpoints"), max(probed, key=lambda r: (r["probe_retrieval_r5"], r["step"]))
    assert store.steps() == sorted({best["step"], 14}), "pruning leaves the best and the last"
    manifest = Manifest.open(split_dataset).select(split="val")
    found = export_model(run, run / "at_best", best["step"], facts={"licence": "cc-by-4.0"})
    encoder = load_encoder(found)
    studies = [manifest.study(key) for key in manifest.keys]
    images = [[from_sample(s, manifest.read(study.key, f"{s.name}.b2")) for s in study.series] for study in studies]
    texts = [study.report.diagnostic for study in studies if study.report is not None]
    again = retrieval_recall(encoder.encode_studies(images).projected, encoder.embed_text(texts), np.arange(8))
    assert again["retrieval_r5"] == pytest.approx(best["probe_retrieval_r5"])

    card = (run / "export" / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "cc-by-4.0" and head["library_name"] == "transformers"
    assert "| training studies | 24 |" in card and "| training patients | 24 |" in card
    assert f"| probe_knn at step 12 | {probed[-1]['probe_knn']:.4f} |" in card
    assert "global_batch_size: 8" in card and str(run) not in card and split_dataset not in card


@pytest.mark.full
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_row_49_stages_agree(
    precision: str,
    tmp_path: Path,
    dataset: str,
    new_run: Callable[..., Path],
    scenarios: Callable[..., str],
    rows: Rows,
) -> None:
    """Every ZeRO stage: the teacher is the average of the masters, and the losses agree (bf16 has no stage 0)."""
    stages = [0, 1, 2] if precision == "fp32" else [1, 2]
    first = None
    for stage in stages:
        words = (f"trainer.stage={stage}", f"trainer.precision={precision}", "max_steps=10")
        run = new_run(tmp_path / f"zero{stage}", dataset, *words)
        if first is not None:
            shutil.copytree(first / "tokenizer", run / "tokenizer")
        first = first or run
        scenarios(2, f"averages={run}")
    tolerance = 1e-5 if precision == "fp32" else 1e-2
    traces = [[row["loss"] for row in rows(tmp_path / f"zero{stage}")] for stage in stages]
    for losses in traces[1:]:
        assert losses == pytest.approx(traces[0], rel=tolerance)
