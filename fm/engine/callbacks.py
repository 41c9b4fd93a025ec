"""What happens around the steps: resume, checkpoints, stop, the watch for hangs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from fm.config.trainer import TrainerConfig
from fm.engine.checkpoint import Checkpoints
from fm.engine.failures import record_error
from fm.engine.metrics import METRICS, Row
from fm.engine.module import TrainingModule
from fm.engine.saver import Saver
from fm.engine.signals import StopFlag
from fm.engine.snapshot import Snapshot
from fm.engine.state import RunState, capture, describe, load_checkpoint
from fm.engine.watchdog import SAVING, HangError, Watchdog
from fm.objectives.student import StudentModule
from fm.parallel.collectives import any_flags, rank

log = logging.getLogger(__name__)


class Keeper(pl.Callback):
    """Loads the checkpoint that a run resumes from, saves on schedule, at the end and on a stop signal.

    Saves on schedule are written while training goes on; at the end and on a stop it waits until the step is on disk.
    After ``fit``, `saved_step` says which step that is.
    """

    def __init__(
        self,
        *,
        config: TrainerConfig,
        precision: str,
        store: Checkpoints[Any],
        resume_from: Path | None,
        dataset_id: str,
        accept: str,
        stop: StopFlag,
        student: StudentModule,
        counts: dict[str, int],
        run_dir: Path,
        row: Callable[[], Row],
    ) -> None:
        """Take the run's facts.

        Args:
            config: when to save, and where.
            precision: resolved precision.
            store: the run's checkpoints.
            resume_from: a verified folder; None: a fresh start.
            dataset_id: of what is trained on.
            accept: a dataset id that need not be the checkpoint's own.
            stop: set by a stop signal.
            student: what is trained.
            counts: studies and patients that are trained on.
            run_dir: the run folder.
            row: the newest row of metrics.
        """
        self._config = config
        self._precision = precision
        self._store = store
        self._resume_from = resume_from
        self._dataset_id = dataset_id
        self._accept = accept
        self._stop = stop
        self._student = student
        self._counts = counts
        self._run_dir = run_dir
        self._row = row
        self._saver: Saver | None = None

    @property
    def saved_step(self) -> int:
        """The newest step that is known to be on disk."""
        return self._saver.saved_step if self._saver is not None else 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Attach the engine, load the checkpoint, take the signals over from Lightning."""
        module = _training(pl_module)
        module.attach()
        if self._resume_from is not None:
            saved = load_checkpoint(
                self._resume_from,
                self._describe(module),
                teacher=module.teacher,
                shard=module.shard,
                student=self._student,
                accept=self._accept,
            )
            module.completed_steps = saved.step
            module.spikes.restore(saved.recent_losses)
            if rank() == 0:
                self._store.release()  # the ranks have met after they loaded it
            module.restore_loss_scaling(saved.loss_scaling)
        self._saver = Saver(self._store, module.completed_steps, lambda: module.device_for_flags)
        self._stop.install()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Agree on a stop, and save where one is due."""
        module, saver = _training(pl_module), self._saver
        if saver is None:
            raise RuntimeError("a batch ended before training started")
        module.phases.enter(SAVING)
        stopped, failed = any_flags(self._stop.is_set, saver.failed, device=module.device_for_flags)
        if failed:
            saver.finish()
        last = stopped or module.completed_steps == module.max_steps
        if last or module.completed_steps % self._config.checkpoint_every_steps == 0:
            state = self._describe(module)
            saver.start(state.step, state.total_bytes, lambda: self._capture(module, state))
        if last:
            saver.finish()
        if stopped:
            log.info("stop signal: saved step %d of %d", saver.saved_step, module.max_steps)
            trainer.should_stop = True
        module.phases.enter("data")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let what is being written get to the disk."""
        if self._saver is not None:
            self._saver.leave()

    def _capture(self, module: TrainingModule, state: RunState) -> Snapshot:
        taken = capture(
            state, masters=module.masters, teacher=module.teacher, shard=module.shard, student=self._student
        )
        if rank() == 0 and self._config.checkpoint_url and (self._run_dir / METRICS).is_file():
            # The run folder may be lost with the machine: the trace up to here goes where the step goes.
            taken.texts[METRICS] = (self._run_dir / METRICS).read_text(encoding="utf-8")
        return taken

    def _describe(self, module: TrainingModule) -> RunState:
        state = describe(
            step=module.completed_steps,
            stage=self._config.stage,
            precision=self._precision,
            dataset_id=self._dataset_id,
            student=module.student,
        )
        state.recent_losses = module.spikes.losses
        state.counts = self._counts
        row = self._row()
        if row.get("step") == state.step:
            state.gauges = {
                name: float(value)
                for name, value in row.items()
                if isinstance(value, int | float) and math.isfinite(value)
            }
        state.loss_scaling = module.loss_scaling
        return state


class Guard(pl.Callback):
    """Watches for a hang from the first batch to the last; put it first, closing the others may take its time."""

    def __init__(self, config: TrainerConfig, run_dir: Path, attempt: str) -> None:
        """Take the timeout and where to report to."""
        self._timeout = config.hang_timeout_s
        self._run_dir, self._attempt = run_dir, attempt
        self._watchdog: Watchdog | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, idx: int) -> None:
        """Begin to watch: loading a checkpoint and the first batch take as long as they take."""
        if self._timeout and self._watchdog is None:
            _training(pl_module).phases.enter("data")
            self._watchdog = Watchdog(
                self._run_dir,
                rank=rank(),
                attempt=self._attempt,
                timeout_s=self._timeout,
                phases=_training(pl_module).phases,
                report=self._report(),
            )
            self._watchdog.start()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the watch: what follows the last step may take as long."""
        self._end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """End the watch with the run."""
        self._end()

    def _end(self) -> None:
        if self._watchdog is not None:
            self._watchdog.stop()

    def _report(self) -> Callable[[str], None]:
        name = str(rank())
        return lambda message: record_error(self._run_dir, self._attempt, name, HangError(message))


def _training(module: pl.LightningModule) -> TrainingModule:
    if not isinstance(module, TrainingModule):
        raise TypeError(f"these callbacks go with a TrainingModule, not with {type(module).__name__}")
    return module
