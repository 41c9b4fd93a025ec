"""What runs inside the worker processes of test_distributed.py; every check is made on every rank.

Called under torchrun, or alone: ``scenarios.py NAME=RUN_DIR …``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.utils import safe_get_full_fp32_param

import fm.pretrain.run as pretrain_run
from fm.config.errors import UserError
from fm.config.trainer import Precision
from fm.engine.checkpoint import CheckpointError, CheckpointStore
from fm.engine.module import TrainingModule
from fm.engine.schedules import teacher_momentum
from fm.engine.verdict import Outcome
from fm.objectives import build_objective
from fm.parallel.collectives import barrier
from fm.parallel.hardware import resolve_precision
from launch.runs import attempt_job

RANK = int(os.environ.get("RANK", "0"))


@contextmanager
def around_steps(
    before: Callable[[TrainingModule], Any], after: Callable[[TrainingModule, Any], None]
) -> Iterator[None]:
    """Call `before` and `after` around every training step."""
    original = TrainingModule.training_step

    def step(module: TrainingModule, batch: Any) -> None:
        value = before(module)
        original(module, batch)
        after(module, value)

    TrainingModule.training_step = step
    try:
        yield
    finally:
        TrainingModule.training_step = original


def copies(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def averages(run_dir: Path) -> None:
    """The teacher equals an average replayed in float64 from the masters that DeepSpeed itself hands out.

    The engine's own weights must be these masters in its precision: at ZeRO-3 that is what tells of a wrong slice.
    """
    job = attempt_job(run_dir)
    replay: dict[str, torch.Tensor] = {}
    moved: list[float] = []

    def before(module: TrainingModule) -> None:
        if not replay:
            replay.update({name: value.double() for name, value in copies(module.teacher.state()).items()})
            for name, value in module.masters.whole():
                assert torch.equal(value.double(), replay[name]), f"{name} does not start at its master"

    def after(module: TrainingModule, _: Any) -> None:
        momentum = teacher_momentum(job.optim, module.completed_steps - 1, job.max_steps)
        masters, teacher = dict(module.masters.whole()), module.teacher.state()
        for name, parameter in module.student.named_parameters():
            theirs = safe_get_full_fp32_param(parameter)
            if theirs is None:  # stage 0 knows no masters but the parameters
                theirs = parameter.detach()
            assert theirs.dtype == torch.float32
            assert torch.equal(masters[name], theirs.view_as(masters[name])), f"master of {name}"
            with GatheredParameters([parameter]):
                weight = masters[name].to(parameter.dtype).view_as(parameter)
                assert torch.equal(weight, parameter), f"weight of {name}"
            replay[name] = momentum * replay[name] + (1 - momentum) * theirs.view_as(replay[name]).double()
            difference = (teacher[name].double() - replay[name]).abs().max()
            assert difference < 1e-6, f"{name}: the teacher is {difference:.2e} off"
        name = next(iter(replay))
        moved.append(float((replay[name] - masters[name].double()).abs().max()))

    with around_steps(before, after):
        assert pretrain_run.pretrain(job, run_dir) is Outcome.DONE
    assert max(moved) > 1e-5, "the teacher never differed from the student: nothing was tested"


def skips(run_dir: Path) -> None:
    """A loss that is NaN on rank 1 (step 2), or a gradient that is NaN on rank 0 (step 4): no rank steps."""
    job = attempt_job(run_dir)
    changed: dict[int, bool] = {}

    def poisoned(config: Any) -> Any:
        objective = build_objective(config)

        def run(student: Any, teacher: Any, batch: Any, gather: Any) -> Any:
            loss, report = objective(student, teacher, batch, gather)
            if batch.step == 1 and RANK == 1:
                loss = loss * float("nan")
            if batch.step == 3 and RANK == 0:
                # Finite value, gradient 0 · inf.
                loss = loss + (loss - loss.detach()).clamp(min=0).sqrt() * 0
            return loss, report

        return run

    def before(module: TrainingModule) -> Any:
        return copies(dict(module.masters.whole())), copies(module.teacher.state())

    def after(module: TrainingModule, value: Any) -> None:
        masters, teacher = dict(module.masters.whole()), module.teacher.state()
        same = all(torch.equal(masters[name], old) for name, old in value[0].items())
        same_teacher = all(torch.equal(teacher[name], old) for name, old in value[1].items())
        assert same == same_teacher
        changed[module.completed_steps] = not same

    pretrain_run.build_objective = poisoned
    try:
        with around_steps(before, after):
            assert pretrain_run.pretrain(job, run_dir) is Outcome.DONE
    finally:
        pretrain_run.build_objective = build_objective
    assert changed == {1: True, 2: False, 3: True, 4: False, 5: True, 6: True}, changed


def halves(run_dir: Path) -> None:
    """A run in fp16, which a user cannot have on the CPU; stopped half-way and resumed with the scale it had."""
    job = attempt_job(run_dir)
    pretrain_run.resolve_precision = lambda _: Precision.fp16
    scales: dict[int, float] = {}

    def after(module: TrainingModule, _: Any) -> None:
        scales[module.completed_steps] = module.loss_scaling["cur_scale"]

    last, job.max_steps = job.max_steps, job.max_steps // 2
    try:
        with around_steps(lambda _: None, after):
            assert pretrain_run.pretrain(job, run_dir) is Outcome.DONE
            job.max_steps = last
            assert pretrain_run.pretrain(job, run_dir) is Outcome.DONE
    finally:
        pretrain_run.resolve_precision = resolve_precision
    steps = sorted(scales)
    assert steps == list(range(1, last + 1)) and scales[1] in (2.0**16, 2.0**15)
    # A scale that began anew would stand above what was found.
    assert all(scales[b] <= scales[a] for a, b in pairwise(steps)), scales


def plain(run_dir: Path) -> None:
    """An undisturbed run."""
    assert pretrain_run.pretrain(attempt_job(run_dir), run_dir) is Outcome.DONE


def refuses(run_dir: Path) -> None:
    """A run whose every checkpoint is damaged raises on every rank, and does not begin again."""
    job = attempt_job(run_dir)
    job.max_steps = 4
    pretrain_run.pretrain(job, run_dir)
    store = CheckpointStore(run_dir / "checkpoints")
    before = {step: (store.folder(step) / "teacher.safetensors").stat().st_mtime_ns for step in store.steps()}
    if RANK == 0:
        for step in store.steps():
            path = store.folder(step) / "teacher.safetensors"
            payload = bytearray(path.read_bytes())
            payload[len(payload) // 2] ^= 1
            path.write_bytes(payload)
            os.utime(path, ns=(before[step], before[step]))
    barrier()
    job.max_steps = 8
    with pytest.raises(UserError, match="all 2 checkpoints") as caught:
        pretrain_run.pretrain(job, run_dir)
    assert isinstance(caught.value, CheckpointError) == (RANK == 0)
    assert store.steps() == [2, 4]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for word in sys.argv[1:]:
        name, _, folder = word.partition("=")
        known = {"averages": averages, "skips": skips, "halves": halves, "plain": plain, "refuses": refuses}
        known[name](Path(folder))
        print(f"rank {RANK}: {name} holds", flush=True)
