"""Two real processes, DeepSpeed on gloo. A launch costs ten seconds, so one serves many checks (see conftest)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel

from fm.config.optim import OptimConfig
from fm.data.index import Manifest
from fm.data.volume import from_sample, read_nifti
from fm.engine.checkpoint import CheckpointStore
from fm.engine.export import export_model
from fm.models import FmConfig, FmModel
from fm.models.encoder import load_encoder
from fm.probes.online import retrieval_recall

Rows = Callable[[Path], list[dict[str, Any]]]
COMPARED = ("loss", "self_distillation", "image_text", "koleo", "gradient_norm")


def trace(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(row["step"], *(row[name] for name in COMPARED)) for row in rows]


def test_rows_39_41_and_49_hold_in_every_process(two_rank_runs: dict[str, Path]) -> None:
    """What scenarios.py asserts on each rank: teacher averages, skipped steps, refusal of damaged checkpoints."""
    assert (two_rank_runs["out"].read_text()).count("holds") == 2 * 7


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


def test_row_37_zero_3_that_accumulates_equals_zero_2(two_rank_runs: dict[str, Path], rows: Rows) -> None:
    """Cached gradients make two forward passes of each micro-batch through weights that lie cut."""
    cut, sharded = two_rank_runs["zero3"], two_rank_runs["sharded"]
    for mine, theirs in zip(trace(rows(cut)), trace(rows(sharded)), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    # What a step needs does not depend on how it is computed, but for the texts, padded in each micro-batch.
    assert [row["tflops_per_device"] * row["step_s"] for row in rows(cut)] == pytest.approx(
        [row["tflops_per_device"] * row["step_s"] for row in rows(sharded)], rel=0.02
    )
    weights = [load_file(run / "export" / "model.safetensors") for run in (cut, sharded)]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=5e-5)


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
def test_row_41_at_every_stage(
    tmp_path: Path, dataset: str, new_run: Callable[..., Path], scenarios: Callable[..., str]
) -> None:
    """Two micro-batches a step, or one: no rank steps on what is not finite on another."""
    layouts = {"0": "fp32", "1": "bf16", "3": "bf16"}
    words = {
        f"{stage}-{micro}": (
            f"trainer.stage={stage}",
            f"trainer.precision={layouts[stage]}",
            f"data.micro_batch_size={micro}",
        )
        for stage in layouts
        for micro in (2, 4)
    }
    moving = ("max_steps=6", "optim.final_teacher_momentum=0.99")
    made = [new_run(tmp_path / name, dataset, *moving, *word) for name, word in words.items()]
    assert scenarios(2, *(f"skips={run}" for run in made)).count("holds") == 2 * len(made)


@pytest.mark.full
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_row_49_stages_and_world_sizes_agree(
    precision: str,
    tmp_path: Path,
    dataset: str,
    new_run: Callable[..., Path],
    scenarios: Callable[..., str],
    rows: Rows,
) -> None:
    """The teacher is the average of the masters, and losses and exported embeddings agree; bf16 has no stage 0."""
    stages = [0, 1, 2, 3] if precision == "fp32" else [1, 2, 3]
    words = (f"trainer.precision={precision}", "max_steps=20")

    def micro(processes: int) -> str:
        """Accumulation adds up in the engine's precision, so bf16 goes without."""
        return f"data.micro_batch_size={2 if precision == 'fp32' else 8 // processes}"

    alone = ("launch.processes=1", f"trainer.stage={stages[0]}", micro(1))
    first = new_run(tmp_path / "first", dataset, *words, *alone)
    scenarios(1, f"averages={first}")
    # Clipping is part of what agrees: torch's at stage 0, DeepSpeed's from stage 1 on.
    assert max(row["gradient_norm"] for row in rows(first)) > OptimConfig().clip_norm
    tolerance = 1e-5 if precision == "fp32" else 1e-2
    for processes in (1, 2, 4):
        made = []
        for stage in stages:
            layout = (f"trainer.stage={stage}", f"launch.processes={processes}", micro(processes))
            made.append(new_run(tmp_path / f"{processes}-zero{stage}", dataset, *words, *layout))
            shutil.copytree(first / "tokenizer", made[-1] / "tokenizer")
        scenarios(processes, *(f"averages={run}" for run in made))
        for run in made:
            losses = [row["loss"] for row in rows(run)]
            assert losses == pytest.approx([row["loss"] for row in rows(first)], rel=tolerance), run.name
            torch.testing.assert_close(embedded(run), embedded(first), rtol=0, atol=max(1e-4, tolerance))


