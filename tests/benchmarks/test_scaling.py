"""Weak scaling from one process to two, on a core each over gloo, and the all-reduce beneath it.

Every rank has the same batch, so that only the engine is measured. Run by ``make bench``, on an idle machine with two
cores; nothing is asserted about time.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fm.config import compose
from launch import runs
from launch.entry import Topology, torchrun
from tests.benchmarks.measure import table
from tests.pretrain.conftest import SMALL, write_dataset

pytestmark = pytest.mark.full

STEPS, WARMUP, ROUNDS = 30, 6, 3
STEP = shlex.split("model.dim=192 model.depth=4 model.heads=4 model.text_dim=64 data.micro_batch_size=16 trainer=zero2")
NEEDS_TWO_CORES = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a core for each of two processes")


def started(processes: int, *words: str) -> list[str]:
    script = Path(__file__).with_name("scaling.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[2])}
    command = torchrun(Topology(processes=processes, threads=1), 30, [str(script), *words])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def told(lines: list[str], word: str) -> list[dict[str, Any]]:
    return [json.loads(line.split(" ", 1)[1]) for line in lines if line.startswith(word)]


@NEEDS_TWO_CORES
def test_all_reduce_by_size() -> None:
    rows = []
    for one in told(started(2, "reduce"), "REDUCE"):
        size, seconds = one["bytes"], one["seconds"]
        # Two ranks: each sends 2 (n - 1) / n = 1 times the vector.
        rows.append([f"{size >> 10:,} KiB", f"{1e3 * seconds:.2f}", f"{size / seconds / 1e9:.2f}"])
    table("All-reduce over gloo, two processes", ["vector", "ms", "GB/s sent by a rank"], rows, ("torch",))


@NEEDS_TWO_CORES
def test_weak_scaling_from_one_process_to_two(tmp_path: Path) -> None:
    url = write_dataset(tmp_path / "shards", 64)
    clock: dict[int, list[float]] = {1: [], 2: []}
    cpu: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(ROUNDS):
        for processes in (1, 2):
            run = tmp_path / f"{processes}-{turn}"
            batch = f"data.global_batch_size={16 * processes}"
            words = [f"data.url={url}", f"run={run}", *SMALL, *STEP, batch, f"max_steps={STEPS}"]
            runs.open_run(compose.parse("pretrain", words, []))
            ranks = told(started(processes, "train", str(run)), "TRAIN")
            assert [rank["ranks"] for rank in ranks] == [processes] * processes
            for rank in ranks:
                steps = rank["seconds"][WARMUP : STEPS - 1]
                clock[processes].append(statistics.median(seconds for seconds, _ in steps))
                cpu[processes].append(statistics.median(seconds for _, seconds in steps))
    rows = [
        [name, *(f"{1e3 * statistics.median(found[n]):.0f}" for n in (1, 2)), efficiency(found)]
        for name, found in (("by the clock", clock), ("of the processor", cpu))
    ]
    head = ["time of a step, ms", "one process", "two, 16 studies each", "efficiency"]
    table("Weak scaling, ZeRO-2 over gloo", head, rows, ("torch", "deepspeed"))


def efficiency(found: dict[int, list[float]]) -> str:
    best = min(found[1]) / min(found[2])
    return f"{statistics.median(found[1]) / statistics.median(found[2]):.2f} (fastest rounds {best:.2f})"
