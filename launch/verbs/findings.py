"""``fm findings sheet`` and ``fm findings score``: how well a labeller reads reports, checked by hand."""

from __future__ import annotations

from pathlib import Path

from fm.config.jobs.datasets import FindingsScoreJob, FindingsSheetJob


def run(job: FindingsSheetJob | FindingsScoreJob) -> int:
    """Write a sheet, or score one that is filled in; returns 0."""
    from data_prep.reports.sheet import read_sheet, score, table, write_sheet

    if isinstance(job, FindingsScoreJob):
        print(table(score(read_sheet(Path(job.sheet)))))
        print("next: mend prepare.findings_file where it errs, and prepare again into a new out")
        return 0
    studies, rows = write_sheet(job.url, Path(job.out), job.studies, job.findings_file, job.seed)
    print(f"{rows} rows of {studies} reports in {job.out}: fill in the column truth with y, n or -")
    print(f"next: fm findings score sheet={job.out}")
    return 0
