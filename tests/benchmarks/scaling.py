"""What runs in the processes of test_scaling.py: ``scaling.py reduce`` or ``scaling.py train RUN_DIR CORE``.

Each process keeps to one core: its local rank, counted from ``CORE``. ``reduce`` times all-reduces of several sizes;
``train`` trains with every rank on the same batch, so that the ranks have equal work, and prints each step's seconds.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"
RANK = int(os.environ.get("RANK", "0"))
FIRST = int(sys.argv[3]) if len(sys.argv) > 3 else 0
os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[FIRST + RANK]})

import torch  # noqa: E402 - threads are counted when torch is imported

import fm.pretrain.run as pretrain_run  # noqa: E402
from fm.batch import StudyBatch  # noqa: E402
from fm.config.trainer import Device  # noqa: E402
from fm.engine.trainer import Stream  # noqa: E402
from fm.parallel.collectives import barrier, shutdown, sum_over_ranks, world_size  # noqa: E402
from fm.parallel.group import join  # noqa: E402
from launch.runs import attempt_job  # noqa: E402

SIZES, ROUNDS = (4 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20), 15


def reduce() -> None:
    join(Device.cpu, 120)
    for size in SIZES:
        values, taken = torch.ones(size // 4), []
        for _ in range(ROUNDS):
            barrier()
            began = time.perf_counter()
            sum_over_ranks(values)
            taken.append(time.perf_counter() - began)
        if RANK == 0:
            print("REDUCE", json.dumps({"bytes": size, "seconds": statistics.median(taken)}), flush=True)
    shutdown()


class Same(Stream):
    """The first batch again and again, so that neither reading nor uneven studies are measured; its steps are timed."""

    seconds: list[tuple[float, float]] = []  # noqa: RUF012 - one run a process

    def __iter__(self) -> Iterator[list[StudyBatch]]:
        group = None
        for fresh in super().__iter__():
            group = group or fresh
            began = time.perf_counter(), time.process_time()
            yield group
            self.seconds.append((time.perf_counter() - began[0], time.process_time() - began[1]))


def train(run_dir: Path) -> None:
    pretrain_run.Stream = Same  # type: ignore[misc]
    pretrain_run.pretrain(attempt_job(run_dir), run_dir)
    found = {"rank": RANK, "ranks": world_size(), "seconds": Same.seconds}
    print("TRAIN", json.dumps(found), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "reduce":
        reduce()
    else:
        train(Path(sys.argv[2]))
