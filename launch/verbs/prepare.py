"""``fm prepare``: a folder of DICOM and a file of reports become shards."""

from __future__ import annotations

import os

from fm.config.jobs.datasets import PrepareJob


def run(job: PrepareJob) -> int:
    """Prepare the studies of a job; returns the exit code."""
    from data_prep.prepare import prepare

    summary = prepare(job.input, job.reports, job.labels, job.out, job.prepare, job.workers or os.cpu_count() or 1)
    print(summary)
    print(f"next: fm pretrain data.url={job.out} experiment=demo run=runs/first")
    return 0
