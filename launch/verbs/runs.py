"""``fm runs list``: the runs below a folder and how far they came."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fm.config.errors import ConfigError, UserError
from fm.config.load import read
from fm.config.root import RunsJob
from fm.engine.metrics import read_metrics
from launch.runs import RUN_FILE, attempts

METRICS = "metrics.jsonl"


@dataclass(slots=True)
class RunRow:
    """One line of the list."""

    folder: Path
    verb: str
    started: str
    attempts: int
    step: int | None
    loss: float | None


def run(job: RunsJob) -> int:
    """Print the runs below a folder, newest first; returns the exit code."""
    from rich.console import Console
    from rich.table import Column, Table

    root = Path(job.folder)
    if not root.is_dir():
        raise UserError(f"folder={root}: no such folder; runs lie in ./runs unless run=DIR said otherwise")
    rows = sorted((row(file.parent) for file in root.rglob(RUN_FILE)), key=lambda found: found.started, reverse=True)
    table = Table(Column("run", overflow="fold"), "verb", "started (UTC)", "attempts", "step", "loss")
    for found in rows:
        step, loss = "" if found.step is None else str(found.step), "" if found.loss is None else f"{found.loss:.4f}"
        table.add_row(str(found.folder), found.verb, found.started[:19], str(found.attempts), step, loss)
    Console().print(table if rows else f"no run below {root}")
    print(f"next: fm {rows[0].verb} run={rows[0].folder}" if rows else "next: fm demo run=runs/demo")
    return 0


def row(folder: Path) -> RunRow:
    """What a run folder's own files say about it."""
    try:
        facts, _ = read(folder / RUN_FILE)
    except ConfigError:
        facts = {}
    rows = read_metrics(folder / METRICS) if (folder / METRICS).is_file() else []
    last = rows[-1] if rows else {}
    step, loss = last.get("step"), last.get("loss")
    return RunRow(
        folder=folder,
        verb=str(facts.get("verb", "unreadable")),
        started=str(facts.get("time", "")),
        attempts=len(attempts(folder)),
        step=step if isinstance(step, int) else None,
        loss=loss if isinstance(loss, float) else None,
    )
