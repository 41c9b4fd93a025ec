"""Runs with masked patches, from the command line's words to the export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fm.config import compose
from fm.models.encoder import load_encoder
from launch import runs

from .conftest import SMALL

MASKED = "objective.masked_patches."


def test_masked_objectives_learn_and_are_exported(
    tmp_path: Path,
    dataset: str,
    new_run: Callable[..., Path],
    scenarios: Callable[..., str],
    rows: Callable[[Path], list[dict[str, Any]]],
) -> None:
    """One process that accumulates two micro-batches a step; the loss falls, and an encoder is left."""
    calm = (
        "max_steps=40",
        "launch.processes=1",
        "trainer.precision=fp32",
        "data.global_keep=1.0",
        "optim.warmup_steps=5",
    )
    ibot = (
        "objective.student_sees_globals=true", "objective.image_text_weight=0", "objective.phrase_weight=0",
        "objective.self_distillation_weight=1", f"{MASKED}weight=1", f"{MASKED}masks.crop_share=1",
        f"{MASKED}predictor.dim=16", f"{MASKED}predictor.depth=1", f"{MASKED}predictor.heads=2",
    )  # fmt: skip
    mae = ("objective.decoder.dim=32", "objective.decoder.depth=1", "objective.decoder.heads=2", "data.local_views=0")

    def mae_run(folder: Path) -> Path:
        """The words of the small run that are about another objective left out."""
        words = [word for word in SMALL if not word.startswith("objective")]
        wanted = [f"data.url={dataset}", f"run={folder}", *words, *calm, "objective=mae", *mae]
        runs.open_run(compose.parse("pretrain", wanted, []))
        return folder

    made = {
        "token": new_run(tmp_path / "token", dataset, *calm, *ibot, "objective.gram_weight=0.1"),
        "dropped": new_run(tmp_path / "dropped", dataset, *calm, *ibot, f"{MASKED}student=dropped"),
        "mae": mae_run(tmp_path / "mae"),
    }
    scenarios(1, *(f"plain={run}" for run in made.values()))
    for name, part in {"token": "masked_patches", "dropped": "masked_patches", "mae": "reconstruction"}.items():
        found = np.array([row[part] for row in rows(made[name])])
        assert len(found) == 40 and found[-8:].mean() < 0.97 * found[:8].mean(), f"{name}: {found}"
        assert load_encoder(made[name] / "export").model.config.dim == 32
