"""``fm verify``: whether a dataset is what its manifest says."""

from __future__ import annotations

from fm.config.jobs.datasets import VerifyJob


def run(job: VerifyJob) -> int:
    """Verify; returns 0, or 1 where something is damaged."""
    from fm.data.verify import verify

    report = verify(job.url, job.crops)
    decoded = f"{job.crops} crops of each series" if job.crops else "every voxel"
    print(
        f"dataset {report.dataset_id}: {report.shards} shards, {report.studies} studies, {report.series} series, "
        f"{report.bytes / 1e6:.1f} MB read, {decoded} decoded"
    )
    for line in report.problems:
        print(f"damaged: {line}")
    if report.problems:
        print(f"{len(report.problems)} problems: copy these shards again, or make them again with fm prepare")
        return 1
    print(f"nothing is damaged\nnext: fm inspect url={job.url}")
    return 0
