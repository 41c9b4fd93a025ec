"""``fm jobs list | logs | cancel | resubmit``: jobs that were submitted, with the engine's own word on them."""

from __future__ import annotations

import json
from pathlib import Path

from fm.config.errors import UserError
from fm.config.jobs.cluster import JobsCancelJob, JobsListJob, JobsLogsJob, JobsResubmitJob
from launch.cluster import engines


def run(job: JobsListJob | JobsLogsJob | JobsCancelJob | JobsResubmitJob) -> int:
    """Do what the subverb says; returns the exit code."""
    folder = Path(job.folder)
    if not folder.is_dir():
        raise UserError(f"folder={folder}: no such folder")
    if isinstance(job, JobsListJob):
        return _list(folder)
    if isinstance(job, JobsLogsJob):
        print(engines.logs(folder, engines.newest(folder)), end="")
        return 0
    if isinstance(job, JobsCancelJob):
        sent = engines.newest(folder)
        engines.cancel(sent)
        print(f"job {sent.id} is cancelled; next: fm jobs resubmit folder={folder} goes on from the last checkpoint")
        return 0
    from launch.verbs.submit import resubmit

    sent = resubmit(folder)
    print(f"job {sent.id} of {sent.engine}: {folder}")
    print(f"next: fm jobs list folder={folder}")
    return 0


def _list(folder: Path) -> int:
    from rich.console import Console
    from rich.table import Column, Table

    found = sorted(path.parent for path in folder.rglob(engines.JOBS_FILE))
    rows = [(place, engines.newest(place)) for place in found]
    rows.sort(key=lambda row: row[1].time, reverse=True)
    table = Table(Column("folder", overflow="fold"), "engine", "job", "sent (UTC)", "state", "run says")
    for place, sent in rows:
        table.add_row(str(place), sent.engine, sent.id, sent.time[:19], engines.state(sent), _verdict(place))
    Console().print(table if rows else f"no job was submitted below {folder}")
    print(f"next: fm jobs logs folder={rows[0][0]}" if rows else "next: fm submit --help")
    return 0


def _verdict(folder: Path) -> str:
    """How the newest attempt that ended says it ended, and at which step."""
    try:
        said = json.loads((folder / "verdict.json").read_text())
        return f"{said['outcome']} at step {said['step']}"
    except (OSError, ValueError, KeyError):
        return ""
