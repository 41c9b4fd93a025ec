"""``fm pretrain``: train an encoder on prepared shards."""

from __future__ import annotations

from pathlib import Path

from fm.config.jobs.training import PretrainJob
from fm.data.index import Manifest
from fm.data.plan import plan_of, shares
from fm.data.store import access_of
from launch.training import place_of, train


def run(job: PretrainJob) -> int:
    """Start the workers of a run and wait for them; returns 0 when done, 75 when stopped and to be run again."""
    run_dir = Path(str(job.run))
    place = place_of(job)
    check_batches(job, place.processes)
    code = train(job, place)
    if code == 0:
        print(f"trained {job.max_steps} steps, encoder in {run_dir / 'export'}")
        print(f"next: fm evaluate encoder={run_dir / 'export'} data.url={job.data.url}")
    else:
        print(f"stopped; next: fm pretrain run={run_dir} goes on from the last checkpoint")
    return code


def check_batches(job: PretrainJob, processes: int) -> None:
    """Refuse, before any process starts, batch sizes that processes and studies do not allow."""
    shares(job.data.global_batch_size, job.data.micro_batch_size, processes)
    manifest = Manifest.open(job.data.url, access_of(job.data)).select(split=job.data.split)
    plan_of(manifest, job.data, job.seed)
