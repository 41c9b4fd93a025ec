"""``fm finetune``: train an encoder and a head to tell a label of the study."""

from __future__ import annotations

import os
from pathlib import Path

from fm.adapt.targets import prepare
from fm.config.jobs.training import FinetuneJob
from fm.config.trainer import Device
from fm.data.plan import shares
from fm.engine.failures import less_memory
from launch.entry import run_workers, topology
from launch.runs import attempts
from launch.worker import gpu_count


def run(job: FinetuneJob) -> int:
    """Start the workers of a run and wait for them; returns 0 when done, 75 when stopped and to be run again."""
    run_dir = Path(str(job.run))
    place = topology(job.launch, 0 if job.trainer.device is Device.cpu else gpu_count(), len(os.sched_getaffinity(0)))
    # Before any process starts: batch sizes and labels that do not allow the run.
    shares(job.data.global_batch_size, job.data.micro_batch_size, place.processes)
    prepare(job)
    code = run_workers(
        run_dir,
        attempt=str(attempts(run_dir)[-1]["attempt"]),
        place=place,
        signal_lead_s=job.trainer.signal_lead_s,
        max_steps=job.max_steps,
        advice=less_memory(job.data, job.trainer.stage, place.processes),
    )
    if code == 0:
        print(f"trained {job.max_steps} steps, model in {run_dir / 'export'}")
        print(f"next: fm predict model={run_dir / 'export'} input=SCAN.nii.gz out=predictions.csv")
    else:
        print(f"stopped; next: fm finetune run={run_dir} goes on from the last checkpoint")
    return code
