"""``fm pretrain``: train an encoder on prepared shards."""

from __future__ import annotations

import os
from pathlib import Path

from fm.config.root import PretrainJob
from launch.entry import run_workers, topology
from launch.runs import attempts


def run(job: PretrainJob) -> int:
    """Start the workers of a run and wait for them; returns 0 when done, 75 when stopped and to be run again."""
    run_dir = Path(str(job.run))
    place = topology(job.launch, _gpus(), len(os.sched_getaffinity(0)))
    code = run_workers(
        run_dir,
        attempt=str(attempts(run_dir)[-1]["attempt"]),
        place=place,
        signal_lead_s=job.trainer.signal_lead_s,
        max_steps=job.max_steps,
    )
    if code == 0:
        print(f"trained {job.max_steps} steps, encoder in {run_dir / 'export'}")
        print(f"next: fm evaluate encoder={run_dir / 'export'} data.url={job.data.url}")
    else:
        print(f"stopped and saved; next: fm pretrain run={run_dir} goes on")
    return code


def _gpus() -> int:
    """NVIDIA devices of this machine, without loading torch in the launching process."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([entry for entry in visible.split(",") if entry.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
