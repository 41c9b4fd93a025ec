"""``fm phantom``: simulated studies as DICOM, with reports, labels and masks."""

from __future__ import annotations

import os
from pathlib import Path

from fm.config.jobs.datasets import PhantomJob


def run(job: PhantomJob) -> int:
    """Simulate the studies of a job; returns the exit code."""
    from data_prep.phantom import simulate

    out = Path(job.out)
    simulate(out, job.studies, job.seed, job.phantom, job.workers or os.cpu_count() or 1)
    print(f"{job.studies} studies in {out}, pictures in {out / 'sheet.png'}")
    print(
        f"next: fm prepare input={out / 'dicom'} reports={out / 'reports.csv'} labels={out / 'labels.csv'} "
        f"prepare.deface=none out={out.with_name(out.name + '-shards')}"
    )
    return 0
