"""Two gloo ranks with unequal numbers of series equal one process with the joined batch: loss and every gradient."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fm.batch import PackedTokens, StudyBatch, TextBatch
from fm.config.data import DataConfig
from fm.config.masking import (
    HiddenFromStudent,
    MaskedPatchesConfig,
    MasksConfig,
    PredictorConfig,
    WidePredictorConfig,
)
from fm.config.model import VitTextConfig
from fm.config.objective import Centering, JointConfig, MaeConfig, ObjectiveConfig, TextLoss
from fm.objectives import build_objective, build_student, make_teacher

RANK_SCRIPT = """
import sys, torch
import torch.distributed as dist
from fm.objectives import build_objective, build_student, make_teacher
from fm.parallel.collectives import all_gather_with_grad

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
job = torch.load(f"{folder}/job.pt", weights_only=False)
results = []
for config in job["configs"]:
    torch.manual_seed(3)
    student = build_student(job["model"], config, job["data"], 40, [0.4] * 7).double()
    teacher = make_teacher(student)
    loss, _ = build_objective(config)(student, teacher, job["batches"][rank], all_gather_with_grad)
    loss.backward()
    grads = {n: p.grad for n, p in student.named_parameters()}
    results.append((loss.detach(), grads))
torch.save(results, f"{folder}/rank{rank}.pt")
dist.destroy_process_group()
"""


def _half(batch: StudyBatch, first: int, last: int) -> StudyBatch:
    """Studies first:last of a batch."""

    def cut(view: PackedTokens) -> PackedTokens:
        chosen = (view.study_S >= first) & (view.study_S < last)
        token = chosen.repeat_interleave(view.offsets_S1.diff())
        lengths = view.offsets_S1.diff()[chosen]
        series = {n: getattr(view, n)[chosen] for n in ("contrast_S", "plane_S", "agent_S", "step_S33")}
        return PackedTokens(
            patches_TP=view.patches_TP[token],
            position_T3=view.position_T3[token],
            offsets_S1=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
            study_S=view.study_S[chosen] - first,
            **series,
        )

    text = {n: getattr(batch.text, n)[first:last] for n in TextBatch.__slots__}
    return replace(
        batch,
        keys=batch.keys[first:last],
        weight_B=batch.weight_B[first:last],
        patient_B=batch.patient_B[first:last],
        views={name: cut(view) for name, view in batch.views.items()},
        text=TextBatch(**text),
    )


def test_two_ranks_equal_one_process(
    tiny_model: VitTextConfig, data: DataConfig, make_batch: Callable[..., StudyBatch], tmp_path: Path
) -> None:
    size = {"prototypes": 12, "head_hidden_dim": 16, "head_bottleneck_dim": 6}
    configs: list[ObjectiveConfig] = [
        JointConfig(image_text=image_text, centering=centering, koleo_weight=0.3, phrase_weight=2.0, **size)  # type: ignore[arg-type]
        for image_text, centering in ((TextLoss.clip, Centering.sinkhorn), (TextLoss.siglip, Centering.softmax))
    ]
    configs += [replace(config, image_text_rows=3) for config in configs]  # contrasted in parts
    masks = MasksConfig(crop_share=1.0, share_min=0.2, share_max=0.8)
    for centering, way in ((Centering.sinkhorn, "mask_token"), (Centering.softmax, "dropped")):
        hidden = HiddenFromStudent(way)
        small = PredictorConfig(dim=16, depth=1, heads=2)
        patches = MaskedPatchesConfig(weight=0.5, student=hidden, masks=masks, predictor=small)
        configs.append(JointConfig(centering=centering, masked_patches=patches, gram_weight=2.0, **size))  # type: ignore[arg-type]
    configs.append(MaeConfig(decoder=WidePredictorConfig(dim=16, depth=1, heads=2)))
    # Rank 0 has four series in two studies; rank 1 has one, a hole, and a report that equals one of rank 0.
    batch = make_batch(4, [0, 0, 1, 1, 2], [True, True, True, False])
    batch.text.identity_B[2] = batch.text.identity_B[0]
    job = {"configs": configs, "model": tiny_model, "data": data, "batches": [_half(batch, 0, 2), _half(batch, 2, 4)]}
    torch.save(job, tmp_path / "job.pt")
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK_SCRIPT, str(rank), str(tmp_path)], env=environment)
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    results = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(2)]
    for i, config in enumerate(configs):
        torch.manual_seed(3)
        student = build_student(tiny_model, config, data, 40, [0.4] * 7).double()
        loss, _ = build_objective(config)(student, make_teacher(student), batch)
        loss.backward()
        (loss_0, grads_0), (loss_1, grads_1) = results[0][i], results[1][i]
        assert ((loss_0 + loss_1) / 2).item() == pytest.approx(loss.item(), rel=1e-6)
        for name, p in student.named_parameters():
            if isinstance(config, MaeConfig) and not name.startswith(("fm.image.", "predictor.")):
                assert p.grad is None and grads_0[name] is None, "pooling and texts are in no term"
                continue
            assert p.grad is not None, name
            apart = ((grads_0[name] + grads_1[name]) / 2 - p.grad).abs().max()
            # The losses compute in float32 whatever the weights are.
            assert apart <= 1e-5 * p.grad.abs().max() + 1e-7, name
