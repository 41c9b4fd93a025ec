"""A copy of the metrics for Weights & Biases; training never waits for it and never fails with it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fm.config.tracker import TrackerConfig, WandbMode
from fm.engine.metrics import Value

log = logging.getLogger(__name__)


class Tracker:
    """One wandb run per attempt, grouped by run: resuming an offline wandb run replaces it (wandb#3841)."""

    def __init__(self, config: TrackerConfig, run_dir: Path, attempt: str) -> None:
        """Start the wandb run, or not, as the configuration says; a failure is logged and switches it off."""
        self._run: Any = None
        if config.wandb is WandbMode.off:
            return
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb

            self._run = wandb.init(
                project=config.project,
                group=run_dir.name,
                name=f"{run_dir.name}-{attempt}",
                mode="online" if config.wandb is WandbMode.online else "offline",
                dir=str(run_dir),
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    disable_git=True,
                    disable_code=True,
                    disable_job_creation=True,
                    host="worker",
                    username="user",
                    x_disable_meta=True,
                    x_disable_stats=True,
                    x_disable_machine_info=True,
                    x_save_requirements=False,
                ),
            )
        except Exception as err:
            # A tracker must not be able to stop a training run, whatever it raises.
            log.warning("wandb is off for this attempt: %s", err)

    def log(self, row: Mapping[str, Value]) -> None:
        """Send one row; a failure is logged once and switches the tracker off."""
        if self._run is None:
            return
        try:
            self._run.log({k: v for k, v in row.items() if isinstance(v, int | float)}, step=int(row["step"] or 0))
        except Exception as err:
            log.warning("wandb is off from step %s on: %s", row.get("step"), err)
            self._run = None

    def close(self) -> None:
        """Finish the run."""
        if self._run is None:
            return
        try:
            import wandb

            self._run.finish()
            # finish() returns before an offline file is whole; the end of the service is the end of the writing.
            wandb.teardown()
        except Exception as err:
            log.warning("wandb did not finish: %s", err)
