"""``fm export``: the encoder of a run as safetensors with its configuration."""

from __future__ import annotations

from pathlib import Path

from fm.config.errors import UserError
from fm.config.root import ExportJob, PretrainJob
from launch.runs import RUN_FILE, attempt_job


def run(job: ExportJob) -> int:
    """Export one checkpoint of a run; returns the exit code."""
    from fm.config.load import read
    from fm.engine.export import export_model

    source, out = Path(job.from_run), Path(job.out)
    if not (source / RUN_FILE).is_file():
        raise UserError(f"from_run={source}: no {RUN_FILE} there; give the run folder of fm pretrain")
    trained = attempt_job(source)
    if not isinstance(trained, PretrainJob):
        raise UserError(f"from_run={source} is no run of fm pretrain")
    about, _ = read(source / RUN_FILE)
    facts = {"commit": about.get("commit", "unknown"), "seed": trained.seed}
    export_model(source, out, job.step, weights=trained.trainer.export_weights, facts=facts)
    print(f"encoder in {out}")
    print(f"next: fm evaluate encoder={out} data.url={trained.data.url}")
    return 0
