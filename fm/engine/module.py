"""One training step: objective, guards, DeepSpeed engine, teacher."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from torch import Tensor

from fm.batch import StudyBatch
from fm.config.optim import OptimConfig
from fm.data.touch import finish
from fm.engine.accumulation import Replay, join_batches
from fm.engine.flops import FlopMeter
from fm.engine.groups import RATE, build_optimizer
from fm.engine.masters import Masters
from fm.engine.phases import Phases
from fm.engine.schedules import learning_rate, teacher_momentum
from fm.engine.shard import OptimizerShard
from fm.engine.spikes import SpikeGuard
from fm.engine.teacher import Teacher
from fm.objectives.student import StudentModule
from fm.parallel.collectives import all_gather_with_grad, rank, seconds_waited, sum_over_ranks, world_size

Result = TypeVar("Result")
Objective = Callable[[Any, Any, StudyBatch, Callable[[Tensor], Tensor]], tuple[Tensor, dict[str, Tensor]]]
"""``objective(student, teacher, batch, gather) -> (loss, report)``, see :mod:`fm.objectives`."""
_LOSS_SCALING = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""The state of DeepSpeed's dynamic loss scaler."""
Forwarded = tuple[Tensor, dict[str, Tensor], Callable[[], None]]
"""Loss, report, and what sends the gradient back."""


