"""Many random kills in one run; ``make soak`` does two hundred."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Rows = Callable[[Path], list[dict[str, Any]]]
PHASES = ["forward", "all-reduce", "backward", "optimizer", "teacher", "record", "save", "writing"]
OF_RANK_0 = ["manifest", "rename", "commit", "prune"]
SHARED = ("step", "loss", "self_distillation", "image_text", "koleo", "gradient_norm", "teacher_momentum", "volumes")


@pytest.mark.full
@pytest.mark.timeout(6 * 3600)
def test_row_34_random_kills_leave_no_trace(
    tmp_path: Path, dataset: str, new_run: Callable[..., Path], nursery: Any, rows: Rows
) -> None:
    """Rank, phase, moment and signal by a seeded schedule; the trace and the files end as in the undisturbed run."""
    kills, rng = int(os.environ.get("SOAK_KILLS", "20")), random.Random(6)
    words = (f"max_steps={3 * kills + 10}", "trainer.checkpoint_every_steps=2", "trainer.deterministic=true")
    calm, run = (new_run(tmp_path / name, dataset, *words) for name in ("calm", "run"))
    assert nursery.train(calm, timeout_s=3600) == [0, 0]
    shutil.copytree(calm / "tokenizer", run / "tokenizer")
    for _ in range(kills):
        rank = rng.randrange(2)
        phase = rng.choice(PHASES if rank else PHASES + OF_RANK_0)
        turn = rng.randint(1, 3 if phase in ("writing", *OF_RANK_0) else 6)
        deed = rng.choice(["SIGKILL", "SIGKILL", "SIGTERM", "terminate-twice"])
        codes = nursery.train(run, {"rank": rank, "phase": phase, "turn": turn, "deed": deed})
        assert codes[rank] == -signal.SIGKILL if deed == "SIGKILL" else codes == [75, 75]
    assert nursery.train(run, timeout_s=3600) == [0, 0]
    mine, theirs = ([tuple(row[name] for name in SHARED) for row in rows(folder)] for folder in (run, calm))
    assert mine == theirs
    last = f"checkpoints/step-{3 * kills + 10:08d}"
    for name in ("student", "teacher", "moments-00000-of-00002", "moments-00001-of-00002"):
        assert (run / last / f"{name}.safetensors").read_bytes() == (calm / last / f"{name}.safetensors").read_bytes()
