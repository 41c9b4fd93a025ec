"""What runs inside the worker processes of test_distributed.py; every check is made on every rank.

Called under torchrun, or alone: ``scenarios.py NAME=RUN_DIR …``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param

import fm.pretrain.run as pretrain_run
from fm.config.errors import UserError
from fm.engine.checkpoint import CheckpointError, CheckpointStore
from fm.engine.module import TrainingModule
from fm.engine.schedules import teacher_momentum
from fm.engine.verdict import Outcome
from fm.objectives import build_objective
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
    """The teacher equals an average replayed in float64 from the masters that DeepSpeed itself hands out."""
    job = attempt_job(run_dir)
    replay: dict[str, torch.Tensor] = {}
    moved: list[float] = []

    def before(module: TrainingModule) -> None:
        if not replay:
            replay.update({name: value.double() for name, value in copies(module.teacher.state()).items()})
            for name, value in module.masters.read().items():
                assert torch.equal(value, module.teacher.state()[name]), f"{name} does not start at its master"

    def after(module: TrainingModule, _: Any) -> None:
        momentum = teacher_momentum(job.optim, module.completed_steps - 1, job.max_steps)
        masters = module.masters.read()
        for name, parameter in module.student.named_parameters():
            theirs = safe_get_full_fp32_param(parameter)
            if theirs is None:  # stage 0 knows no masters but the parameters
                theirs = parameter.detach()
            assert theirs.dtype == torch.float32
            assert torch.equal(masters[name], theirs.view_as(masters[name])), f"master of {name}"
            replay[name] = momentum * replay[name] + (1 - momentum) * theirs.view_as(replay[name]).double()
            difference = (module.teacher.state()[name].double() - replay[name]).abs().max()
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
        return copies(module.masters.read()), copies(module.teacher.state())

    def after(module: TrainingModule, value: Any) -> None:
        masters, teacher = module.masters.read(), module.teacher.state()
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
    pretrain_run.barrier()
    job.max_steps = 8
    with pytest.raises(UserError, match="all 2 checkpoints") as caught:
        pretrain_run.pretrain(job, run_dir)
    assert isinstance(caught.value, CheckpointError) == (RANK == 0)
    assert store.steps() == [2, 4]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for word in sys.argv[1:]:
        name, _, folder = word.partition("=")
        known = {"averages": averages, "skips": skips, "plain": plain, "refuses": refuses}
        known[name](Path(folder))
        print(f"rank {RANK}: {name} holds", flush=True)
