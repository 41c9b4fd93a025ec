"""``fm finetune``: train an encoder and a head to tell a label of the study."""

from __future__ import annotations

from pathlib import Path

from fm.adapt.targets import prepare
from fm.config.jobs.training import FinetuneJob
from fm.data.plan import shares
from launch.training import place_of, train


def run(job: FinetuneJob) -> int:
    """Start the workers of a run and wait for them; returns 0 when done, 75 when stopped and to be run again."""
    run_dir = Path(str(job.run))
    place = place_of(job)
    # Before any process starts: batch sizes and labels that do not allow the run.
    shares(job.data.global_batch_size, job.data.micro_batch_size, place.processes)
    prepare(job)
    code = train(job, place)
    if code == 0:
        print(f"trained {job.max_steps} steps, model in {run_dir / 'export'}")
        print(f"next: fm predict model={run_dir / 'export'} input=SCAN.nii.gz out=predictions.csv")
    else:
        print(f"stopped; next: fm finetune run={run_dir} goes on from the last checkpoint")
    return code
