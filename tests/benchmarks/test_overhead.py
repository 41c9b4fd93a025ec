"""What the platform adds to a step: Lightning, DeepSpeed, guards and logging over a bare PyTorch loop.

Both make every step in turns in one process, on the same batch, and their losses are proved equal first. Nothing is
asserted about time. Run by ``make bench``.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from fm.config import compose
from launch import runs
from tests.benchmarks.measure import table
from tests.pretrain.conftest import SMALL, write_dataset

pytestmark = pytest.mark.full

STEPS, WARMUP = 100, 10
STEP = shlex.split("model.dim=256 model.depth=4 model.heads=4 model.text_dim=64 data.global_batch_size=16")
"""About 200 ms on one core, both sides alike."""


def test_overhead_over_a_bare_loop(tmp_path: Path) -> None:
    url = write_dataset(tmp_path / "shards", 32)
    words = [*STEP, "data.micro_batch_size=16", "launch.processes=1", "trainer=zero0", f"max_steps={STEPS}"]
    rows = []
    for name, tracker in (("metrics.jsonl", "jsonl"), ("and wandb, offline", "wandb"), ("TensorBoard", "tensorboard")):
        run = tmp_path / tracker
        request = compose.parse("pretrain", [f"data.url={url}", f"run={run}", *SMALL, *words, f"tracker={tracker}"], [])
        runs.open_run(request)
        rows.append([name, *measured(run)])
    head = ["logging", "bare, ms a step", "ours, ms a step", "more by the clock", "bare, CPU ms", "more CPU", "losses"]
    table("Overhead of a training step", head, rows, ("torch", "lightning", "deepspeed"))


def measured(run: Path) -> list[str]:
    script = Path(__file__).with_name("overhead.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[2])}
    done = subprocess.run(
        [sys.executable, str(script), str(run)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("OVERHEAD"))
    found = json.loads(line.split(" ", 1)[1])
    ours, bare = found["losses"]
    assert ours == pytest.approx(bare, rel=1e-6) and len(ours) == STEPS, "the two do not train the same"
    # The last step saves a checkpoint; the first ones warm up.
    mine, theirs = (found[side][WARMUP : STEPS - 1] for side in ("ours", "bare"))
    clock, cpu = ([(m[k], t[k]) for m, t in zip(mine, theirs, strict=True)] for k in (0, 1))
    return [
        f"{1e3 * statistics.median(t for _, t in clock):.0f}",
        f"{1e3 * statistics.median(m for m, _ in clock):.0f}",
        more(clock),
        f"{1e3 * statistics.median(t for _, t in cpu):.0f}",
        more(cpu),
        "equal" if ours == bare else "within 1e-6",
    ]


def more(pairs: list[tuple[float, float]]) -> str:
    """Median of the differences within pairs, over the median of the bare steps; and its middle half."""
    usual = statistics.median(t for _, t in pairs)
    low, middle, high = statistics.quantiles([(m - t) / usual for m, t in pairs], n=4)
    return f"{middle:+.1%} ({low:+.1%} to {high:+.1%})"
