"""What the verbs that train have in common: where the workers run, and waiting for them."""

from __future__ import annotations

import os
from pathlib import Path

from fm.config.jobs.training import FinetuneJob, PretrainJob
from fm.config.trainer import Device
from fm.engine.failures import less_memory
from launch.entry import Topology, run_workers, topology
from launch.runs import attempts
from launch.worker import gpu_count


def place_of(job: PretrainJob | FinetuneJob) -> Topology:
    """The processes of this machine that a job asks for."""
    gpus = 0 if job.trainer.device is Device.cpu else gpu_count()
    return topology(job.launch, gpus, len(os.sched_getaffinity(0)))


def train(job: PretrainJob | FinetuneJob, place: Topology) -> int:
    """Start the workers of the newest attempt and wait for them; 0 when done, 75 when stopped and to be run again."""
    run_dir = Path(str(job.run))
    return run_workers(
        run_dir,
        attempt=str(attempts(run_dir)[-1]["attempt"]),
        place=place,
        signal_lead_s=job.trainer.signal_lead_s,
        max_steps=job.max_steps,
        advice=less_memory(job.data, job.trainer.stage, place.processes),
    )
