"""``fm withdraw``: a patient leaves a dataset."""

from __future__ import annotations

from fm.config.jobs.datasets import WithdrawJob


def run(job: WithdrawJob) -> int:
    """Withdraw the patient of a job; returns the exit code."""
    from data_prep.withdraw import withdraw

    done = withdraw(job.url, job.patient, job.key_file, job.site)
    shards = f"shard {done.shards[0]}" if len(done.shards) == 1 else f"{len(done.shards)} shards"
    print(f"{done.studies} studies removed; {shards} rewritten; dataset {done.parent} is now {done.dataset_id}")
    print("copies and backups of the dataset still hold the patient: replace them too")
    print(f"next: fm pretrain run=DIR data.accept={done.dataset_id}")
    return 0
