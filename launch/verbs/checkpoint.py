"""``fm checkpoint list | verify | convert``: the checkpoints of a run, whether they are whole, and in other forms."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fm.config.errors import UserError
from fm.config.jobs.training import (
    CheckpointConvertJob,
    CheckpointForm,
    CheckpointListJob,
    CheckpointVerifyJob,
    ExportJob,
)
from fm.engine.checkpoint import CHECKPOINTS, CheckpointError, Checkpoints, CheckpointStore
from fm.engine.places import run_of
from launch import runs


def run(job: CheckpointListJob | CheckpointVerifyJob | CheckpointConvertJob) -> int:
    """List, verify or convert; returns 0, or 1 where a checkpoint that was asked for is damaged."""
    if isinstance(job, CheckpointConvertJob):
        return _convert(job)
    with run_of(job.from_run) as (_, store):
        if isinstance(store, CheckpointStore) and not store.root.is_dir():
            raise UserError(f"from_run={job.from_run}: no checkpoints there; name the run folder of fm pretrain")
        return _verify(job, store) if isinstance(job, CheckpointVerifyJob) else _list(job, store)


def _list(job: CheckpointListJob, store: Checkpoints[Any]) -> int:
    from rich.console import Console
    from rich.table import Table

    table = Table("step", "saved (UTC)", "MB", "ranks", "stage", "precision", "dataset")
    steps = store.steps()
    for step in steps:
        size, facts = store.size(step), store.facts(step)
        saved = datetime.fromtimestamp(size.saved, UTC).isoformat(timespec="seconds")[:19]
        words = [str(facts.get(name, "?")) for name in ("world_size", "stage", "precision", "dataset_id")]
        table.add_row(str(step), saved, f"{size.bytes / 1e6:.1f}", *words)
    Console().print(table if steps else f"no committed checkpoint in {store.where}")
    print(f"next: fm checkpoint verify from_run={job.from_run}")
    return 0


def _verify(job: CheckpointVerifyJob, store: Checkpoints[Any]) -> int:
    steps = store.steps() if job.step is None else [job.step]
    if not steps:
        raise CheckpointError(f"{store.where} holds no committed checkpoint")
    bad = 0
    for step in steps:
        try:
            store.verify(step)
            print(f"step {step}: every file has the SHA-256 of its manifest")
        except CheckpointError as err:
            bad += 1
            print(f"step {step}: damaged: {err}")
    if bad:
        print(f"{bad} of {len(steps)} damaged; a resumed run takes the newest good one: fm pretrain run={job.from_run}")
        return 1
    print(f"next: fm export from_run={job.from_run} step={steps[-1]} out=DIR")
    return 0


def _convert(job: CheckpointConvertJob) -> int:
    if job.form is CheckpointForm.transformers:
        from launch.verbs.export import run as export

        return export(ExportJob(from_run=job.from_run, out=job.out, step=job.step))
    from fm.engine.convert import convert_layout
    from fm.engine.export import find_step

    out = Path(job.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out} exists and is not empty; name a new folder")
    with run_of(job.from_run) as (folder, store):
        runs.trained_job(folder, job.from_run)
        step, found = find_step(store, job.step)
        runs.copy_run(folder, out, found)
        convert_layout(found, CheckpointStore(out / CHECKPOINTS), job.ranks)
        store.release()
    print(f"step {step} in {out}, its moments in {job.ranks} shard{'s' if job.ranks > 1 else ''}")
    print(f"next: fm pretrain run={out}")
    return 0