def embedded(run: Path) -> torch.Tensor:
    """A head with a bright block, embedded by a run's export in plain transformers; as by the teacher, exactly."""
    voxels = np.zeros((24, 24, 6), dtype=np.float32)
    voxels[4:20, 4:20] = 100 + np.arange(6)
    voxels[5:9, 5:9] = 400
    path = run / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([4.0, 4.0, 5.0, 1.0])), path)
    model = AutoModel.from_pretrained(run / "export").eval()
    teacher = FmModel(FmConfig.from_pretrained(run / "export")).eval()
    step = CheckpointStore(run / "checkpoints").steps()[-1]
    stored = load_file(CheckpointStore(run / "checkpoints").folder(step) / "teacher.safetensors")
    teacher.load_state_dict({name.removeprefix("fm."): v for name, v in stored.items() if name.startswith("fm.")})
    with torch.no_grad():
        pack = model.pack_series([[read_nifti(path)]])
        embedding: torch.Tensor = model.embed_study(pack, 1)
        assert torch.equal(embedding, teacher.embed_study(pack, 1))
    return embedding


@pytest.mark.full
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_offload_to_host_memory_changes_nothing(
    precision: str,
    tmp_path: Path,
    dataset: str,
    new_run: Callable[..., Path],
    scenarios: Callable[..., str],
    rows: Rows,
) -> None:
    """On the CPU there is nothing to gain; that the optimiser's other home is found is what can be tested here."""
    optimizer, parameters = "trainer.offload_optimizer=cpu", "trainer.offload_parameters=cpu"
    layouts = {
        "plain": ("trainer.stage=2",),
        "zero1": ("trainer.stage=1", optimizer),
        "zero2": ("trainer.stage=2", optimizer),
        "zero3": ("trainer.stage=3", optimizer),
        "both": ("trainer.stage=3", optimizer, parameters),
    }
    common = ("max_steps=6", f"trainer.precision={precision}", "trainer.checkpoint_every_steps=3")
    made = {name: new_run(tmp_path / name, dataset, *common, *words) for name, words in layouts.items()}
    scenarios(2, *(f"averages={run}" for run in made.values()))
    expected = [row["loss"] for row in rows(made.pop("plain"))]
    for name, run in made.items():
        losses = [row["loss"] for row in rows(run)]
        assert losses == pytest.approx(expected, rel=1e-5 if precision == "fp32" else 1e-2), name
        # And they are resumed: the second half again, from the checkpoint in the middle.
        shutil.rmtree(CheckpointStore(run / "checkpoints").folder(6))
        shutil.rmtree(run / "export")
    scenarios(2, *(f"plain={run}" for run in made.values()))
    for name, run in made.items():
        losses = [row["loss"] for row in rows(run)]
        assert losses == pytest.approx(expected, rel=1e-5 if precision == "fp32" else 1e-2), f"{name}, resumed"


@pytest.mark.full
def test_fp16_finds_its_scale_and_trains_as_fp32(
    tmp_path: Path, dataset: str, new_run: Callable[..., Path], scenarios: Callable[..., str], rows: Rows
) -> None:
    """The CPU is refused to users, as it is slow at fp16; where it can, DeepSpeed's loss scaling is tried on it."""
    if not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        pytest.skip("this CPU has no fp16 arithmetic")
    common = ("max_steps=12", "trainer.checkpoint_every_steps=6")
    plain = new_run(tmp_path / "plain", dataset, *common, "trainer.precision=fp32")
    made = [
        new_run(
            tmp_path / name,
            dataset,
            *common,
            "trainer.precision=bf16",
            f"trainer.stage={stage}",
            f"data.micro_batch_size={micro}",
        )
        for name, stage, micro in (("zero2", 2, 4), ("zero2-cached", 2, 2), ("zero3", 3, 4))
    ]
    scenarios(2, f"plain={plain}", *(f"halves={run}" for run in made))
    expected = {row["step"]: row["loss"] for row in rows(plain)}
    for run in made:
        found = rows(run)
        assert found[0]["loss"] == pytest.approx(expected[1], rel=1e-2) and found[-1]["applied"]
        assert found[-1]["loss"] < 0.95 * found[0]["loss"]
        saved = [json.loads(path.read_text()) for path in sorted(run.glob("checkpoints/*/state.json"))]
        assert [state["precision"] for state in saved] == ["fp16", "fp16"]
        assert all(state["loss_scaling"]["cur_iter"] == state["step"] for state in saved)
        assert saved[-1]["loss_scaling"]["cur_scale"] >= 1024
