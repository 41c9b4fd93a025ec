"""``fm checkpoint list`` and ``fm checkpoint verify``: the checkpoints of a run, and whether they are whole."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from fm.config.errors import UserError
from fm.config.root import CheckpointListJob, CheckpointVerifyJob
from fm.engine.checkpoint import CHECKPOINTS, COMMITTED, CheckpointError, CheckpointStore


def run(job: CheckpointListJob | CheckpointVerifyJob) -> int:
    """List or verify; returns 0, or 1 where a checkpoint that was asked for is damaged."""
    store = CheckpointStore(Path(job.from_run) / CHECKPOINTS)
    if not store.root.is_dir():
        raise UserError(f"from_run={job.from_run}: no checkpoints there; name the run folder of fm pretrain")
    if isinstance(job, CheckpointVerifyJob):
        return _verify(job, store)
    return _list(job, store)


def _list(job: CheckpointListJob, store: CheckpointStore) -> int:
    from rich.console import Console
    from rich.table import Table

    table = Table("step", "saved (UTC)", "MB", "ranks", "stage", "precision", "dataset")
    for step in store.steps():
        folder = store.folder(step)
        saved = datetime.fromtimestamp((folder / COMMITTED).stat().st_mtime, UTC).isoformat(timespec="seconds")[:19]
        megabytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
        facts = store.facts(step)
        words = [str(facts.get(name, "?")) for name in ("world_size", "stage", "precision", "dataset_id")]
        table.add_row(str(step), saved, f"{megabytes:.1f}", *words)
    Console().print(table if store.steps() else f"no committed checkpoint in {store.root}")
    print(f"next: fm checkpoint verify from_run={job.from_run}")
    return 0


def _verify(job: CheckpointVerifyJob, store: CheckpointStore) -> int:
    steps = store.steps() if job.step is None else [job.step]
    if not steps:
        raise CheckpointError(f"{store.root} holds no committed checkpoint")
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
