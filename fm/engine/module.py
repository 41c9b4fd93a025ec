"""One training step: objective, guards, DeepSpeed engine, teacher."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from fm.batch import StudyBatch
from fm.config.optim import OptimConfig
from fm.engine.groups import build_optimizer
from fm.engine.masters import Masters
from fm.engine.schedules import learning_rate, teacher_momentum
from fm.engine.teacher import Teacher
from fm.parallel.collectives import all_gather_with_grad, any_flag, rank

Objective = Callable[[nn.Module, nn.Module, StudyBatch, Callable[[Tensor], Tensor]], tuple[Tensor, dict[str, Tensor]]]
"""``objective(student, teacher, batch, gather) -> (loss, report)``, see :mod:`fm.objectives`."""


@dataclass(kw_only=True, slots=True)
class StepResult:
    """What one step did, on this rank."""

    step: int
    """Steps completed, this one included."""
    loss: Tensor
    report: dict[str, Tensor] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    volumes: int = 0
    """Series views encoded per kind of view: the series of the batch."""
    tokens: int = 0
    applied: bool = True
    """False where the step was skipped on all ranks because loss or gradient was not finite."""
    gradient_norm: float = 0.0
    learning_rate: float = 0.0
    momentum: float = 0.0
    seconds: float = 0.0
    wait_seconds: float = 0.0
    """Time spent waiting for the batch."""


class TrainingModule(pl.LightningModule):
    """Student inside the DeepSpeed engine, teacher beside it.

    The module calls the engine in DeepSpeed's own order (forward, backward, step); Lightning brings the loop, the hooks and the
    processes. All randomness of a step is keyed by (seed, step, rank), so that a resumed run needs no generator state.
    """

    def __init__(
        self, *, student: nn.Module, teacher: nn.Module, objective: Objective, optim: OptimConfig, seed: int, max_steps: int
    ) -> None:
        """Take the parts of a run.

        Args:
            student: everything that is trained.
            teacher: its float32 copy.
            objective: forward and losses.
            optim: optimiser and schedules.
            seed: of the run.
            max_steps: steps of the whole run, the horizon of the schedules.
        """
        super().__init__()
        self.automatic_optimization = False
        self.student = student
        self.optim = optim
        self.seed = seed
        self.max_steps = max_steps
        self.completed_steps = 0
        self.bf16 = False
        self.result: StepResult | None = None
        # In a tuple: a plain attribute would register the modules, and the engine would cast and shard the teacher.
        self._outside = (Teacher(teacher), objective)
        self._masters: Masters | None = None
        self._ended = time.perf_counter()

    @property
    def teacher(self) -> Teacher:
        """The float32 average, outside the engine."""
        return self._outside[0]

    @property
    def masters(self) -> Masters:
        """The float32 masters of the student."""
        if self._masters is None:
            raise RuntimeError("the engine has not been attached yet")
        return self._masters

    @property
    def engine(self) -> Any:
        """The DeepSpeed engine."""
        return self.trainer.strategy.model

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser that DeepSpeed shards."""
        return build_optimizer(self.student, self.optim)

    def attach(self, stage: int) -> None:
        """Find the masters of the running engine and start the teacher at them; call once, after the engine was built."""
        parameter = next(self.student.parameters())
        self.bf16 = parameter.dtype == torch.bfloat16
        self.teacher.module.to(parameter.device)
        self._masters = Masters(self.engine, self.student, stage)
        self.teacher.copy_from(self._masters.read())

    def transfer_batch_to_device(self, batch: StudyBatch, device: torch.device, dataloader_idx: int) -> StudyBatch:
        """Move the batch; DeepSpeed's CPU device carries a rank that tensors do not know."""
        return batch.to("cpu" if device.type == "cpu" else device)

    def forward(self, batch: StudyBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and report of one rank's share; called by the engine."""
        teacher, objective = self._outside
        # The student's weights are bf16 and the teacher's float32: autocast lets both take the same float32 patches.
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            return objective(self.student, teacher.module, batch, all_gather_with_grad)

    def training_step(self, batch: StudyBatch) -> None:
        """One step on one global batch: every rank steps, or none does."""
        started = time.perf_counter()
        step = self.completed_steps
        torch.manual_seed(_step_seed(self.seed, step, rank()))
        rate = learning_rate(self.optim, step, self.max_steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        loss, report = self.engine(batch)
        applied, norm = self._backward_and_step(loss)
        momentum = teacher_momentum(self.optim, step, self.max_steps)
        if applied:
            self.teacher.update(self.masters.read(), momentum)
        self.completed_steps += 1
        ended = time.perf_counter()
        self.result = StepResult(
            step=self.completed_steps,
            loss=loss.detach().float(),
            report=report,
            keys=batch.keys,
            volumes=max(len(view.lengths) for view in batch.views.values()),
            tokens=sum(view.patches_TP.shape[0] for view in batch.views.values()),
            applied=applied,
            gradient_norm=norm,
            learning_rate=rate,
            momentum=momentum,
            seconds=ended - self._ended,
            wait_seconds=started - self._ended,
        )
        self._ended = ended

    def _backward_and_step(self, loss: Tensor) -> tuple[bool, float]:
        """Whether the step was applied, and the gradient norm before clipping; the same answer on every rank."""
        if any_flag(not bool(torch.isfinite(loss)), self.device_for_flags):
            return False, float("nan")
        engine = self.engine
        engine.backward(loss)
        norm = None
        if not engine.zero_optimization():
            # Without ZeRO DeepSpeed steps on whatever the gradient is. It is the same on all ranks after the all-reduce.
            gradients = [p.grad for p in self.student.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
            if norm != norm or norm == float("inf"):
                engine.zero_grad()
                return False, norm
        # With ZeRO the engine itself agrees over ranks that no gradient is inf or nan, else drops all of them.
        engine.step()
        if norm is None:
            norm = float(engine.get_global_grad_norm())
        return bool(engine.was_step_applied()), norm

    @property
    def device_for_flags(self) -> torch.device | str:
        """Where tiny agreement tensors live: NCCL wants them on its device."""
        return self.device if self.device.type == "cuda" else "cpu"

    def on_train_start(self) -> None:
        """Start the clock of the first step."""
        self._ended = time.perf_counter()


def _step_seed(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed that differs in step, rank and run; a splitmix64 round spreads neighbours."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    return (mixed ^ (mixed >> 27)) >> 1
