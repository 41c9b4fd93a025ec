"""One worker process of a run: ``python -m launch.worker RUN_DIR``, started by torchrun through :mod:`launch.entry`."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import traceback
from pathlib import Path

from fm.config.errors import UserError
from fm.config.jobs.training import FinetuneJob, TrainingJob
from fm.config.trainer import Device
from fm.engine.failures import explained, record_error
from fm.engine.signals import REQUEUE_EXIT_CODE
from fm.engine.verdict import Outcome
from launch.runs import attempt_job

ATTEMPT = "FM_ATTEMPT"
"""Environment variable with the name of the attempt."""
_PR_SET_PDEATHSIG = 1


def main(run_dir: Path) -> int:
    """Train; returns 0 when done, 75 after a stop signal, 1 on an error (kept in the run folder)."""
    die_with_parent()
    attempt, rank = os.environ.get(ATTEMPT, "1"), os.environ.get("RANK", "0")
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format=f"%(asctime)s %(levelname)s rank {rank} %(name)s: %(message)s",
    )
    for room in ("fm", "launch"):
        logging.getLogger(room).setLevel(logging.INFO)
    job: object = None
    try:
        job = attempt_job(run_dir)
        if not isinstance(job, TrainingJob):
            raise UserError(f"{run_dir} is no run of fm pretrain or fm finetune")
        if job.trainer.device is Device.cpu or not gpu_count():
            # DeepSpeed reads it once, when it is imported.
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        return REQUEUE_EXIT_CODE if _train(job, run_dir, attempt) is Outcome.REQUEUE else 0
    except BaseException as err:
        if isinstance(job, TrainingJob):
            ranks = int(os.environ.get("WORLD_SIZE", "1"))
            err = explained(err, job.data, job.trainer.stage, int(rank), ranks)
        record_error(run_dir, attempt, rank, err)
        traceback.print_exc()
        return 1


def _train(job: TrainingJob, run_dir: Path, attempt: str) -> Outcome:
    if isinstance(job, FinetuneJob):
        from fm.adapt.run import finetune

        return finetune(job, run_dir, attempt)
    from fm.pretrain import pretrain

    return pretrain(job, run_dir, attempt)


def gpu_count() -> int:
    """NVIDIA devices that this process may use, found without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([entry for entry in visible.split(",") if entry.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def die_with_parent() -> None:
    """Ask Linux to kill this process with its parent: a killed launcher must not leave workers that go on writing."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
