"""What a run tells of itself: a row of metrics for each step, the samples of skipped steps, ranks that are slow."""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from fm.config.errors import UserError
from fm.config.trainer import TrainerConfig
from fm.engine.cost import CostMeter, Usage
from fm.engine.flops import device_tflops
from fm.engine.metrics import MetricLog, Row
from fm.engine.module import Skip, StepResult, TrainingModule
from fm.engine.tracker import Tracker
from fm.engine.trainer import Stream
from fm.parallel.collectives import gather_objects, rank, sum_over_ranks, world_size

log = logging.getLogger(__name__)

SKIPPED = "skipped.jsonl"


class TrainingHalted(UserError):
    """Training that stopped itself because going on would be of no use."""


class Recorder(pl.Callback):
    """Writes metrics.jsonl and its copy in the tracker (rank 0), and the sample ids of skipped steps."""

    def __init__(
        self,
        *,
        config: TrainerConfig,
        run_dir: Path,
        attempt: str,
        metrics: MetricLog | None,
        tracker: Tracker | None,
        meter: CostMeter,
    ):
        """Take the sinks, both None on every rank but 0, and what measures this rank's use of the machine."""
        self._config = config
        self._run_dir = run_dir
        self._attempt = attempt
        self._metrics = metrics
        self._tracker = tracker
        self._meter = meter
        self.row: Row = {}
        """The newest row."""
        self._bad_in_a_row = 0
        self._cut = [0, 0]
        self._stragglers = Stragglers(world_size())
        self._tflops = device_tflops(config.device_tflops)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the step; the same collectives on every rank."""
        if not isinstance(pl_module, TrainingModule) or pl_module.result is None:
            raise RuntimeError("a batch ended without a step")
        result = pl_module.result
        self._cut[0] += result.reports_cut
        self._cut[1] += result.report_tokens_cut
        if result.applied:
            self._bad_in_a_row = 0
        else:
            self._record_skip(result)
        if result.step % self._config.log_every_steps == 0 or not result.applied or result.step == pl_module.max_steps:
            stream = trainer.train_dataloader
            self.row = row = self._row(result, pl_module, stream.wait_seconds if isinstance(stream, Stream) else 0.0)
            if self._metrics is not None and self._tracker is not None:
                self._metrics.write(row)
                self._tracker.log(row)
        if self._bad_in_a_row >= self._config.max_bad_steps:
            raise TrainingHalted(
                f"{self._bad_in_a_row} steps up to {result.step} were skipped in a row, the last as {result.skip}: "
                f"see {SKIPPED} for the samples, lower optim.learning_rate, or raise trainer.max_bad_steps"
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the sinks."""
        if self._metrics is not None and self._tracker is not None:
            self._metrics.close()
            self._tracker.close()

    def _row(self, result: StepResult, module: TrainingModule, wait_seconds: float) -> Row:
        names = sorted(result.report)
        values = [result.loss, *(result.report[name].float() for name in names)]
        # Everything that ranks have to say in one sum: each rank's own numbers stand in a place of their own.
        usage = self._meter.usage()
        mine = [result.busy_seconds, wait_seconds, _peak_memory_gb(usage), *usage.vector()]
        own = torch.zeros(len(mine), world_size(), dtype=torch.float64)
        own[:, rank()] = torch.tensor(mine, dtype=torch.float64)
        counts = torch.tensor([result.volumes, result.tokens, result.flops, *self._cut], dtype=torch.float64)
        local = torch.cat([torch.stack([v.to(torch.float64).cpu() for v in values]), counts, own.flatten()])
        total = sum_over_ranks(local.to(module.device_for_flags)).cpu()
        means = (total[: len(values)] / world_size()).tolist()
        volumes, tokens, flops, reports_cut, tokens_cut = total[len(values) : len(values) + 5].tolist()
        busy, waits, memory, *used = total[len(values) + 5 :].view(len(mine), -1).tolist()
        self._stragglers.take(busy)
        self._meter.take(result.step, used)
        seconds, wait = max(result.seconds, 1e-9), statistics.mean(waits)
        tflops = flops / seconds / world_size() / 1e12
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
            "volumes_per_s": volumes / seconds,
            "tokens_per_s": tokens / seconds,
            # Since this attempt began: long reports are read to model.text_max_tokens, and what is lost is told.
            "reports_cut": reports_cut,
            "report_tokens_cut": tokens_cut,
            "step_s": result.seconds,
            "data_wait_s": wait,
            "data_wait_share": wait / seconds,
            **{f"{name}_s": spent for name, spent in result.phases.items()},
            "tflops_per_device": tflops,
            "mfu": tflops / self._tflops if self._tflops else None,
            "peak_memory_gb": max(memory),
            "host_memory_gb": max(used[1]),
            "slowest_rank": busy.index(max(busy)),
            "slowest_rank_s": max(busy),
            "median_rank_s": statistics.median(busy),
        }

    def _record_skip(self, result: StepResult) -> None:
        self._bad_in_a_row += 1
        keys = [key for keys in gather_objects(result.keys) for key in keys]
        if rank() == 0:
            log.warning("step %d skipped on all ranks: %s", result.step, result.skip)
            reason = "spike" if result.skip is Skip.SPIKE else "not finite"
            with open(self._run_dir / SKIPPED, "a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": result.step, "reason": reason, "keys": keys}) + "\n")


class Stragglers:
    """Tells of a rank that is slower than the others for long: they all wait for it."""

    window = 50
    """Rows that are looked at together; one slow step is nothing."""
    factor = 1.5
    """Times the median rank from which on a rank is told of."""
    least_seconds = 0.05

    def __init__(self, ranks: int) -> None:
        self._seconds: list[deque[float]] = [deque(maxlen=self.window) for _ in range(ranks)]
        self._rows = 0

    def take(self, busy: Sequence[float]) -> str | None:
        """Take in the seconds that each rank computed in a step; the warning, where there is one, is logged too."""
        for window, seconds in zip(self._seconds, busy, strict=True):
            window.append(seconds)
        self._rows += 1
        if self._rows % self.window:
            return None
        medians = [statistics.median(window) for window in self._seconds]
        usual, slowest = statistics.median_low(medians), max(medians)
        if slowest < self.factor * usual or slowest - usual < self.least_seconds:
            return None
        message = (
            f"rank {medians.index(slowest)} is slow: {slowest:.2f} s of its own work a step where the others "
            f"need {usual:.2f} s (median of {self.window} steps); look at its device, its disk and what else runs there"
        )
        if rank() == 0:
            log.warning("%s", message)
        return message


def _peak_memory_gb(usage: Usage) -> float:
    """The most memory that this rank ever held: of the device, without one of the process and its loaders."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else usage.host_gb
