"""What every attempt of a training run does around its steps, whatever it trains."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import lightning.pytorch as pl

from fm.config.data import DataConfig
from fm.config.errors import UserError
from fm.config.jobs.training import TrainingJob
from fm.config.trainer import Device, Precision, Resume, TrainerConfig
from fm.data.index import Manifest
from fm.data.store import access_of
from fm.engine.callbacks import Guard, Keeper
from fm.engine.checkpoint import Checkpoints
from fm.engine.cost import CostMeter
from fm.engine.metrics import METRICS, MetricLog
from fm.engine.module import TrainingModule
from fm.engine.places import RUN_FILE, keep_run
from fm.engine.profile import StepProfiler
from fm.engine.recorder import Recorder
from fm.engine.signals import StopFlag
from fm.engine.tracker import Tracker
from fm.engine.trainer import Stream, build_trainer
from fm.engine.verdict import Outcome
from fm.parallel.collectives import barrier, broadcast_object, rank, world_size
from fm.parallel.group import join
from fm.parallel.hardware import require_offload, resolve_device

T = TypeVar("T")


def guarded(
    job: TrainingJob, run_dir: Path, attempt: str, train: Callable[[StopFlag, CostMeter], tuple[Outcome, int]]
) -> tuple[Outcome, int]:
    """What `train` returns, within the process group, with the stop signals caught and the cost counted.

    Raises:
        UserError: the hardware does not allow the run.
    """
    device = resolve_device(job.trainer)
    require_offload(job.trainer)
    join(device, job.trainer.collective_timeout_s)
    stop = StopFlag()
    stop.install()
    meter = CostMeter(run_dir, attempt, rank=rank(), ranks=world_size(), on_gpu=device is Device.cuda)
    try:
        return train(stop, meter)
    finally:
        stop.restore()
        meter.close()


def fit(
    job: TrainingJob,
    run_dir: Path,
    attempt: str,
    *,
    module: TrainingModule,
    stream: Stream,
    precision: Precision,
    store: Checkpoints[Any],
    resumed: tuple[int, Path] | None,
    manifest: Manifest,
    before: Sequence[pl.Callback],
    stop: StopFlag,
    meter: CostMeter,
) -> tuple[Outcome, int]:
    """Train until the last step or a stop signal; how it ended, and the step that is on disk.

    Args:
        job: the configuration.
        run_dir: the run folder.
        attempt: name of this attempt.
        module: what is trained, fresh.
        stream: the batches that are left.
        precision: resolved precision.
        store: the run's checkpoints.
        resumed: the step to go on from and its verified folder; None: a fresh start.
        manifest: the studies that are trained on.
        before: callbacks that run before the step is recorded.
        stop: set by a stop signal.
        meter: counts the cost.

    Raises:
        UserError: the last step could not be saved; training that only produces NaN.
    """
    recorder = _recorder(job, run_dir, attempt, resumed[0] if resumed else 0, meter)
    keeper = Keeper(
        config=job.trainer,
        precision=precision.value,
        store=store,
        resume_from=resumed[1] if resumed else None,
        dataset_id=manifest.dataset_id,
        accept=job.data.accept,
        stop=stop,
        student=module.student,
        counts={"studies": len(manifest), "patients": len(set(manifest.samples.column("patient").to_pylist()))},
        run_dir=run_dir,
        row=lambda: recorder.row,
    )
    trainer = build_trainer(
        job.trainer,
        device=resolve_device(job.trainer),
        precision=precision,
        clip_norm=job.optim.clip_norm,
        micro_batch_size=job.data.micro_batch_size,
        accumulation=stream.accumulation,
        callbacks=[
            Guard(job.trainer, run_dir, attempt),
            StepProfiler(job.trainer.profile_steps, run_dir, attempt),
            *before,
            recorder,
            keeper,
        ],
    )
    trainer.fit(module, stream)
    if keeper.saved_step < module.completed_steps:
        raise UserError(
            f"step {module.completed_steps} is trained but could not be saved (see events.log): "
            f"free disk space and run again, it goes on from step {keeper.saved_step}"
        )
    return (Outcome.DONE if module.completed_steps >= job.max_steps else Outcome.REQUEUE), keeper.saved_step


def newest_step(trainer: TrainerConfig, store: Checkpoints[Any], run_dir: Path) -> tuple[int, Path] | None:
    """The step to go on from; its trace comes with it where the run folder was lost."""
    found = store.newest(trainer.resume is Resume.required)
    if found is not None and not (run_dir / METRICS).is_file() and (found[1] / METRICS).is_file():
        shutil.copyfile(found[1] / METRICS, run_dir / METRICS)
    return found


def keep_place(trainer: TrainerConfig, data: DataConfig, run_dir: Path) -> None:
    """Before the first step: whoever may not write to the place of the checkpoints learns it now."""
    if trainer.checkpoint_url and (run_dir / RUN_FILE).is_file():
        keep_run(run_dir, trainer.checkpoint_url, access_of(data))


def on_rank_0(action: Callable[[], T]) -> T:
    """What rank 0's action returns, on every rank; what it raises is raised everywhere, so that none waits for it."""
    value: T | None = None
    error: Exception | None = None
    if rank() == 0:
        try:
            value = action()
        except Exception as err:
            error = err
    told = (type(error).__name__, str(error), isinstance(error, UserError)) if error is not None else None
    value, told = broadcast_object((value, told))
    if error is not None:
        raise error
    if told is not None:
        raise UserError(told[1]) if told[2] else RuntimeError(f"rank 0 failed: {told[0]}: {told[1]}")
    barrier()
    return cast(T, value)


def _recorder(job: TrainingJob, run_dir: Path, attempt: str, step: int, meter: CostMeter) -> Recorder:
    first = rank() == 0
    return Recorder(
        config=job.trainer,
        run_dir=run_dir,
        attempt=attempt,
        metrics=MetricLog(run_dir / METRICS, step) if first else None,
        tracker=Tracker(job.tracker, run_dir, attempt, step) if first else None,
        meter=meter,
    )
