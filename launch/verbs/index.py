"""``fm index``: shards that others wrote become a dataset."""

from __future__ import annotations

from fm.config.jobs.datasets import IndexJob


def run(job: IndexJob) -> int:
    """Index or rewrite the shards; returns 0, or 1 where no sample could be read."""
    from fm.data.foreign import index_shards
    from fm.data.mapping import Mapping

    mapping = Mapping(
        images=job.images,
        report=job.report,
        metadata=job.metadata,
        fields=job.fields,
        labels=job.labels,
        spacing_mm=(job.spacing_mm[0], job.spacing_mm[1], job.spacing_mm[2]),
    )
    done = index_shards(job.url, job.out, mapping, job.test_fraction, job.split_seed)
    print(f"dataset {done.dataset_id}: {done.shards} shards, {done.studies} studies, {done.series} series")
    for extension, count in sorted(done.ignored.items()):
        print(f"not read: {count} members {extension}")
    for line in done.problems:
        print(f"left out: {line}")
    print(f"next: fm verify url={job.out or job.url}")
    return 0
