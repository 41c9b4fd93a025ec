"""Copies of the metrics for Weights & Biases and TensorBoard; training never waits for them nor fails with them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from fm.config.tracker import TrackerConfig, WandbMode
from fm.engine.metrics import Value

log = logging.getLogger(__name__)

TENSORBOARD = "tensorboard"


class Sink(Protocol):
    """Where a copy of the metrics goes."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Send the numbers of one step."""

    def close(self) -> None:
        """Send what is left, and end."""


class Tracker:
    """Hands each row to the sinks that the configuration asks for; one that fails is switched off and logged once."""

    def __init__(self, config: TrackerConfig, run_dir: Path, attempt: str, completed_steps: int = 0) -> None:
        """Start the sinks.

        Args:
            config: which there are.
            run_dir: the run folder.
            attempt: name of this attempt.
            completed_steps: steps before this attempt; what an earlier one logged past them never happened.
        """
        wanted: dict[str, Callable[[], Sink]] = {}
        if config.wandb is not WandbMode.off:
            wanted["wandb"] = lambda: WandbSink(config, run_dir, attempt)
        if config.tensorboard:
            wanted["TensorBoard"] = lambda: TensorBoardSink(run_dir / TENSORBOARD, attempt, completed_steps)
        self._sinks: dict[str, Sink] = {}
        for name, start in wanted.items():
            try:
                self._sinks[name] = start()
            except Exception as err:
                # A tracker must not be able to stop a training run, whatever it raises.
                log.warning("%s is off for this attempt: %s", name, err)

    def log(self, row: Mapping[str, Value]) -> None:
        """Send one row; a sink that fails is switched off."""
        step, values = int(row["step"] or 0), {k: v for k, v in row.items() if isinstance(v, int | float)}
        for name, sink in list(self._sinks.items()):
            try:
                sink.write(step, values)
            except Exception as err:
                log.warning("%s is off from step %d on: %s", name, step, err)
                del self._sinks[name]

    def close(self) -> None:
        """End the sinks."""
        for name, sink in self._sinks.items():
            try:
                sink.close()
            except Exception as err:
                log.warning("%s did not finish: %s", name, err)


class WandbSink:
    """One wandb run per attempt, grouped by run: resuming an offline wandb run replaces it (wandb#3841)."""

    def __init__(self, config: TrackerConfig, run_dir: Path, attempt: str) -> None:
        """Start the wandb run."""
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
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

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log one step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        import wandb

        self._run.finish()
        # finish() returns before an offline file is whole; the end of the service is the end of the writing.
        wandb.teardown()


class TensorBoardSink:
    """One file of scalars per attempt in one folder, which TensorBoard shows as one run.

    Written with TensorBoard's own records and not by torch's ``SummaryWriter``, which puts the host's name into the
    file's name and reports a full disk from a thread of its own.
    """

    def __init__(self, folder: Path, attempt: str, completed_steps: int) -> None:
        """Begin the file; what earlier files hold of later steps is hidden."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        folder.mkdir(exist_ok=True)
        # TensorBoard reads a folder in the order of the names.
        name = f"events.out.tfevents.attempt-{attempt:0>6}"
        self._file = open(folder / name, "wb")  # noqa: SIM115 - lives as long as the attempt
        self._records = RecordWriter(self._file)
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
        begin = SessionLog(status=SessionLog.SessionStatus.START)
        self._add(Event(wall_time=time.time(), step=completed_steps + 1, session_log=begin))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log one step; it is in the file on return."""
        numbers = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(self._event(wall_time=time.time(), step=step, summary=self._summary(value=numbers)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _add(self, event: object) -> None:
        self._records.write(event.SerializeToString())  # type: ignore[attr-defined]  # protobuf ships no types here
        self._file.flush()
