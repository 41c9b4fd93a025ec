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
from concurrent.futures import ThreadPoolExecutor
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
STEP = shlex.split("model.dim=192 model.depth=4 model.heads=4 model.text_dim=64 trainer=zero2")
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
@pytest.mark.parametrize("studies", [16, 64])
def test_weak_scaling_from_one_process_to_two(studies: int, tmp_path: Path) -> None:
    """Beside two runs of one process each at once: what cores that share memory and cache cost without any exchange."""
    url = write_dataset(tmp_path / "shards", 128)
    kinds = {"one": [1], "apart": [1, 1], "together": [2]}
    clock: dict[str, list[float]] = {kind: [] for kind in kinds}
    cpu: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(ROUNDS):
        for kind, sizes in kinds.items():
            ranks: list[dict[str, Any]] = []
            folders = [
                opened(url, tmp_path / f"{kind}-{turn}-{core}", studies, processes)
                for core, processes in enumerate(sizes)
            ]
            with ThreadPoolExecutor() as at_once:
                jobs = [
                    at_once.submit(started, processes, "train", str(run), str(core))
                    for core, (processes, run) in enumerate(zip(sizes, folders, strict=True))
                ]
                for job, processes in zip(jobs, sizes, strict=True):
                    found = told(job.result(), "TRAIN")
                    assert [rank["ranks"] for rank in found] == [processes] * processes
                    ranks += found
            for rank in ranks:
                steps = rank["seconds"][WARMUP : STEPS - 1]
                clock[kind].append(statistics.median(seconds for seconds, _ in steps))
                cpu[kind].append(statistics.median(seconds for _, seconds in steps))
    rows = [
        [
            name,
            *(f"{1e3 * statistics.median(found[kind]):.0f}" for kind in kinds),
            efficiency(found, "one"),
            efficiency(found, "apart"),
        ]
        for name, found in (("by the clock", clock), ("of the processor", cpu))
    ]
    head = ["a step, ms", "one process", "two apart", "two together", "efficiency", "against two apart"]
    table(f"Weak scaling, ZeRO-2 over gloo, {studies} studies a process", head, rows, ("torch", "deepspeed"))


def opened(url: str, run: Path, studies: int, processes: int) -> Path:
    words = [f"data.micro_batch_size={studies}", f"data.global_batch_size={studies * processes}", f"max_steps={STEPS}"]
    runs.open_run(compose.parse("pretrain", [f"data.url={url}", f"run={run}", *SMALL, *STEP, *words], []))
    return run


def efficiency(found: dict[str, list[float]], base: str) -> str:
    best = min(found[base]) / min(found["together"])
    return f"{statistics.median(found[base]) / statistics.median(found['together']):.2f} (fastest rounds {best:.2f})"