class Skip(StrEnum):
    """Why a step was skipped on all ranks."""

    LOSS = "the loss is not finite"
    GRADIENT = "a gradient is not finite"
    SPIKE = "the loss is far above what it was lately"


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
    reports_cut: int = 0
    """Reports longer than the text encoder reads."""
    report_tokens_cut: int = 0
    """Tokens of them that it did not read."""
    skip: Skip | None = None
    """Why the step was skipped on all ranks; None where it was applied."""
    gradient_norm: float = 0.0
    learning_rate: float = 0.0
    momentum: float = 0.0
    seconds: float = 0.0
    """Time since the step before, waiting and saving included."""
    busy_seconds: float = 0.0
    """The part of it that this rank itself needed, data included, up to where the ranks agree on the loss."""
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds of each phase."""
    flops: float = 0.0
    """Model FLOPs of this rank."""

    @property
    def applied(self) -> bool:
        """Whether weights and teacher moved."""
        return self.skip is None


class TrainingModule(pl.LightningModule):
    """Student inside the DeepSpeed engine, teacher beside it.

    The module calls the engine in DeepSpeed's own order (forward, backward, step); Lightning brings the loop, the
    hooks and the processes. All randomness of a step is keyed by (seed, step, rank), so that a resumed run needs no
    generator state.
    """

    def __init__(
        self,
        *,
        student: StudentModule,
        teacher: StudentModule,
        objective: Objective,
        optim: OptimConfig,
        seed: int,
        max_steps: int,
        spikes: SpikeGuard,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        """Take the parts of a run.

        Args:
            student: everything that is trained.
            teacher: its float32 copy.
            objective: forward and losses.
            optim: optimiser and schedules.
            seed: of the run.
            max_steps: steps of the whole run, the horizon of the schedules.
            spikes: judges the loss of each step.
            rates: factor of each parameter's learning rate, by name; None: all alike.
        """
        super().__init__()
        self.automatic_optimization = False
        self.student = student
        self.optim = optim
        self.rates = rates
        self.seed = seed
        self.max_steps = max_steps
        self.completed_steps = 0
        self.spikes = spikes
        self.phases = Phases()
        self.result: StepResult | None = None
        # In a tuple: a plain attribute would register the modules, and the engine would cast and shard the teacher.
        frozen = [name for name, p in student.named_parameters() if not p.requires_grad]
        self._outside = (Teacher(teacher, frozen), objective)
        self._flops = FlopMeter(student, teacher)
        self._masters: Masters | None = None
        self._shard: OptimizerShard | None = None
        self._waited = 0.0
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
    def shard(self) -> OptimizerShard:
        """This rank's part of the optimiser's state."""
        if self._shard is None:
            raise RuntimeError("the engine has not been attached yet")
        return self._shard

    @property
    def engine(self) -> Any:
        """The DeepSpeed engine."""
        return self.trainer.strategy.model

    @property
    def loss_scaling(self) -> dict[str, float]:
        """Where the search for fp16's loss scale stands; empty in other precisions."""
        if not self.engine.fp16_enabled():
            return {}
        scaler = self.engine.optimizer.loss_scaler
        return {name: float(getattr(scaler, name)) for name in _LOSS_SCALING}

    def restore_loss_scaling(self, saved: Mapping[str, float]) -> None:
        """Go on with a saved search; a run in another precision has none."""
        if self.engine.fp16_enabled():
            for name, value in saved.items():
                setattr(self.engine.optimizer.loss_scaler, name, value if name == "cur_scale" else int(value))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser that DeepSpeed shards."""
        return build_optimizer(self.student, self.optim, self.rates)

    def attach(self) -> None:
        """Find the masters of the built engine and start the teacher at them; call once."""
        if world_size() == 1 and not self.engine.zero_optimization():
            # DeepSpeed copies all gradients into buckets and back to reduce them over a single rank: 4 % of a step.
            self.engine.enable_backward_allreduce = False
        self.teacher.module.to(next(self.student.parameters()).device)
        if self.engine.zero_optimization_partition_weights():
            self.teacher.cut()
        self._masters = Masters(self.engine, self.student)
        self._shard = OptimizerShard(self.engine, self.student)
        self.teacher.copy_from(self._masters.read())

    def transfer_batch_to_device(
        self, batch: list[StudyBatch], device: torch.device, dataloader_idx: int
    ) -> list[StudyBatch]:
        """Move the batch, and do what its views still lack; DeepSpeed's CPU device has a rank tensors do not know."""
        return [finish(micro.to("cpu" if device.type == "cpu" else device)) for micro in batch]

    def forward(self, compute: Callable[[], Result]) -> Result:
        """Run a computation on the student inside the engine's forward, where DeepSpeed's hooks apply."""
        return compute()

    def training_step(self, batch: list[StudyBatch]) -> None:
        """One step on this rank's share of one global batch, in micro-batches: every rank steps, or none does."""
        step = self.completed_steps
        self.phases.enter("forward")
        self._flops.take()  # a probe since the last step is none of this one's work
        self._seed(0)
        rate = learning_rate(self.optim, step, self.max_steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate * group.get(RATE, 1.0)
        loss, report, backward = self._direct(batch[0]) if len(batch) == 1 else self._cached(batch)
        skip, total = self._judge(loss)
        busy = time.perf_counter() - self._ended - (seconds_waited() - self._waited)
        norm = math.nan
        if skip is None:
            skip, norm = self._backward_and_step(backward)
        momentum = teacher_momentum(self.optim, step, self.max_steps)
        self.phases.enter("teacher")
        if skip is None:
            self.teacher.update(self.masters.read(), momentum)
            self.spikes.take(total)
        self.completed_steps += 1
        self.phases.enter("record")
        ended, self._waited = time.perf_counter(), seconds_waited()
        self.result = StepResult(
            step=self.completed_steps,
            loss=loss.detach().float(),
            report=report,
            keys=[key for micro in batch for key in micro.keys],
            volumes=sum(max(len(view.lengths) for view in micro.views.values()) for micro in batch),
            tokens=sum(view.patches_TP.shape[0] for micro in batch for view in micro.views.values()),
            reports_cut=sum(int((micro.text.cut_B > 0).sum()) for micro in batch),
            report_tokens_cut=sum(int(micro.text.cut_B.sum()) for micro in batch),
            skip=skip,
            gradient_norm=norm,
            learning_rate=rate,
            momentum=momentum,
            seconds=ended - self._ended,
            busy_seconds=busy,
            phases=self.phases.take(),
            flops=self._flops.take(),
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
            # Outputs in fp16 have gradients in fp16, which underflow unless they are scaled.
            scale = self.loss_scaling.get("cur_scale", 1.0)
            (loss * scale).backward()
            for number in range(len(micros)):
                self.engine.set_gradient_accumulation_boundary(number == len(micros) - 1)
                self.engine.backward(replay.surrogate(number, scale))

        return loss, report, backward

    def _seed(self, micro: int) -> None:
        torch.manual_seed(_step_seed(self.seed, self.completed_steps, rank(), micro))

    def _judge(self, loss: Tensor) -> tuple[Skip | None, float]:
        """Whether the loss forbids a step, and its mean over ranks: one sum, so that all come to the same answer."""
        local = loss.detach().to(self.device_for_flags, torch.float64)
        mean = float(sum_over_ranks(local.reshape(1))) / world_size()
        if not math.isfinite(mean):
            return Skip.LOSS, mean
        return (Skip.SPIKE if self.spikes.is_spike(mean) else None), mean

    def _backward_and_step(self, backward: Callable[[], None]) -> tuple[Skip | None, float]:
        """Whether the gradient forbids the step, and its norm before clipping; the same answer on every rank."""
        engine = self.engine
        self.phases.enter("backward")
        backward()
        self.phases.enter("optimizer")
        norm = None
        if not engine.zero_optimization():
            # Without ZeRO DeepSpeed steps on whatever the gradient is, the same on all ranks after their reduction.
            parameters = [p for p in self.student.parameters() if p.grad is not None]
            total = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            norm = float(total)
            if not math.isfinite(norm):
                engine.zero_grad()
                return Skip.GRADIENT, norm
            if self.optim.clip_norm > 0:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.optim.clip_norm, total)
        # With ZeRO the engine itself agrees over ranks that no gradient is inf or nan, else drops all of them.
        engine.step()
        if norm is None:
            norm = float(engine.get_global_grad_norm())
        return (None if engine.was_step_applied() else Skip.GRADIENT), norm

    @property
    def device_for_flags(self) -> torch.device | str:
        """Where tiny agreement tensors live: NCCL wants them on its device."""
        return self.device if self.device.type == "cuda" else "cpu"

    def on_train_start(self) -> None:
        """Start the clock of the first step."""
        self._ended, self._waited = time.perf_counter(), seconds_waited()


def _step_seed(seed: int, *place: int) -> int:
    """A 63-bit seed for one place in the run (step, rank, micro-batch)."""
    text = ".".join(map(str, (seed, *place)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
