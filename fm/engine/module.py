"""One training step: objective, guards, DeepSpeed engine, teacher."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from fm.batch import StudyBatch
from fm.config.optim import OptimConfig
from fm.engine.accumulation import Replay, join_batches
from fm.engine.groups import build_optimizer
from fm.engine.masters import Masters
from fm.engine.schedules import learning_rate, teacher_momentum
from fm.engine.teacher import Teacher
from fm.parallel.collectives import all_gather_with_grad, any_flag, rank

Result = TypeVar("Result")
Objective = Callable[[Any, Any, StudyBatch, Callable[[Tensor], Tensor]], tuple[Tensor, dict[str, Tensor]]]
"""``objective(student, teacher, batch, gather) -> (loss, report)``, see :mod:`fm.objectives`."""
Forwarded = tuple[Tensor, dict[str, Tensor], Callable[[], None]]
"""Loss, report, and what sends the gradient back."""


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
    """Time since the step before, waiting and saving included."""


class TrainingModule(pl.LightningModule):
    """Student inside the DeepSpeed engine, teacher beside it.

    The module calls the engine in DeepSpeed's own order (forward, backward, step); Lightning brings the loop, the
    hooks and the processes. All randomness of a step is keyed by (seed, step, rank), so that a resumed run needs no
    generator state.
    """

    def __init__(
        self,
        *,
        student: nn.Module,
        teacher: nn.Module,
        objective: Objective,
        optim: OptimConfig,
        seed: int,
        max_steps: int,
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
        self.result: StepResult | None = None
        # In a tuple: a plain attribute would register the modules, and the engine would cast and shard the teacher.
        frozen = [name for name, p in student.named_parameters() if not p.requires_grad]
        self._outside = (Teacher(teacher, frozen), objective)
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

    def attach(self) -> None:
        """Find the masters of the built engine and start the teacher at them; call once."""
        self.teacher.module.to(next(self.student.parameters()).device)
        self._masters = Masters(self.engine, self.student)
        self.teacher.copy_from(self._masters.read())

    def transfer_batch_to_device(
        self, batch: list[StudyBatch], device: torch.device, dataloader_idx: int
    ) -> list[StudyBatch]:
        """Move the batch; DeepSpeed's CPU device carries a rank that tensors do not know."""
        return [micro.to("cpu" if device.type == "cpu" else device) for micro in batch]

    def forward(self, compute: Callable[[], Result]) -> Result:
        """Run a computation on the student inside the engine's forward, where DeepSpeed's hooks apply."""
        return compute()

    def training_step(self, batch: list[StudyBatch]) -> None:
        """One step on this rank's share of one global batch, in micro-batches: every rank steps, or none does."""
        step = self.completed_steps
        self._seed(0)
        rate = learning_rate(self.optim, step, self.max_steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        loss, report, backward = self._direct(batch[0]) if len(batch) == 1 else self._cached(batch)
        applied, norm = self._backward_and_step(loss, backward)
        momentum = teacher_momentum(self.optim, step, self.max_steps)
        if applied:
            self.teacher.update(self.masters.read(), momentum)
        self.completed_steps += 1
        ended = time.perf_counter()
        self.result = StepResult(
            step=self.completed_steps,
            loss=loss.detach().float(),
            report=report,
            keys=[key for micro in batch for key in micro.keys],
            volumes=sum(max(len(view.lengths) for view in micro.views.values()) for micro in batch),
            tokens=sum(view.patches_TP.shape[0] for micro in batch for view in micro.views.values()),
            applied=applied,
            gradient_norm=norm,
            learning_rate=rate,
            momentum=momentum,
            seconds=ended - self._ended,
        )
        self._ended = ended

    def _direct(self, batch: StudyBatch) -> Forwarded:
        """Loss, report and backward pass of a single micro-batch."""
        teacher, objective = self._outside
        # No autocast: the model casts its input to its own weights, and the losses are float32.
        loss, report = self.engine(lambda: objective(self.student, teacher.module, batch, all_gather_with_grad))
        return loss, report, lambda: self.engine.backward(loss)

    def _cached(self, micros: list[StudyBatch]) -> Forwarded:
        """The same for several: the objective sees all of them at once, see :mod:`fm.engine.accumulation`."""
        teacher, objective = self._outside

        def student(*args: Any) -> Any:
            return self.engine(lambda: self.student(*args))

        replay = Replay(student, micros, self._seed, keep=True)
        target = Replay(teacher.module, micros, self._seed, keep=False)
        loss, report = objective(replay, target, join_batches(micros), all_gather_with_grad)

        def backward() -> None:
            loss.backward()
            for number in range(len(micros)):
                self.engine.set_gradient_accumulation_boundary(number == len(micros) - 1)
                self.engine.backward(replay.surrogate(number))

        return loss, report, backward

    def _seed(self, micro: int) -> None:
        torch.manual_seed(_step_seed(self.seed, self.completed_steps, rank(), micro))

    def _backward_and_step(self, loss: Tensor, backward: Callable[[], None]) -> tuple[bool, float]:
        """Whether the step was applied, and the gradient norm before clipping; the same answer on every rank."""
        if any_flag(not bool(torch.isfinite(loss)), self.device_for_flags):
            return False, float("nan")
        engine = self.engine
        backward()
        norm = None
        if not engine.zero_optimization():
            # Without ZeRO DeepSpeed steps on whatever the gradient is, the same on all ranks after their reduction.
            parameters = [p for p in self.student.parameters() if p.grad is not None]
            total = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            norm = float(total)
            if not math.isfinite(norm):
                engine.zero_grad()
                return False, norm
            if self.optim.clip_norm > 0:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.optim.clip_norm, total)
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


def _step_seed(seed: int, *place: int) -> int:
    """A 63-bit seed for one place in the run (step, rank, micro-batch)."""
    text = ".".join(map(str, (seed, *place)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
