"""A Chrome trace of some steps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.profiler import ProfilerActivity, profile

from fm.engine.module import TrainingModule
from fm.parallel.collectives import rank

log = logging.getLogger(__name__)

PROFILE = "profile"


class StepProfiler(pl.Callback):
    """Profiles the steps that ``trainer.profile_steps`` names, on every rank.

    Open the file of ``profile/`` in chrome://tracing or ui.perfetto.dev.
    """

    def __init__(self, steps: Sequence[int], run_dir: Path, attempt: str) -> None:
        """Take the first and the last step, counted from 1; none: do nothing."""
        self._first, self._last = steps if steps else (0, 0)
        self._folder, self._attempt = run_dir / PROFILE, attempt
        self._profile: profile | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, idx: int) -> None:
        """Begin at the first step."""
        if isinstance(pl_module, TrainingModule) and pl_module.completed_steps + 1 == self._first:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities)
            self._profile.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, idx: int
    ) -> None:
        """Write the trace after the last step, or where the run ends before."""
        if self._profile is None or not isinstance(pl_module, TrainingModule):
            return
        if pl_module.completed_steps in (self._last, pl_module.max_steps) or trainer.should_stop:
            taken, self._profile = self._profile, None
            taken.stop()
            self._folder.mkdir(exist_ok=True)
            name = f"attempt-{self._attempt}-rank-{rank():05d}-steps-{self._first}-{pl_module.completed_steps}.json"
            taken.export_chrome_trace(str(self._folder / name))
            log.info("profile of steps %d to %d in %s/%s", self._first, pl_module.completed_steps, PROFILE, name)
