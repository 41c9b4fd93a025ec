"""One run of fm pretrain in which every step is also made by a bare loop, in turns: ``overhead.py RUN_DIR``.

The bare loop has what the method needs and nothing else: the same modules, objective, optimiser, schedules, clipping
and average, on the same batch, just before the run takes it. Prints a JSON line with the losses of both, and the
seconds of both by the clock and of the processor.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import torch

import fm.pretrain.run as pretrain_run
from fm.batch import StudyBatch
from fm.engine.groups import build_optimizer
from fm.engine.metrics import read_metrics
from fm.engine.module import TrainingModule, _step_seed
from fm.engine.schedules import learning_rate, teacher_momentum
from fm.engine.trainer import Stream
from fm.objectives import build_objective
from fm.parallel.collectives import all_gather_with_grad
from launch.runs import attempt_job


class Bare:
    """The loop that one would write without a platform."""

    def __init__(self, module: TrainingModule, job: Any) -> None:
        self.job = job
        self.student, self.teacher = copy.deepcopy(module.student), copy.deepcopy(module.teacher.module)
        self.objective, self.optimizer = build_objective(job.objective), build_optimizer(self.student, job.optim)
        self.steps = 0
        self.losses: list[float] = []

    def step(self, batch: StudyBatch) -> None:
        torch.manual_seed(_step_seed(self.job.seed, self.steps, 0, 0))
        optim, max_steps = self.job.optim, self.job.max_steps
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(optim, self.steps, max_steps)
        loss, _ = self.objective(self.student, self.teacher, batch, all_gather_with_grad)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            share = 1.0 - teacher_momentum(optim, self.steps, max_steps)
            torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), share)
        self.losses.append(float(loss.detach()))
        self.steps += 1


class Paired(Stream):
    """Hands out batches as the run's own stream does, and makes the bare step first; reading is timed for neither."""

    bare: Bare
    seconds: dict[str, list[tuple[float, float]]] = {"bare": [], "ours": []}  # noqa: RUF012 - one run a process

    def __iter__(self) -> Iterator[list[StudyBatch]]:
        for group in super().__iter__():
            began = now()
            self.bare.step(group[0])
            self.seconds["bare"].append(since(began))
            began = now()
            yield group
            self.seconds["ours"].append(since(began))


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> tuple[float, float]:
    ended = now()
    return ended[0] - began[0], ended[1] - began[1]


def main(run_dir: Path) -> None:
    job = attempt_job(run_dir)
    build = pretrain_run._module

    def built(*args: Any) -> TrainingModule:
        module = build(*args)
        Paired.bare = Bare(module, job)
        return module

    pretrain_run._module = built
    pretrain_run.Stream = Paired  # type: ignore[misc]
    pretrain_run.pretrain(job, run_dir)
    rows = read_metrics(run_dir / "metrics.jsonl")
    found = {
        "ours": Paired.seconds["ours"],
        "bare": Paired.seconds["bare"],
        "losses": [[row["loss"] for row in rows], Paired.bare.losses],
        "parameters": sum(p.numel() for p in Paired.bare.student.parameters()),
    }
    print("OVERHEAD", json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
