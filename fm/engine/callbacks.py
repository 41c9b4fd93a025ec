"""What happens around the steps: resume, metrics, checkpoints, stop."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from fm.config.errors import UserError
from fm.config.trainer import TrainerConfig
from fm.engine.checkpoint import CheckpointStore
from fm.engine.metrics import MetricLog, Row
from fm.engine.module import StepResult, TrainingModule
from fm.engine.signals import StopFlag
from fm.engine.state import describe, load_checkpoint, save_checkpoint
from fm.engine.tracker import Tracker
from fm.engine.trainer import Stream
from fm.objectives.student import StudentModule
from fm.parallel.collectives import any_flag, gather_objects, rank, sum_over_ranks, world_size

log = logging.getLogger(__name__)


class TrainingHalted(UserError):
    """Training that stopped itself because going on would be of no use."""


class Keeper(pl.Callback):
    """Loads the checkpoint that a run resumes from, saves on schedule, at the end and on a stop signal.

    After ``fit``, `saved_step` says which step is on disk.
    """

    def __init__(
        self,
        *,
        config: TrainerConfig,
        precision: str,
        store: CheckpointStore,
        resume_from: Path | None,
        dataset_id: str,
        accept: str,
        stop: StopFlag,
        student: StudentModule,
    ) -> None:
        """Take the run's facts; `resume_from` is a verified folder, `accept` a dataset id that need not be its own."""
        self._config = config
        self._precision = precision
        self._store = store
        self._resume_from = resume_from
        self._dataset_id = dataset_id
        self._accept = accept
        self._stop = stop
        self._student = student
        self.saved_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Attach the engine, load the checkpoint, take the signals over from Lightning."""
        module = _training(pl_module)
        module.attach()
        if self._resume_from is not None:
            state = self._describe(module)
            module.completed_steps = load_checkpoint(
                self._resume_from, state, engine=module.engine, teacher=module.teacher, accept=self._accept
            )
            self.saved_step = module.completed_steps
        self._stop.install()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Agree on a stop, and save where one is due."""
        module = _training(pl_module)
        stopped = any_flag(self._stop.is_set, module.device_for_flags)
        due = module.completed_steps % self._config.checkpoint_every_steps == 0
        if stopped or due or module.completed_steps == module.max_steps:
            self._save(module)
        if stopped:
            log.info("stop signal: saved step %d of %d", self.saved_step, module.max_steps)
            trainer.should_stop = True

    def _save(self, module: TrainingModule) -> None:
        state = self._describe(module)
        if save_checkpoint(
            self._store,
            state,
            engine=module.engine,
            masters=module.masters,
            teacher=module.teacher,
            student=self._student,
        ):
            self.saved_step = state.step

    def _describe(self, module: TrainingModule) -> Any:
        return describe(
            step=module.completed_steps,
            stage=self._config.stage,
            precision=self._precision,
            dataset_id=self._dataset_id,
            student=module.student,
        )


class Recorder(pl.Callback):
    """Writes metrics.jsonl and its copy in the tracker (rank 0), and the sample ids of skipped steps."""

    def __init__(
        self, *, config: TrainerConfig, run_dir: Path, attempt: str, metrics: MetricLog | None, tracker: Tracker | None
    ):
        """Take the sinks; both are None on every rank but 0."""
        self._config = config
        self._run_dir = run_dir
        self._attempt = attempt
        self._metrics = metrics
        self._tracker = tracker
        self._bad_in_a_row = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the step; the same collectives on every rank."""
        module = _training(pl_module)
        result = module.result
        if result is None:
            raise RuntimeError("a batch ended without a step")
        if result.applied:
            self._bad_in_a_row = 0
        else:
            self._record_skip(result)
        if result.step % self._config.log_every_steps == 0 or not result.applied or result.step == module.max_steps:
            stream = trainer.train_dataloader
            row = self._row(result, module, stream.wait_seconds if isinstance(stream, Stream) else 0.0)
            if self._metrics is not None and self._tracker is not None:
                self._metrics.write(row)
                self._tracker.log(row)
        if self._bad_in_a_row >= self._config.max_bad_steps:
            raise TrainingHalted(
                f"{self._bad_in_a_row} steps up to {result.step} had a loss or gradient that is not finite: "
                "see skipped.jsonl for the samples, lower optim.learning_rate, or raise trainer.max_bad_steps"
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the sinks."""
        if self._metrics is not None and self._tracker is not None:
            self._metrics.close()
            self._tracker.close()

    def _row(self, result: StepResult, module: TrainingModule, wait_seconds: float) -> Row:
        names = sorted(result.report)
        values = [result.loss, *(result.report[name].float() for name in names)]
        counts = torch.tensor([result.volumes, result.tokens], dtype=torch.float64)
        local = torch.cat([torch.stack([v.to(torch.float64).cpu() for v in values]), counts]).to(
            module.device_for_flags
        )
        total = sum_over_ranks(local).cpu()
        means = (total[:-2] / world_size()).tolist()
        volumes, tokens = total[-2:].tolist()
        return {
            "step": result.step,
            "attempt": self._attempt,
            "time": time.time(),
            "loss": means[0],
            **{name: mean for name, mean in zip(names, means[1:], strict=True) if name != "loss"},
            "applied": result.applied,
            "gradient_norm": result.gradient_norm,
            "learning_rate": result.learning_rate,
            "teacher_momentum": result.momentum,
            "volumes": volumes,
            "volumes_per_s": volumes / max(result.seconds, 1e-9),
            "tokens_per_s": tokens / max(result.seconds, 1e-9),
            "step_s": result.seconds,
            "data_wait_s": wait_seconds,
        }

    def _record_skip(self, result: StepResult) -> None:
        self._bad_in_a_row += 1
        keys = [key for keys in gather_objects(result.keys) for key in keys]
        if rank() == 0:
            log.warning("step %d skipped on all ranks: loss or gradient is not finite", result.step)
            with open(self._run_dir / "skipped.jsonl", "a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": result.step, "keys": keys}) + "\n")


def _training(module: pl.LightningModule) -> TrainingModule:
    if not isinstance(module, TrainingModule):
        raise TypeError(f"these callbacks go with a TrainingModule, not with {type(module).__name__}")
    return module
