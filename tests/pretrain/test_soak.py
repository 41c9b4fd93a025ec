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

from tests.data import object_storage

Rows = Callable[[Path], list[dict[str, Any]]]
PHASES = ["forward", "all-reduce", "backward", "optimizer", "teacher", "probe", "record", "save"]
WRITES = {"disk": ["writing"], "s3": ["upload", "mark"]}
"""Of every rank's save, by where it goes."""
COMMITS = {"disk": ["manifest", "rename", "commit", "prune"], "s3": ["put-manifest", "put-commit", "prune"]}
"""Of rank 0's alone."""
SHARED = ("step", "loss", "self_distillation", "image_text", "koleo", "gradient_norm", "teacher_momentum", "volumes")
PROBED = ("trainer.probe_every_steps=2", "trainer.keep_best=1", "trainer.best_metric=probe_retrieval_r5")


@pytest.mark.full
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("place", ["disk", "s3"])
def test_row_34_random_kills_leave_no_trace(
    place: str,
    tmp_path: Path,
    split_dataset: str,
    new_run: Callable[..., Path],
    nursery: Any,
    rows: Rows,
    request: pytest.FixtureRequest,
) -> None:
    """Rank, phase, moment and signal by a seeded schedule; the trace and the weights end as in the undisturbed run.

    A tenth as many kills again meet checkpoints in object storage.
    """
    kills, rng = int(os.environ.get("SOAK_KILLS", "20")), random.Random(6)
    environment = object_storage.environment(request.getfixturevalue("s3").url) if place == "s3" else {}
    kills = kills if place == "disk" else max(2, kills // 10)
    steps = 4 * kills + 10  # an attempt makes three on average
    words = (f"max_steps={steps}", "trainer.checkpoint_every_steps=2", "trainer.deterministic=true", *PROBED)
    calm = new_run(tmp_path / "calm", split_dataset, *words)
    assert nursery.train(calm, timeout_s=3600) == [0, 0]
    far = ["trainer.checkpoint_url=s3://bucket/runs/soak"] if place == "s3" else []
    run = new_run(tmp_path / "run", split_dataset, *words, *far)
    shutil.copytree(calm / "tokenizer", run / "tokenizer")
    for number in range(kills):
        rank = rng.randrange(2)
        seldom = ["probe", *WRITES[place], *COMMITS[place]]
        phase = rng.choice(PHASES + WRITES[place] if rank else PHASES + WRITES[place] + COMMITS[place])
        turn = rng.randint(1, 3 if phase in seldom else 6)
        deed = rng.choice(["SIGKILL", "SIGKILL", "SIGTERM", "terminate-twice"])
        fault = {"rank": rank, "phase": phase, "turn": turn, "deed": deed}
        codes = nursery.train(run, fault, environment=environment)
        assert codes[rank] == -signal.SIGKILL if deed == "SIGKILL" else codes == [75, 75], (number, fault, codes)
    assert nursery.train(run, timeout_s=3600, environment=environment) == [0, 0]
    mine, theirs = ([tuple(row[name] for name in SHARED) for row in rows(folder)] for folder in (run, calm))
    assert mine == theirs
    for name in ("student", "teacher", "moments-00000-of-00002", "moments-00001-of-00002"):
        file = f"step-{steps:08d}/{name}.safetensors"
        kept = tmp_path / "s3" / "bucket" / "runs" / "soak" if place == "s3" else run / "checkpoints"
        assert (kept / file).read_bytes() == (calm / "checkpoints" / file).read_bytes()
