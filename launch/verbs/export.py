"""``fm export``: the encoder of a run as safetensors with its configuration."""

from __future__ import annotations

from pathlib import Path

from fm.config.jobs.training import ExportJob
from launch.runs import trained_job


def run(job: ExportJob) -> int:
    """Export one checkpoint of a run; returns the exit code."""
    from fm.engine.card import card_facts
    from fm.engine.export import export_model
    from fm.engine.places import run_of

    out = Path(job.out)
    with run_of(job.from_run) as (folder, store):
        trained = trained_job(folder, job.from_run)
        licence = trained.export.license if job.export.license == "unknown" else job.export.license
        export_model(
            folder,
            out,
            job.step,
            store=store,
            weights=job.weights or trained.trainer.export_weights,
            facts=card_facts(trained, folder, licence),
        )
        store.release()
    print(f"encoder in {out}")
    print(f"next: fm evaluate encoder={out} data.url={trained.data.url}")
    return 0
